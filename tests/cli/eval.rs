//! `aimo-engine eval` on the random model: published forms of sets, runs that count up, going on after a kill, showing
//! and comparing what is there.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::tiny::Tiny;
use crate::tools::{Done, aimo, command};

struct Case {
    dir: tempfile::TempDir,
    model: String,
    set: String,
}

impl Case {
    /// A set in GSM8K's form.
    fn new(n_problems: usize) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let model = Tiny::default().write(dir.path()).to_str().unwrap().to_owned();
        let row = |i: usize| format!("{{\"question\": \"What is {i} + 1?\", \"answer\": \"Add.\\n#### {}\"}}\n", i + 1);
        let set = dir.path().join("set.jsonl");
        std::fs::write(&set, (0..n_problems).map(row).collect::<String>()).unwrap();
        Case { model, set: set.to_str().unwrap().to_owned(), dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn args(&self, dir: &str, more: &[&str]) -> Vec<String> {
        let dir = self.path(dir);
        let fixed = ["eval", &self.set, "-m", &self.model, "--backend", "cpu", "--dir", &dir];
        let limits = ["--attempts", "2", "--max-tokens", "12"];
        fixed.iter().chain(&limits).chain(more).map(|s| s.to_string()).collect()
    }
}

fn seeds_of(value: &serde_json::Value) -> Vec<u64> {
    value["runs"].as_array().unwrap().iter().map(|r| r["seed"].as_u64().unwrap()).collect()
}

#[test]
fn runs_over_a_set_count_up_their_seeds_and_can_be_shown_again() {
    let case = Case::new(3);
    let value = aimo(case.args("e", &["--repeat", "2", "--seed", "5", "--json"])).json();
    assert_eq!(seeds_of(&value), [5, 6]);
    assert_eq!(value["accuracy"]["mean"], 0.0, "{value}");
    assert_eq!(value["problems"].as_array().unwrap().len(), 3);
    assert_eq!(value["problems"][1]["expected"], 2);
    let ks: Vec<u64> = value["pass_at"].as_array().unwrap().iter().map(|a| a["k"].as_u64().unwrap()).collect();
    assert_eq!(ks, [1, 2]);
    assert_eq!(value["double_run"]["neither"], 3.0);
    assert_eq!(value["runs"][0]["n_attempts"], 6, "nothing is cut off: {value}");
    assert!(value["generated_tokens"]["mean"].as_f64().unwrap() > 0.0);
    let shown = aimo(["eval", "--show", &case.path("e"), "--json"]).json();
    assert_eq!(shown, value);
    let text = aimo(["eval", "--show", &case.path("e")]).ok();
    for part in ["chosen answer right", "pass@2", "maj@1", "run 2", "score of two runs: 0.0 of 3", "0 of 4", "– ✗  – ✗"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // One of its runs, and the whole, against itself.
    let same = aimo(["eval", "--compare", &case.path("e/run-1"), &case.path("e")]).ok();
    assert!(same.contains("0 of 3 problems changed") && same.contains("p = 1.000"), "{same}");
    let json = aimo(["eval", "--compare", &case.path("e"), &case.path("e/run-2"), "--json"]).json();
    assert_eq!((&json["n_common"], &json["p_value"]), (&3.into(), &1.0.into()));
    // Each run is a run like any other.
    assert!(aimo(["replay", &case.path("e/run-2")]).ok().contains("What is 2 + 1?"));
}

#[test]
fn an_evaluation_that_was_killed_goes_on() {
    let case = Case::new(4);
    let more = ["--repeat", "2", "--temp", "0.9", "--limit", "3", "--json"];
    let whole = aimo(case.args("whole", &more)).json();
    let mut child =
        command().args(case.args("cut", &more)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let second = Path::new(&case.path("cut")).join("run-2/journal.jsonl");
    let start = Instant::now();
    while !second.is_file() {
        assert!(start.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no second run");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The set isn't needed any more: the journal holds its problems.
    std::fs::remove_file(&case.set).unwrap();
    let resumed = aimo(["eval", "--resume", &case.path("cut"), "--json"]).json();
    let figures = |v: &serde_json::Value| (v["problems"].clone(), seeds_of(v), v["generated_tokens"].clone());
    assert_eq!(figures(&resumed), figures(&whole));
    assert_eq!(resumed["problems"].as_array().unwrap().len(), 3);
    // Once more does nothing.
    let again = aimo(["eval", "--resume", &case.path("cut")]);
    assert!(!again.stderr.contains("loaded"), "{}", again.stderr);
    again.ok();
}

#[test]
fn what_cannot_be_evaluated_is_refused_before_the_model_is_loaded() {
    let case = Case::new(1);
    let refused = |done: Done, parts: &[&str]| {
        assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
        done.fails_naming(parts);
    };
    let set = case.path("s.jsonl");
    std::fs::write(
        &set,
        "{\"problem\": \"x?\", \"answer\": \"\\\\frac{1}{2}\"}\n{\"problem\": \"y?\", \"answer\": \"4\"}\n",
    )
    .unwrap();
    let eval = |more: &[&str]| aimo(["eval", &set, "-m", &case.model, "--backend", "cpu"].iter().chain(more));
    refused(eval(&[]), &["line 1", "frac", "--integers"]);
    let kept = eval(&["--integers", "--attempts", "1", "-n", "4", "--dir", &case.path("k"), "--no-python"]);
    assert!(kept.stderr.contains("1 of 2 problems (1 have no integer as answer)"), "{}", kept.stderr);
    assert!(kept.ok().contains("no Python"));
    refused(aimo(["eval", "--show", &case.path("none")]), &["none", "neither a run nor an evaluation"]);
    refused(aimo(["eval", "--resume", &case.path("none")]), &["none"]);
    let open = case.path("open.csv");
    std::fs::write(&open, "id,problem\na,What?\n").unwrap();
    refused(aimo(["eval", &open, "-m", &case.model]), &["line 2", "no answer to compare with"]);
    let run = ["run", "-m", &case.model, "--backend", "cpu", "--problem", "x", "-n", "4", "--run-dir", &case.path("r")];
    aimo(run).ok();
    refused(aimo(["eval", "--show", &case.path("r")]), &["no right answer is known"]);
    refused(aimo(["eval", "--resume", &case.path("r")]), &["r/run-1"]);
    aimo(["eval", "-m", &case.model]).refuses_usage("SET");
    aimo(["eval", &set]).refuses_usage("-m FILE");
    aimo(["eval", "--compare", "a"]).refuses_usage("2");
}
