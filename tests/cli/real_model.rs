//! The whole line on a small real model: text, chat, and a problem solved with code that really runs.

use crate::tools::{aimo, real_model};

const MODEL: &str = "qwen2.5-coder-0.5b-q4_k_m.gguf";

#[test]
fn greedy_text_makes_sense() {
    let Some(model) = real_model(MODEL) else { return };
    let m = model.to_str().unwrap();
    let args = ["-q", "generate", "-m", m, "-p", "The capital of France is", "-n", "6", "--temp", "0"];
    let text = aimo(args.into_iter().chain(["--backend", "cpu"])).ok();
    assert!(text.contains("Paris"), "{text}");
    let question = "What is the capital of France? Answer with one word.";
    let chat = aimo(["-q", "generate", "-m", m, "--chat", "-p", question, "-n", "12", "--temp", "0", "--json"]).json();
    assert!(chat["text"].as_str().unwrap().contains("Paris"), "{chat}");
    assert_eq!(chat["finish_reason"], "stop", "the model ends its turn");
}

#[test]
fn a_problem_is_solved() {
    let Some(model) = real_model(MODEL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (csv, out) = (dir.path().join("p.csv"), dir.path().join("s.csv"));
    std::fs::write(&csv, "id,problem,answer\nsum,What is 37 * 41?,1517\n").unwrap();
    let done = aimo([
        "run",
        "-m",
        model.to_str().unwrap(),
        csv.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--attempts",
        "3",
        "--max-tokens",
        "300",
        "--run-dir",
        dir.path().join("run").to_str().unwrap(),
        "--transcripts",
        dir.path().join("t").to_str().unwrap(),
    ]);
    assert_eq!(done.status, 0, "{}", done.stderr);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "id,answer\nsum,1517\n", "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("1517"), "{}", done.stdout);
    assert!(std::fs::read_dir(dir.path().join("t")).unwrap().count() > 0);
}

/// Qwen2.5 was trained on calls in JSON too; the smallest one forgets the tags.
#[test]
fn a_problem_is_solved_with_calls_in_json() {
    let Some(model) = real_model("qwen2.5-coder-1.5b-q4_k_m.gguf") else { return };
    let args = ["-q", "run", "-m", model.to_str().unwrap(), "--backend", "cpu", "--protocol", "hermes", "--json"];
    let problem = ["--problem", "How many primes are below 1000?", "--attempts", "2", "--max-tokens", "300"];
    let report = aimo(args.into_iter().chain(problem)).json();
    assert_eq!(report["options"]["protocol"], "hermes");
    assert_eq!(report["problems"][0]["answer"], 168, "{report}");
    let calls = report["problems"][0]["attempts"].as_array().unwrap().iter().map(|a| a["tool_calls"].as_u64().unwrap());
    assert!(calls.sum::<u64>() > 0, "{report}");
}
