//! Models of random weights, written and shown, in one file and in shards.

use std::path::{Path, PathBuf};

use crate::tools::{aimo, shared};

/// Writes a small imitation and gives its path.
pub fn synth(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let common = ["synth", "--layers", "2", "--vocab-size", "600", "--shrink", "8", "-o", path.to_str().unwrap()];
    let out = aimo(common.iter().chain(args).copied()).ok();
    assert_eq!(out.trim(), path.to_str().unwrap());
    path
}

#[test]
fn a_model_is_written_shown_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let model = synth(dir.path(), "m.gguf", &["--like", "qwen3-0.6b", "--seed", "5"]);
    let m = model.to_str().unwrap();
    let info = aimo(["info", m, "-c", "100", "--np", "3", "--json"]).json();
    assert_eq!(info["architecture"], "qwen3");
    assert_eq!(info["name"], "qwen3-0.6b (random weights)");
    assert_eq!((&info["n_layer"], &info["n_vocab"]), (&2.into(), &600.into()));
    assert_eq!(info["types"]["Q8_0"]["tensors"], 15);
    assert_eq!((&info["protocol"], &info["pre_tokenizer"]), (&"hermes".into(), &"qwen2".into()));
    assert_eq!(info["file_bytes"], model.metadata().unwrap().len());
    assert_eq!(info["problems"], serde_json::json!([]));
    let bytes = |key: &str| info["memory"][key].as_u64().unwrap();
    assert_eq!(bytes("weight_bytes"), info["weight_bytes"].as_u64().unwrap());
    assert_eq!(bytes("total_bytes"), bytes("weight_bytes") + bytes("kv_bytes") + bytes("activation_bytes"));
    // Thirteen pages of 8 positions.
    assert_eq!(bytes("kv_bytes"), 3 * 104 * info["kv_bytes_per_token"].as_u64().unwrap());
    let text = aimo(["-q", "generate", "-m", m, "-p", "ab", "-n", "4", "--backend", "cpu", "--json"]).json();
    assert!(!text["tokens"].as_array().unwrap().is_empty());
    // Again with the same seed: the same bytes, but only where replacing is allowed.
    let before = std::fs::read(&model).unwrap();
    let again = ["synth", "--like", "qwen3-0.6b", "--layers", "2", "--vocab-size", "600", "--shrink", "8", "-s", "5"];
    aimo(again.into_iter().chain(["-o", m])).fails_naming(&["m.gguf", "already", "--force"]);
    aimo(again.into_iter().chain(["-o", m, "--force"])).ok();
    assert!(std::fs::read(&model).unwrap() == before);
}

#[test]
fn shards_are_written_and_any_opens_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let like =
        ["synth", "--like", "qwen2.5-coder-0.5b", "--layers", "2", "--vocab-size", "4000", "--shrink", "2", "-o"];
    let (whole, parts) = (dir.path().join("whole.gguf"), dir.path().join("parts.gguf"));
    aimo(like.into_iter().chain([whole.to_str().unwrap()])).ok();
    let out = aimo(like.into_iter().chain([parts.to_str().unwrap(), "--split-max-size", "1M"])).ok();
    let files: Vec<&str> = out.lines().collect();
    assert!(files.len() >= 2 && files[0].ends_with(&format!("parts-00001-of-{:05}.gguf", files.len())), "{out}");
    let logits =
        |m: &str| aimo(["logits", "-m", m, "--tokens", "1,2,3", "--backend", "cpu", "--json"]).json()["top"].clone();
    assert_eq!(logits(files[1]), logits(whole.to_str().unwrap()));
    let info = aimo(["info", files[1], "--json"]).json();
    assert_eq!(info["shards"].as_array().unwrap().len(), files.len());
    assert!(aimo(["info", files[0]]).ok().contains(files[1]));
    std::fs::remove_file(files[1]).unwrap();
    aimo(["info", files[0]]).fails_naming(&["shard 2 of", "parts-00002-of", "next:"]);
    std::fs::rename(files[0], dir.path().join("x.gguf")).unwrap();
    aimo(["info", dir.path().join("x.gguf").to_str().unwrap()]).fails_naming(&["one of", "-NNNNN-of-", "next:"]);
}

