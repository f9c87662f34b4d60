//! Model files, good and bad, through the commands that read them.

use std::path::Path;
use std::process::Stdio;

use crate::tiny::Tiny;
use crate::tools::{Done, aimo, command, shared};

/// Every command that reads a model, on this file.
fn each_command(model: &Path) -> Vec<(&'static str, Done)> {
    let m = model.to_str().expect("test paths are UTF-8");
    vec![
        ("info", aimo(["info", m])),
        ("tokenize", aimo(["tokenize", "-m", m, "-p", "x"])),
        ("generate", aimo(["generate", "-m", m, "-p", "x", "-n", "1", "--backend", "cpu"])),
        ("logits", aimo(["logits", "-m", m, "--tokens", "1", "--backend", "cpu"])),
        ("bench", aimo(["bench", "-m", m, "-p", "1", "-n", "0", "--backend", "cpu"])),
        ("run", aimo(["run", "-m", m, "--problem", "What is 1 + 1?", "--backend", "cpu"])),
    ]
}

fn all_fail_naming(model: &Path, parts: &[&str]) {
    for (name, done) in each_command(model) {
        eprintln!("{name}: {}", done.stderr.trim());
        done.fails_naming(&[parts, &["next:"]].concat());
    }
}

#[test]
fn files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    all_fail_naming(&dir.path().join("nowhere.gguf"), &["nowhere.gguf", "cargo xtask models"]);
    all_fail_naming(dir.path(), &["is a directory"]);
    let file = dir.path().join("bad.gguf");
    for (bytes, part) in [
        (Vec::new(), "0 bytes"),
        (b"GGUF".to_vec(), "bad.gguf"),
        (b"PK\x03\x04 a zip archive, or something else that is long enough".to_vec(), "not a GGUF file"),
        ([b"GGUF".as_slice(), &1u32.to_le_bytes(), &[0; 64]].concat(), "version 1"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        all_fail_naming(&file, &["bad.gguf", part]);
    }
}

#[test]
fn truncated_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cut.gguf");
    let bytes = Tiny::default().bytes();
    for length in [bytes.len() - 1, bytes.len() / 2, 3000, 100, 30] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        all_fail_naming(&file, &["cut.gguf"]);
    }
}

#[test]
fn models_that_cannot_be_run_are_named_by_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    for (tiny, part) in [
        (Tiny { architecture: "mamba", ..Tiny::default() }, "mamba"),
        (Tiny { pre_tokenizer: "tekken", ..Tiny::default() }, "tekken"),
    ] {
        let model = tiny.write(dir.path());
        let shown = aimo(["info", model.to_str().unwrap()]).ok();
        assert!(shown.contains("can't be run") && shown.contains(part), "{shown}");
        let m = model.to_str().unwrap();
        aimo(["generate", "-m", m, "-p", "x", "--backend", "cpu"]).fails_naming(&["tiny.gguf", part, "next:"]);
        aimo(["run", "-m", m, "--problem", "x", "--backend", "cpu"]).fails_naming(&["tiny.gguf", part, "next:"]);
    }
}

#[test]
fn info_shows_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let info = aimo(["info", "--json", model.to_str().unwrap()]).json();
    assert_eq!(info["architecture"], "qwen2");
    assert_eq!(info["n_layer"], 2);
    assert_eq!(info["n_vocab"], 260);
    assert_eq!(info["kv_bytes_per_token"], 2 * 2 * 32 * 2);
    assert_eq!(info["chat_template"], true);
    assert_eq!(info["problems"], serde_json::json!([]));
    let text = aimo(["info", model.to_str().unwrap()]).ok();
    assert!(text.contains("tiny random model") && text.contains("2048 tokens as trained"), "{text}");
}

#[test]
fn tokens_of_a_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    assert_eq!(aimo(["tokenize", "-m", m, "-p", "ab é", "--ids"]).ok(), "256 32 195 169\n");
    let entries = aimo(["tokenize", "-m", m, "-p", "ab é", "--json"]).json();
    assert_eq!(entries[0], serde_json::json!({ "id": 256, "text": "ab" }));
    assert_eq!(entries[2], serde_json::json!({ "id": 195, "bytes": [195] }));
    let spelled = aimo(["tokenize", "-m", m, "-p", "<|im_end|>", "--ids"]).ok();
    assert_eq!(spelled.split_whitespace().count(), 10, "text that spells a control token stays text");
    assert_eq!(aimo(["tokenize", "-m", m, "-p", "<|im_end|>", "--ids", "--parse-special"]).ok(), "259\n");
    let file = dir.path().join("text");
    std::fs::write(&file, "ab").unwrap();
    assert_eq!(aimo(["tokenize", "-m", m, "-f", file.to_str().unwrap(), "--ids"]).ok(), "256\n");
    aimo(["tokenize", "-m", m, "-f", "/nowhere/text", "--ids"]).fails_naming(&["/nowhere/text", "next:"]);
}

#[test]
fn the_vocabulary_of_a_real_model() {
    let Some(vocab) = shared("data/vocab/ggml-vocab-qwen2.gguf") else { return };
    let ids = aimo(["tokenize", "-m", vocab.to_str().unwrap(), "-p", "Hello world", "--ids"]).ok();
    assert_eq!(ids, "9707 1879\n");
}

