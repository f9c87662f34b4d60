//! Which tool protocol a model file gets, and what is refused: on models of random weights.

use crate::tiny::Tiny;
use crate::tools::{Done, aimo};

const HARMONY: [&str; 7] =
    ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"];

fn run(model: &Tiny, args: &[&str]) -> Done {
    let dir = tempfile::tempdir().unwrap();
    let path = model.write(dir.path());
    let (command, rest) = args.split_first().unwrap();
    aimo([&[*command, "-m", path.to_str().unwrap(), "--backend", "cpu"], rest].concat())
}

const ONE_PROBLEM: [&str; 9] =
    ["run", "--problem", "What is 1 + 1?", "--attempts", "1", "--max-tokens", "24", "-c", "2048"];

fn protocol_of(model: &Tiny, args: &[&str]) -> serde_json::Value {
    let report = run(model, &[&ONE_PROBLEM, args, &["--json"]].concat()).json();
    assert_eq!(report["problems"][0]["attempts"].as_array().map(Vec::len), Some(1), "{report}");
    report["options"].clone()
}

#[test]
fn the_model_file_decides_unless_a_protocol_is_forced() {
    let plain = Tiny::default();
    assert_eq!(protocol_of(&plain, &[])["protocol"], "fenced");
    for forced in ["output-fence", "hermes", "nemotron", "first-block"] {
        assert_eq!(protocol_of(&plain, &["--protocol", forced])["protocol"], forced);
    }
    let harmony = Tiny { more_controls: &HARMONY, ..Tiny::default() };
    let options = protocol_of(&harmony, &["--reasoning", "high"]);
    assert_eq!((&options["protocol"], &options["reasoning"]), (&"harmony".into(), &"high".into()));
    assert_eq!(protocol_of(&harmony, &["--protocol", "fenced"])["protocol"], "fenced");
}

#[test]
fn a_model_that_cannot_be_talked_to_like_that_says_so_before_it_is_loaded() {
    let plain = Tiny::default();
    let done = run(&plain, &[&ONE_PROBLEM[..], &["--protocol", "harmony"]].concat());
    assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
    done.fails_naming(&["tiny.gguf", "<|start|>", "--protocol"]);
    for args in [&ONE_PROBLEM[..], &["generate", "--chat", "-p", "x", "-n", "1"]] {
        let done = run(&plain, &[args, &["--reasoning", "low"]].concat());
        assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
        done.fails_naming(&["tiny.gguf", "how long to think", "leave --reasoning out"]);
    }
}

#[test]
fn chat_tells_thinking_from_the_answer() {
    let harmony = Tiny { more_controls: &HARMONY, with_template: false, ..Tiny::default() };
    let args = ["generate", "--chat", "-p", "Hi", "--system", "Be brief.", "--reasoning", "low", "-n", "12"];
    let answer = run(&harmony, &[&args[..], &["--json"]].concat()).json();
    assert!(answer["thinking"].is_string() && answer["text"].is_string(), "{answer}");
    assert_eq!(answer["n_gen"].as_u64(), answer["tokens"].as_array().map(|t| t.len() as u64));
    run(&harmony, &args).ok();
    let plain = run(&Tiny::default(), &["generate", "-p", "Hi", "-n", "4", "--json"]).json();
    assert!(plain["thinking"].is_null(), "{plain}");
}
