//! Models held against the f32 reference logits beside the checkout: all logits where `cargo xtask golden` has computed
//! them, else the twenty largest. A model that is not on this machine is skipped with a message.

use engine::{Engine, EngineOptions};
use std::path::{Path, PathBuf};

fn models_dir() -> PathBuf {
    let cache = || {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("aimo-engine/models")
    };
    std::env::var_os("AIMO_MODELS_DIR").map_or_else(cache, PathBuf::from)
}

/// A prompt of a model and what is known of its last logits.
struct Golden {
    prompt: String,
    tokens: Vec<u32>,
    /// The 20 largest: (token, logit).
    top: Vec<(usize, f64)>,
    /// Root mean square of all.
    rms: f64,
    /// All, where they were computed here.
    all: Option<Vec<f64>>,
    /// How close llama.cpp's CPU backend comes.
    llama_cpp_cosine: f64,
}

fn golden(model: &str) -> Option<Vec<Golden>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/golden/logits.json");
    let text = std::fs::read_to_string(&path).ok()?;
    let all: serde_json::Value = serde_json::from_str(&text).expect("the reference file is JSON");
    let entries = all.as_array().expect("a list").iter().filter(|e| e["model"] == model);
    let entry = |e: &serde_json::Value| {
        let prompt = e["prompt_name"].as_str().expect("a name").to_owned();
        let name = model.trim_end_matches(".gguf");
        Golden {
            all: read_npy(&models_dir().with_file_name("golden").join(format!("{name}.{prompt}.npy"))),
            prompt,
            tokens: e["tokens"].as_array().expect("tokens").iter().map(|t| t.as_u64().expect("an id") as u32).collect(),
            top: e["reference_f32"]
                .as_array()
                .expect("logits")
                .iter()
                .map(|p| (p[0].as_u64().expect("a token") as usize, p[1].as_f64().expect("a logit")))
                .collect(),
            rms: e["rms_logits"].as_f64().expect("a number"),
            llama_cpp_cosine: e["llama_cpp_vs_f32"]["cosine"].as_f64().expect("a number"),
        }
    };
    Some(entries.map(entry).collect())
}

/// A vector of floats in numpy's format (version 1: magic, version, header length, header, data).
fn read_npy(path: &Path) -> Option<Vec<f64>> {
    let bytes = std::fs::read(path).ok()?;
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (text, data) = (String::from_utf8_lossy(&bytes[10..10 + header]), &bytes[10 + header..]);
    if text.contains("'<f8'") {
        return Some(data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect());
    }
    assert!(text.contains("'<f4'"), "{}: {text}", path.display());
    Some(data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
}

fn cosine(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut dot, mut ours, mut theirs) = (0.0, 0.0, 0.0);
    for (got, want) in pairs {
        dot += got * want;
        ours += got * got;
        theirs += want * want;
    }
    dot / f64::sqrt(ours * theirs)
}

/// Checks the last logits of all of a model's prompts of up to `longest` tokens: each has at least the cosine `least`.
/// Without one, the model is at least as close as llama.cpp over its prompts, and on none twice as far away: both round
/// activations to 8 bits, each its own way, so that on some prompt a coarser rounding may be the luckier one. `prepare` may change the engine.
pub fn check(
    model: &str,
    options: &EngineOptions,
    prepare: impl FnOnce(&mut Engine),
    least: Option<f64>,
    longest: usize,
) {
    let path = models_dir().join(model);
    let (Some(golden), true) = (golden(model), path.is_file()) else {
        println!("skipped: {model} or the reference logits are not on this machine");
        return;
    };
    assert!(!golden.is_empty(), "no reference for {model}");
    let mut engine = Engine::load(&path, options, &mut |_, _| {}).expect("a loaded model");
    prepare(&mut engine);
    let form = if options.exact { "f32 activations" } else { "default" };
    let (mut distance, mut llama_cpp_distance) = (0.0, 0.0);
    for g in golden.iter().filter(|g| g.tokens.len() <= longest) {
        let logits = engine.prompt_logits(&g.tokens).expect("logits");
        let top = cosine(g.top.iter().map(|&(token, want)| (f64::from(logits[token]), want)));
        let all = g.all.as_ref().map(|all| cosine(logits.iter().map(|&l| f64::from(l)).zip(all.iter().copied())));
        let rms = (logits.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>() / logits.len() as f64).sqrt();
        let of = if all.is_some() { "all logits" } else { "the top 20" };
        let cosine = all.unwrap_or(top);
        let (prompt, n) = (&g.prompt, g.tokens.len());
        println!(
            "| {model} | {} | {form} | {prompt} ({n}) | {cosine:.6} of {of} | llama.cpp {:.6} |",
            engine.backend_name(),
            g.llama_cpp_cosine
        );
        distance += 1.0 - cosine;
        llama_cpp_distance += 1.0 - g.llama_cpp_cosine;
        let here = least.unwrap_or(1.0 - 2.0 * (1.0 - g.llama_cpp_cosine) - 1e-5);
        assert!(cosine >= here, "{model} {prompt}: cosine {cosine} of {of}, expected {here}");
        let most = if least.is_none() { 0.03 } else { 0.003 };
        assert!((rms / g.rms - 1.0).abs() < most, "{model} {prompt}: rms {rms} for {}", g.rms);
    }
    if least.is_none() {
        // The reference file's cosines have six digits.
        let most = llama_cpp_distance + 1e-6;
        assert!(
            distance <= most,
            "{model}: 1 − cosine is {distance} over the prompts, llama.cpp's {llama_cpp_distance}"
        );
    }
}