#[test]
fn logits_of_a_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let npy = dir.path().join("logits.npy");
    let args = ["logits", "-m", m, "--tokens", "72,105", "--backend", "cpu", "--top", "5", "--json", "--save"];
    let value = aimo(args.into_iter().chain([npy.to_str().unwrap()])).json();
    assert_eq!(value["n_tokens"], 2);
    let top = value["top"].as_array().unwrap();
    assert_eq!(top.len(), 5);
    let logit = |i: usize| top[i][1].as_f64().unwrap();
    assert!((1..5).all(|i| logit(i - 1) >= logit(i)), "{top:?}");
    let saved = std::fs::read(&npy).unwrap();
    assert_eq!(&saved[..6], b"\x93NUMPY");
    let data: Vec<f32> =
        saved[saved.len() - 4 * 260..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(f64::from(data[top[0][0].as_u64().unwrap() as usize]) as f32, logit(0) as f32);
    let rms = (data.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 260.0).sqrt();
    assert!((rms - value["rms"].as_f64().unwrap()).abs() < 1e-6);
    // The same prompt as text, and computed in two passes.
    let text = aimo(["logits", "-m", m, "-p", "Hi", "--backend", "cpu", "--json", "--top", "5"]).json();
    assert_eq!(text["top"][0][0], value["top"][0][0]);
    let split =
        aimo(["logits", "-m", m, "--tokens", "72,105", "-b", "1", "--backend", "cpu", "--json", "--top", "5"]).json();
    assert!((split["top"][0][1].as_f64().unwrap() - logit(0)).abs() < 1e-3);
}

#[test]
fn requests_that_cannot_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    aimo(["logits", "-m", m, "--tokens", "260", "--backend", "cpu"]).fails_naming(&["260"]);
    let long = "x".repeat(40);
    aimo(["logits", "-m", m, "-p", &long, "-c", "16", "--backend", "cpu"]).fails_naming(&["40", "16", "next:"]);
    aimo(["generate", "-m", m, "-p", &long, "-c", "16", "--backend", "cpu"]).fails_naming(&["40", "16", "next:"]);
    let unwritable = aimo(["logits", "-m", m, "--tokens", "1", "--backend", "cpu", "--save", "/nowhere/x.npy"]);
    assert!(!unwritable.stderr.contains("loaded"), "it is known before the model is loaded: {}", unwritable.stderr);
    unwritable.fails_naming(&["/nowhere/x.npy", "next:"]);
    let without = Tiny { with_template: false, ..Tiny::default() }.write(dir.path());
    aimo(["generate", "-m", without.to_str().unwrap(), "-p", "x", "--chat", "--backend", "cpu"])
        .fails_naming(&["chat template", "next:"]);
}

#[test]
fn generation_repeats_with_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let tokens = |seed: &str| {
        let args = ["generate", "-m", m, "-p", "ab", "-n", "12", "-s", seed, "--temp", "1.5", "--backend", "cpu"];
        let value = aimo(args.into_iter().chain(["--json", "--logprobs", "3"])).json();
        let first = &value["logprobs"][0];
        assert_eq!(first["top"].as_array().unwrap().len(), 3);
        assert!(first["logprob"].as_f64().unwrap() <= 0.0);
        value["tokens"].clone()
    };
    assert_eq!(tokens("1"), tokens("1"));
    assert_ne!(tokens("1"), tokens("2"));
    let greedy = ["generate", "-m", m, "-p", "x", "-n", "3", "--temp", "0", "--backend", "cpu", "--chat", "--json"];
    let value = aimo(greedy).json();
    let n = value["tokens"].as_array().unwrap().len();
    assert!((1..=3).contains(&n), "{value}");
    assert_eq!(value["finish_reason"] == "stop", n < 3 || value["tokens"][2] == 259, "{value}");
}

#[test]
fn bench_reports_llama_bench_fields() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let args = ["bench", "-m", m, "-p", "8", "-n", "4", "-d", "0,6", "-r", "2", "-t", "1", "--backend", "cpu"];
    let records = aimo(args.into_iter().chain(["-o", "json"])).json();
    let records = records.as_array().unwrap();
    let shape = |r: &serde_json::Value| {
        ["n_prompt", "n_gen", "n_depth"].map(|f| r[f].as_u64().unwrap_or_else(|| panic!("{f} in {r}")))
    };
    assert_eq!(records.iter().map(shape).collect::<Vec<_>>(), [[8, 0, 0], [0, 4, 0], [8, 0, 6], [0, 4, 6]]);
    for r in records {
        assert_eq!(r["samples_ns"].as_array().unwrap().len(), 2);
        assert!(r["avg_ts"].as_f64().unwrap() > 0.0);
        assert_eq!(r["n_threads"], 1);
        assert_eq!(r["bandwidth_share"].is_null(), r["n_gen"] == 0);
    }
    let table = aimo(args).ok();
    assert!(table.contains("tg4 @ d6") && table.contains("| t/s"), "{table}");
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let text = dir.path().join("long");
    std::fs::write(&text, "many words ".repeat(50_000)).unwrap();
    let mut child = command()
        .args(["tokenize", "-m", model.to_str().unwrap(), "-f", text.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let done = Done::from(child.wait_with_output().unwrap());
    done.has_no_trace();
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
}
