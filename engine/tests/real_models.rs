//! Real models against the f32 reference logits beside the checkout. Each case is skipped with a message where its
//! model (see `cargo xtask models`) or the reference file is not there.

use engine::{BackendChoice, Engine, EngineOptions};
use std::path::{Path, PathBuf};

fn models_dir() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("aimo-engine/models")
    };
    std::env::var_os("AIMO_MODELS_DIR").map_or_else(cache, PathBuf::from)
}

/// Prompts of a model: (name, tokens, [(token, logit)], rms of all logits).
struct Golden {
    name: String,
    tokens: Vec<u32>,
    top: Vec<(usize, f64)>,
    rms: f64,
}

fn golden(model: &str) -> Option<Vec<Golden>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/golden/logits.json");
    let text = std::fs::read_to_string(&path).ok()?;
    let all: serde_json::Value = serde_json::from_str(&text).expect("the reference file is JSON");
    let entries = all.as_array().expect("a list").iter().filter(|e| e["model"] == model);
    let entry = |e: &serde_json::Value| Golden {
        name: e["prompt_name"].as_str().expect("a name").to_owned(),
        tokens: e["tokens"].as_array().expect("tokens").iter().map(|t| t.as_u64().expect("a token") as u32).collect(),
        top: e["reference_f32"]
            .as_array()
            .expect("logits")
            .iter()
            .map(|p| (p[0].as_u64().expect("a token") as usize, p[1].as_f64().expect("a logit")))
            .collect(),
        rms: e["rms_logits"].as_f64().expect("a number"),
    };
    Some(entries.map(entry).collect())
}

/// Checks the top logits, all of a prompt's length up to `longest` tokens.
fn check(model: &str, options: EngineOptions, least_cosine: f64, longest: usize) {
    let path = models_dir().join(model);
    let (Some(golden), true) = (golden(model), path.is_file()) else {
        println!("skipped: {model} or the reference logits are not on this machine");
        return;
    };
    assert!(!golden.is_empty(), "no reference for {model}");
    let mut engine = Engine::load(&path, &options, &mut |_, _| {}).expect("a loaded model");
    for g in golden.iter().filter(|g| g.tokens.len() <= longest) {
        let logits = engine.prompt_logits(&g.tokens).expect("logits");
        let (mut dot, mut ours, mut theirs) = (0.0, 0.0, 0.0);
        for &(token, want) in &g.top {
            let got = f64::from(logits[token]);
            dot += got * want;
            ours += got * got;
            theirs += want * want;
        }
        let cosine = dot / (ours * theirs).sqrt();
        let rms = (logits.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>() / logits.len() as f64).sqrt();
        let n = g.tokens.len();
        println!("{model} {} ({n} tokens): cosine of the top 20 {cosine:.6}, rms {rms:.4} for {:.4}", g.name, g.rms);
        assert!(cosine >= least_cosine, "{model} {}: cosine {cosine}", g.name);
        assert!((rms / g.rms - 1.0).abs() < 1e-3_f64.max((1.0 - least_cosine) * 30.0), "{model} {}: rms {rms}", g.name);
    }
}

fn cpu(exact: bool) -> EngineOptions {
    EngineOptions { backend: BackendChoice::Cpu, n_ctx: 1024, exact, ..EngineOptions::default() }
}

#[test]
fn the_half_billion_model_is_close_with_8_bit_activations() {
    check("qwen2.5-coder-0.5b-q4_k_m.gguf", cpu(false), 0.999, usize::MAX);
}

#[test]
fn the_half_billion_model_is_exact_with_f32_activations() {
    check("qwen2.5-coder-0.5b-q4_k_m.gguf", cpu(true), 0.9999, usize::MAX);
}

#[test]
fn the_small_qwen3_is_close_on_both_paths() {
    check("tiny-qwen3-q4_k_m.gguf", cpu(false), 0.999, usize::MAX);
    check("tiny-qwen3-q4_k_m.gguf", cpu(true), 0.9999, usize::MAX);
}

#[test]
fn the_half_billion_model_is_exact_on_the_software_vulkan_device() {
    let options = EngineOptions {
        backend: BackendChoice::Vulkan,
        device: Some("llvmpipe".into()),
        n_ctx: 1024,
        ..EngineOptions::default()
    };
    // The 564-token prompt takes a software device minutes; the kernels' own tests cover long contexts.
    check("qwen2.5-coder-0.5b-q4_k_m.gguf", options, 0.9999, 64);
}
