//! How sequences are served: types and bounds of the cache, drafts, shared prompts.

use serde_json::Value;

use crate::synth::synth;
use crate::tiny::Tiny;
use crate::tools::aimo;

#[test]
fn the_cache_takes_the_types_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let bytes = |args: &[&str]| {
        let all = ["info", m, "-c", "100", "--np", "3", "--json"];
        let info = aimo(all.iter().chain(args).copied()).json();
        (info["memory"]["type_k"].clone(), info["memory"]["kv_bytes"].as_u64().unwrap())
    };
    let (f16, f16_bytes) = bytes(&[]);
    let (q8_0, q8_0_bytes) = bytes(&["-ctk", "q8_0", "-ctv", "q8_0"]);
    assert_eq!((f16, q8_0), ("f16".into(), "q8_0".into()));
    assert_eq!(q8_0_bytes * 64, f16_bytes * 34);
    assert_eq!(bytes(&["--cache-type-v", "q8_0"]).1 * 2, f16_bytes + q8_0_bytes);
    let text = aimo(["-q", "generate", "-m", m, "-p", "ab", "-n", "8", "--backend", "cpu", "--json", "-ctk", "q8_0"]);
    assert!(!text.json()["tokens"].as_array().unwrap().is_empty());
    aimo(["generate", "-m", m, "-p", "ab", "-ctk", "q4_0"]).refuses_usage("q4_0");
}

#[test]
fn a_cache_too_small_for_one_sequence_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let args = ["generate", "-m", m, "-p", "ab", "--backend", "cpu", "--kv-memory"];
    aimo(args.into_iter().chain(["1K"])).fails_naming(&["1024 bytes", "one sequence", "--kv-memory"]);
    aimo(args.into_iter().chain(["lots"])).refuses_usage("512M");
    aimo(args.into_iter().chain(["64M", "-n", "4"])).ok();
}

#[test]
fn drafts_change_no_token() {
    let dir = tempfile::tempdir().unwrap();
    let model = synth(dir.path(), "m.gguf", &["--like", "qwen3-0.6b", "--seed", "5"]);
    let m = model.to_str().unwrap();
    let write = |temp: &str, drafts: &[&str]| -> Value {
        let all = ["-q", "generate", "-m", m, "-p", "abcabcabcabc", "-n", "120", "--backend", "cpu", "--json"];
        aimo(all.iter().chain(&["--temp", temp, "-s", "7"]).chain(drafts).copied()).json()
    };
    // Repetitions, some of them, hardly any.
    for temp in ["0", "0.3", "0.7"] {
        let (plain, drafted) = (write(temp, &["--no-drafts"]), write(temp, &["--draft-max", "6", "--draft-min", "6"]));
        assert_eq!(plain["tokens"], drafted["tokens"], "temperature {temp}");
        assert_eq!(plain["logprobs"], drafted["logprobs"], "temperature {temp}");
        assert_eq!(plain["n_drafted"], 0);
        assert!(drafted["n_drafted"].as_u64().unwrap() > 0);
    }
    aimo(["generate", "-m", m, "-p", "ab", "--draft-max", "17"]).refuses_usage("0 to 16");
}

#[test]
fn a_shared_prompt_is_measured_up_to_the_first_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let m = model.to_str().unwrap();
    let args = ["-q", "bench", "-m", m, "--backend", "cpu", "-p", "40", "-n", "0", "-npl", "1,3", "-pps", "-r", "2"];
    let records = aimo(args.into_iter().chain(["-o", "json", "-ctk", "q8_0"])).json();
    let shown: Vec<(u64, bool)> = records
        .as_array()
        .unwrap()
        .iter()
        .map(|r| (r["n_parallel"].as_u64().unwrap(), r["is_pp_shared"].as_bool().unwrap()))
        .collect();
    assert_eq!(shown, [(1, true), (3, true)]);
    assert_eq!((&records[0]["type_k"], &records[0]["type_v"]), (&"q8_0".into(), &"f16".into()));
    assert_eq!(records[1]["samples_ns"].as_array().unwrap().len(), 2);
}