#[test]
fn plans_need_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let info = aimo(["info", "--like", "gpt-oss-120b", "-c", "32768", "--json"]).json();
    assert_eq!(info["planned"], true);
    assert_eq!(info["protocol"], "harmony");
    assert_eq!(info["n_params"], 116_829_156_672u64);
    assert_eq!(info["kv_bytes_per_token"], 36_864);
    assert_eq!(info["types"]["MXFP4"]["tensors"], 108);
    assert!(info["memory"]["total_bytes"].as_u64().unwrap() > 64_000_000_000);
    let text = aimo(["info", "--like", "gpt-oss-120b"]).ok();
    for part in
        ["116.83 billion", "active", "128 of width 2880, 4 in a token", "18 of them with a window of 128", "memory"]
    {
        assert!(text.contains(part), "`{part}` is not in {text}");
    }
    let out = dir.path().join("m.gguf");
    let args = ["synth", "--like", "qwen3-8b", "--dry-run", "--json", "-o", out.to_str().unwrap()];
    let plan = aimo(args.into_iter().chain(["--split-max-size", "2G"])).json();
    assert_eq!(plan["shards"].as_array().unwrap().len(), 3);
    assert!((plan["file_bytes"].as_f64().unwrap() / 5.03e9 - 1.0).abs() < 0.01, "{plan}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let list = aimo(["synth", "--list", "--json"]).json();
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    for name in ["gpt-oss-20b", "gpt-oss-120b", "qwen3-30b-a3b", "qwen3-1.7b", "r1-distill-llama-70b"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(aimo(["synth", "--list"]).ok().contains("r1-distill-qwen-32b"));
}

#[test]
fn what_cannot_be_made_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("m.gguf");
    let o = out.to_str().unwrap();
    aimo(["synth", "-o", o]).refuses_usage("--like");
    aimo(["synth", "--like", "gpt-5", "-o", o]).refuses_usage("gpt-oss-20b");
    aimo(["synth", "--like", "qwen3-8b"]).refuses_usage("--output");
    aimo(["synth", "--like", "qwen3-8b", "--file-type", "Q9", "-o", o]).refuses_usage("Q4_K_M");
    aimo(["synth", "--like", "qwen3-8b", "--split-max-size", "5", "-o", o]).refuses_usage("40G");
    aimo(["synth", "--layers", "2", "-o", o]).refuses_usage("--like");
    aimo(["info", o, "--like", "qwen3-8b"]).refuses_usage("not both");
    aimo(["synth", "--like", "qwen3-8b", "--layers", "0", "-o", o]).fails_naming(&["layers is 0", "next:"]);
    aimo(["synth", "--like", "qwen3-8b", "--experts", "4", "-o", o]).fails_naming(&["no experts", "next:"]);
    let sizes = ["--layers", "1024", "--experts", "1024"];
    aimo(["synth", "--like", "gpt-oss-120b", "-o", o].iter().chain(&sizes).copied()).fails_naming(&[
        "bytes are needed",
        "free",
        "next:",
    ]);
    aimo(["synth", "--like", "qwen3-0.6b", "-o", "/nowhere/m.gguf"]).fails_naming(&["/nowhere", "next:"]);
    let small = ["synth", "--like", "qwen3-0.6b", "-o", o, "--vocab-from"];
    aimo(small.into_iter().chain(["/nowhere/v.gguf"])).fails_naming(&["/nowhere/v.gguf", "next:"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_real_vocabulary_is_taken_over() {
    let Some(vocab) = shared("data/vocab/ggml-vocab-qwen2.gguf") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let args = ["synth", "--like", "qwen3-0.6b", "--layers", "1", "--shrink", "16", "-o", path.to_str().unwrap()];
    aimo(args.into_iter().chain(["--vocab-from", vocab.to_str().unwrap()])).ok();
    let m = path.to_str().unwrap();
    assert_eq!(aimo(["tokenize", "-m", m, "-p", "Hello world", "--ids"]).ok(), "9707 1879\n");
    assert_eq!(aimo(["info", m, "--json"]).json()["n_vocab"], 151_936);
}
