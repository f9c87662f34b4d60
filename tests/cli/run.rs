//! `aimo-engine run` on the random model: inputs are checked before the model is loaded, the submission always holds
//! every id, and an interrupted run leaves it whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::tiny::Tiny;
use crate::tools::{Done, command};

struct Case {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let model = Tiny::default().write(dir.path());
        Case { dir, model }
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn run(&self, args: &[&str]) -> Done {
        let always = ["run", "-m", self.model.to_str().unwrap(), "--backend", "cpu"];
        // Run folders go where the test's files are.
        let command = &mut command();
        Done::from(command.current_dir(self.dir.path()).args(always.iter().chain(args)).output().unwrap())
    }
}

#[test]
fn problem_files_are_checked_before_the_model_is_loaded() {
    let case = Case::new();
    for (text, parts) in [
        ("", &["empty"][..]),
        ("id,question\n1,x\n", &["problem", "question"]),
        ("id,problem\n1,x\n1,y\n", &["1", "line 3"]),
        ("id,problem\n1,\n", &["1", "line 2"]),
        ("id,problem,answer\n1,x,seven\n", &["seven"]),
        ("{\"id\": 1}\n", &["problem"]),
    ] {
        let csv = case.file("p.csv", text);
        let done = case.run(&[&csv, "-o", &case.path("s.csv")]);
        assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
        done.fails_naming(&[&["p.csv"], parts].concat());
        assert!(!Path::new(&case.path("s.csv")).exists(), "nothing is written for {text:?}");
    }
    let done = case.run(&[&case.path("none.csv"), "-o", &case.path("s.csv")]);
    done.fails_naming(&["none.csv"]);
}

#[test]
fn an_unwritable_output_is_known_before_the_model_is_loaded() {
    let case = Case::new();
    let csv = case.file("p.csv", "id,problem\n1,x\n");
    for out in ["/nowhere/s.csv", case.dir.path().to_str().unwrap()] {
        let done = case.run(&[&csv, "-o", out]);
        assert!(!done.stderr.contains("loaded"), "{}", done.stderr);
        done.fails_naming(&[out]);
    }
}

#[test]
fn every_id_is_in_the_submission() {
    let case = Case::new();
    let csv = case.file("p.csv", "id,problem,answer\nb,What is 1 + 1?,2\na,What is 2 + 2?,4\n");
    let out = case.path("s.csv");
    let transcripts = case.path("t");
    let limits = ["--attempts", "2", "--max-tokens", "8", "-c", "2048"];
    let args = [&[csv.as_str(), "-o", &out, "--json", "--transcripts", &transcripts][..], &limits].concat();
    let report = case.run(&args).json();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "id,answer\nb,0\na,0\n");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(2), "{report}");
    assert!(std::fs::read_dir(&transcripts).unwrap().count() > 0);
    // The table, and JSON lines as input.
    let jsonl = case.file("p.jsonl", "{\"id\": 7, \"problem\": \"x\"}\n");
    let table = case.run(&[&[jsonl.as_str(), "-o", &out][..], &limits].concat()).ok();
    assert!(table.contains('7'), "{table}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "id,answer\n7,0\n");
    // One problem needs no output file.
    assert!(case.run(&[&["--problem", "What is 1 + 1?"][..], &limits].concat()).ok().contains('1'));
}

#[test]
fn the_contests_shape_is_csv_and_parquet() {
    let case = Case::new();
    let csv = case.file("test.csv", "id,problem\nb,What is 1 + 1?\na,What is 2 + 2?\n");
    let limits = ["--attempts", "1", "-n", "4", "--default-answer", "9"];
    case.run(&[&[csv.as_str(), "--kaggle", "--limit", "2"][..], &limits].concat()).ok();
    assert_eq!(std::fs::read_to_string(case.path("submission.csv")).unwrap(), "id,answer\nb,9\na,9\n");
    let parquet = std::fs::read(case.path("submission.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    // The name decides the form; one of the two, or the twin of the one that is named.
    case.run(&[&[csv.as_str(), "-o", &case.path("x.parquet")][..], &limits].concat()).ok();
    assert_eq!(std::fs::read(case.path("x.parquet")).unwrap(), parquet);
    assert!(!Path::new(&case.path("x.csv")).exists());
    case.run(&[&[csv.as_str(), "--kaggle", "-o", &case.path("y.parquet")][..], &limits].concat()).ok();
    assert!(Path::new(&case.path("y.csv")).exists());
}

#[test]
fn an_interrupted_run_leaves_a_whole_submission() {
    let case = Case::new();
    let rows: String = (0..200).map(|i| format!("{i},What is {i} + 1?\n")).collect();
    let csv = case.file("p.csv", &format!("id,problem\n{rows}"));
    let out = case.path("s.csv");
    let mut child = command()
        .args(["run", "-m", case.model.to_str().unwrap(), "--backend", "cpu", &csv, "-o", &out])
        .args(["--attempts", "2", "--max-tokens", "800"])
        .current_dir(case.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !Path::new(&out).exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no submission was written");
        assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let done = Done::from(child.wait_with_output().unwrap());
    done.has_no_trace();
    assert_eq!(done.status, 130, "{}", done.stderr);
    let submission = std::fs::read_to_string(&out).unwrap();
    assert_eq!(submission.lines().count(), 201, "{submission}");
    assert!(submission.lines().skip(1).all(|l| l.split(',').count() == 2 && !l.ends_with(',')), "{submission}");
}
