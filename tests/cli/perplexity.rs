//! How well a model predicts a text.

use std::path::Path;

use crate::synth::synth;
use crate::tools::{aimo, real_model};

#[test]
fn perplexity_of_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = synth(dir.path(), "m.gguf", &["--like", "qwen3-0.6b"]);
    let (m, text) = (model.to_str().unwrap(), dir.path().join("text"));
    std::fs::write(&text, "a text of some words, again and again; ".repeat(30)).unwrap();
    let f = text.to_str().unwrap();
    let run = |args: &[&str]| {
        aimo(["perplexity", "-m", m, "-f", f, "--backend", "cpu", "--json"].iter().chain(args).copied()).json()
    };
    let one = run(&["-c", "64", "-b", "64"]);
    let perplexity = |v: &serde_json::Value| v["perplexity"].as_f64().unwrap();
    // A model that knows nothing is about as good as guessing among 600 tokens.
    assert!((200.0..3000.0).contains(&perplexity(&one)), "{one}");
    let n_chunks = one["n_chunks"].as_u64().unwrap();
    assert!(n_chunks >= 4, "{one}");
    assert_eq!(one["n_tokens"], n_chunks * 31);
    assert_eq!(one["running"].as_array().unwrap().len() as u64, n_chunks);
    assert_eq!(one["running"][n_chunks as usize - 1], one["perplexity"]);
    assert!(one["error"].as_f64().unwrap() > 0.0);
    // Chunks side by side, or a chunk in many passes: the same value.
    for args in [&["-c", "64", "-b", "512"][..], &["-c", "64", "-b", "7"]] {
        let other = run(args);
        assert!((perplexity(&other) / perplexity(&one) - 1.0).abs() < 2e-3, "{other} and {one}");
    }
    let two = run(&["-c", "64", "--chunks", "2"]);
    assert_eq!(two["n_chunks"], 2);
    if aimo(["devices", "--json"]).json()["vulkan"].as_array().is_some_and(|devices| !devices.is_empty()) {
        let args = ["perplexity", "-m", m, "-f", f, "--backend", "vulkan", "--json", "-c", "64", "--chunks", "2"];
        let other = aimo(args).json();
        assert!((perplexity(&other) / perplexity(&two) - 1.0).abs() < 5e-3, "{other} and {two}");
    }
    let done = aimo(["perplexity", "-m", m, "-f", f, "-c", "64", "--chunks", "2", "--backend", "cpu"]).ok();
    assert!(done.starts_with("Final estimate: PPL = ") && done.contains(" +/- "), "{done}");
    aimo(["perplexity", "-m", m, "-f", f, "-c", "4096"]).fails_naming(&["8192", "-c", "next:"]);
    std::fs::write(&text, "").unwrap();
    aimo(["perplexity", "-m", m, "-f", f]).fails_naming(&["0 tokens", "next:"]);
    aimo(["perplexity", "-m", m, "-f", f, "-c", "3"]).refuses_usage("at least 4");
    aimo(["perplexity", "-m", m, "-f", "/nowhere/t"]).fails_naming(&["/nowhere/t", "next:"]);
    aimo(["perplexity", "-m", m]).refuses_usage("--file");
}

/// Values of a real model on a fixed text: the predictions are good, and better with more context.
#[test]
fn perplexity_of_a_real_model() {
    let Some(model) = real_model("qwen2.5-coder-0.5b-q4_k_m.gguf") else { return };
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let args =
        ["perplexity", "-m", model.to_str().unwrap(), "-f", text.to_str().unwrap(), "--backend", "cpu", "--json"];
    let perplexity =
        |c: &str| aimo(args.into_iter().chain(["--chunks", "2", "-c", c])).json()["perplexity"].as_f64().unwrap();
    let (long, short) = (perplexity("256"), perplexity("32"));
    assert!((2.0..60.0).contains(&long) && long < short, "{long} with 256 tokens, {short} with 32");
}
