//! `aimo-engine run --resume` and `replay` on the random model: kill -9 at random moments, another model, seed, setting
//! or problem set, two processes, `--stdio`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::tiny::Tiny;
use crate::tools::{Done, aimo, command};

struct Case {
    dir: tempfile::TempDir,
    model: String,
    csv: String,
}

const LIMITS: [&str; 6] = ["--attempts", "2", "--max-tokens", "24", "--stop", "all"];

impl Case {
    fn new(n_problems: usize) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let model = Tiny::default().write(dir.path()).to_str().unwrap().to_owned();
        let rows: String = (0..n_problems).map(|i| format!("p{i},What is {i} + 1?,{}\n", i + 1)).collect();
        let csv = dir.path().join("p.csv");
        std::fs::write(&csv, format!("id,problem,answer\n{rows}")).unwrap();
        Case { model, csv: csv.to_str().unwrap().to_owned(), dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn begin(&self, run: &str, more: &[&str]) -> Vec<String> {
        let run = self.path(run);
        let fixed = ["run", "-m", &self.model, "--backend", "cpu", "--run-dir", &run];
        fixed.iter().chain(&LIMITS).chain(more).map(|s| s.to_string()).collect()
    }

    fn resume(&self, run: &str, more: &[&str]) -> Done {
        let run = self.path(run);
        aimo(["run", "--resume", &run].iter().chain(more))
    }
}

/// What a run came to, without its times.
fn outcome(report: &serde_json::Value) -> serde_json::Value {
    let problems = report["problems"].as_array().expect("problems");
    let of_attempt = |a: &serde_json::Value| {
        serde_json::json!([
            a["number"],
            a["seed"],
            a["end"],
            a["generated_tokens"],
            a["mean_logprob"].as_f64().map(|x| format!("{x:.9}"))
        ])
    };
    problems
        .iter()
        .map(|p| {
            let attempts: Vec<_> = p["attempts"].as_array().expect("attempts").iter().map(of_attempt).collect();
            serde_json::json!([p["id"], p["answer"], attempts])
        })
        .collect()
}

fn spawn(args: &[String]) -> Child {
    command().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_run_that_is_killed_again_and_again_comes_to_the_same_end() {
    let case = Case::new(6);
    let out = case.path("s.csv");
    let whole = aimo(case.begin("whole", &[&case.csv, "--json"])).json();
    let mut child = spawn(&case.begin("killed", &[&case.csv, "-o", &out]));
    let mut n_killed = 0;
    for round in 0..40u64 {
        // Later every time, so that the run gets further; a prime step, so that no moment is favoured.
        std::thread::sleep(Duration::from_millis(300 + 137 * round));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        n_killed += 1;
        if Path::new(&out).exists() {
            let rows = std::fs::read_to_string(&out).unwrap().lines().count();
            assert_eq!(rows, 7, "the submission is whole whenever the process dies");
        }
        let run = case.path("killed");
        let journal = Path::new(&run).join("journal.jsonl");
        let has_begun = std::fs::read_to_string(journal).is_ok_and(|text| text.contains('\n'));
        let args = match has_begun {
            true => ["run", "--resume", &run].map(str::to_owned).to_vec(),
            false => case.begin("killed", &[&case.csv, "-o", &out]),
        };
        child = spawn(&args);
    }
    child.wait().unwrap();
    assert!(n_killed > 0, "the run was too short to be killed");
    let resumed = case.resume("killed", &["--json"]).json();
    assert_eq!(outcome(&resumed), outcome(&whole), "after {n_killed} kills");
    assert_eq!(std::fs::read_to_string(&out).unwrap().lines().count(), 7);
    let replayed = aimo(["replay", &case.path("killed"), "--json"]).json();
    assert_eq!(outcome(&replayed), outcome(&whole));
}

#[test]
fn a_continuation_that_is_another_run_is_refused_by_name() {
    let case = Case::new(1);
    aimo(case.begin("run", &[&case.csv, "--temp", "0.5"])).ok();
    let refused = |more: &[&str], parts: &[&str]| {
        let done = case.resume("run", more);
        assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
        done.fails_naming(parts);
    };
    refused(&["--seed", "4"], &["--seed is 4; the run was begun with 0"]);
    refused(&["--temp", "0.7"], &["--temp is 0.7", "0.5"]);
    refused(&["--attempts", "3"], &["--attempts is 3; the run was begun with 2"]);
    refused(&["--stop", "first-k:2"], &["--stop is first-k:2; the run was begun with all"]);
    refused(&["--backend", "vulkan"], &["--backend is vulkan"]);
    // The context that was left to the machine.
    refused(&["-c", "7"], &["--ctx-size is 7; the run was begun with 2048"]);
    let other = case.path("other.csv");
    std::fs::write(&other, "id,problem,answer\np0,What is 0 + 2?,1\n").unwrap();
    refused(&[&other], &["the text of problem 1", "0 + 2"]);
    let bytes = Tiny { architecture: "llama", ..Tiny::default() }.bytes();
    let model = case.path("other.gguf");
    std::fs::write(&model, bytes).unwrap();
    refused(&["-m", &model], &["the model is", "other.gguf", "tiny.gguf"]);
    // The same, given again, is no other run; nor is the same model in another place.
    let moved = case.path("moved.gguf");
    std::fs::copy(&case.model, &moved).unwrap();
    case.resume("run", &["-m", &moved, &case.csv, "--temp", "0.5", "--threads", "1", "--kv-memory", "64M"]).ok();
    aimo(case.begin("run", &[&case.csv])).fails_naming(&["holds the journal of a run already", "--resume"]);
    aimo(["run", "--resume", &case.path("none")]).fails_naming(&["none"]);
    aimo(["replay", &case.path("none")]).fails_naming(&["none"]);
    aimo(["run", "--demo"]).refuses_usage("-m");
}

#[test]
fn a_run_can_be_shown_again() {
    let case = Case::new(2);
    aimo(case.begin("run", &[&case.csv])).ok();
    let text = aimo(["replay", &case.path("run")]).ok();
    for part in ["== p0 ==", "What is 1 + 1?", "#2] ended: token budget", "answer of p1"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    // As a page, and in short.
    let page = aimo(["report", &case.path("run")]).ok();
    assert!(page.starts_with(&case.path("run/report.html")), "{page}");
    let page = std::fs::read_to_string(case.path("run/report.html")).unwrap();
    assert!(page.contains("What is 1 + 1?") && page.ends_with("</html>\n"), "{page}");
    let short = aimo(["report", &case.path("run"), "--text"]).ok();
    for part in ["#1  │█", "token budget, 24 tokens, 0 blocks", "0 of 2 right"] {
        assert!(short.contains(part), "no {part:?} in {short}");
    }
    aimo(["report", &case.path("run"), "-o", &case.path("run")]).fails_naming(&["it is a folder"]);
    let journal = case.path("run/journal.jsonl");
    aimo(["report", &case.path("run"), "-o", &journal]).fails_naming(&["it is the run's journal"]);
    aimo(["report", &case.path("none")]).fails_naming(&["none"]);
    let one = aimo(["replay", &case.path("run"), "--problem", "p1", "--attempt", "1"]).ok();
    assert!(!one.contains("== p0 ==") && !one.contains("#2]"), "{one}");
    aimo(["replay", &case.path("run"), "--problem", "p9"]).fails_naming(&["p9", "p0, p1"]);
    // A flipped bit is named; the run can be gone on with from before it.
    let journal = case.dir.path().join("run/journal.jsonl");
    let mut bytes = std::fs::read(&journal).unwrap();
    let second = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    bytes[second + 50] ^= 1;
    std::fs::write(&journal, bytes).unwrap();
    aimo(["replay", &case.path("run")]).fails_naming(&["record 1 ", "damaged"]);
    case.resume("run", &[]).fails_naming(&["record 1 ", "--salvage"]);
    case.resume("run", &["--salvage"]).ok();
}

#[test]
fn problems_come_one_a_line_and_bad_lines_end_nothing() {
    let case = Case::new(1);
    let args = case.begin("run", &["--stdio", "--default-answer", "7"]);
    let mut child =
        command().args(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut ask = |line: &[u8]| {
        input.write_all(line).unwrap();
        input.write_all(b"\n").unwrap();
        let mut reply = String::new();
        output.read_line(&mut reply).unwrap();
        serde_json::from_str::<serde_json::Value>(&reply).unwrap_or_else(|e| panic!("{e}: {reply}"))
    };
    let answer = |id: &str| serde_json::json!({ "id": id, "answer": 7 });
    assert_eq!(ask(br#"{"id": "a", "problem": "What is 1 + 1?"}"#), answer("a"), "before the next is given");
    for (line, part) in [
        (&b"nonsense"[..], "not a JSON object"),
        (b"{\"id\": \"x\"}", "problem"),
        (b"{\"id\": 5, \"problem\": \"\"}", "no text"),
        (b"\xff\xfe", "UTF-8"),
        (br#"{"id": "a", "problem": "Another?"}"#, "another problem"),
    ] {
        let reply = ask(line);
        assert!(reply["error"].as_str().unwrap().contains(part), "{reply}");
    }
    assert_eq!(ask(br#"{"id": "a", "problem": "What is 1 + 1?"}"#), answer("a"), "again, not computed again");
    assert_eq!(ask(br#"{"id": 8, "problem": "What is 2 + 2?"}"#), answer("8"));
    drop(input);
    assert!(child.wait().unwrap().success());
    let report = aimo(["replay", &case.path("run"), "--json"]).json();
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(2), "{report}");
}
