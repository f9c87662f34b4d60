//! Logits of real models against a plain f32 forward (`../shared/data/golden/logits.json`): the 20 largest logits of
//! the last position, for its short prompts (the engine's own tests compare all logits, for long prompts too). Where
//! all logits are compared, cosine ≥ 1 − ε means a relative error of at most √(2ε); the same bound is asked of the 20
//! here, relative to the root mean square of all logits.

use crate::tools::{aimo, real_model, shared};

/// √(2 · 10⁻⁴): cosine ≥ 0.9999, asked of f32 activations.
const EXACT_ERROR: f64 = 0.014_2;
/// √(2 · 10⁻³): cosine ≥ 0.999, asked of quantised activations.
const FAST_ERROR: f64 = 0.044_8;

#[test]
fn qwen2_5_coder_0_5b() {
    compare("qwen2.5-coder-0.5b-q4_k_m.gguf");
}

#[test]
fn tiny_qwen3() {
    compare("tiny-qwen3-q4_k_m.gguf");
}

fn compare(file: &str) {
    let (Some(golden), Some(model)) = (shared("data/golden/logits.json"), real_model(file)) else { return };
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let entries: Vec<_> =
        golden.as_array().unwrap().iter().filter(|e| e["model"] == file && e["prompt_name"] != "long").collect();
    assert!(!entries.is_empty(), "no reference for {file}");
    for entry in entries {
        let tokens: Vec<String> = entry["tokens"].as_array().unwrap().iter().map(ToString::to_string).collect();
        for (flags, bound) in [(&["--exact"][..], EXACT_ERROR), (&[], FAST_ERROR)] {
            let args = ["-q", "logits", "-m", model.to_str().unwrap(), "--backend", "cpu", "--json", "--top", "200"];
            let ours =
                aimo(args.into_iter().chain(flags.iter().copied()).chain(["--tokens", &tokens.join(",")])).json();
            assert_eq!(ours["n_tokens"].as_u64(), Some(tokens.len() as u64));
            let error = relative_error(&entry["reference_f32"], &ours["top"], entry["rms_logits"].as_f64().unwrap());
            eprintln!("{file} {} {flags:?}: relative error {error:.5}", entry["prompt_name"]);
            assert!(error <= bound, "{file} {} {flags:?}: {error} > {bound}", entry["prompt_name"]);
        }
    }
}

/// Root mean square of the differences, as a share of the root mean square of all logits. A reference token that is
/// not among ours counts with its whole logit.
fn relative_error(reference: &serde_json::Value, ours: &serde_json::Value, rms: f64) -> f64 {
    let pairs = |v: &serde_json::Value| -> Vec<(u64, f64)> {
        v.as_array().unwrap().iter().map(|p| (p[0].as_u64().unwrap(), p[1].as_f64().unwrap())).collect()
    };
    let (reference, ours) = (pairs(reference), pairs(ours));
    let square = |(id, logit): &(u64, f64)| {
        let found = ours.iter().find(|(other, _)| other == id).map_or(0.0, |(_, x)| *x);
        (found - logit).powi(2)
    };
    (reference.iter().map(square).sum::<f64>() / reference.len() as f64).sqrt() / rms
}
