//! Runs with a journal on a scripted model: what it tells afterwards, and going on from every state that a crash can
//! leave it in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sandbox::Status;
use solver::attempt::{AttemptEnd, Step};
use solver::clock::FakeClock;
use solver::journal::writer::Store;
use solver::journal::{FILE_NAME, Header, History, Journal, JournalError, ModelIdentity, Recorder, event};
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{
    CancelToken, Outputs, Problem, ProblemSet, RunEnd, RunEvent, RunReport, Setup, SolveEvent, SolverOptions, StopRule,
    run as run_set,
};

const N_ATTEMPTS: usize = 3;

fn problems() -> ProblemSet {
    let problem =
        |(id, answer): (&str, i64)| Problem {
            id: id.to_string(), text: format!("Größe {id}?"), answer: Some(answer)
        };
    let problems = [("a", 1), ("b", 12), ("c", 3)].into_iter().map(problem).collect();
    ProblemSet { name: "test".to_string(), path: None, problems }
}

fn options(stop: StopRule) -> SolverOptions {
    SolverOptions { attempts: N_ATTEMPTS, stop, ..SolverOptions::default() }
}

/// What an attempt writes, whenever it is begun.
fn script(problem: usize, attempt: usize) -> Script {
    let call = "I count.\n```python\nprint(7)\n```\n";
    match (problem, attempt) {
        (0, _) => Script::new(&[call, "It is \\boxed{1}"]).delayed(attempt),
        (1, 1) => Script::new(&["no", "answer"]),
        (1, n) => Script::new(&[&format!("Long thoughts, {}then \\boxed{{1{n}}}", "and more, ".repeat(n * 20))])
            .confidence(n as f32),
        (_, n) => Script::new(&[call, call, &format!("So \\boxed{{{}}}", 3 + n / 3)]),
    }
}

fn header(options: &SolverOptions) -> Header {
    Header {
        version: event::VERSION,
        program: "test".to_string(),
        unix_s: 0,
        model: ModelIdentity { name: "scripted".to_string(), file_bytes: 0, hash: String::new() },
        backend: "none".to_string(),
        options: options.clone(),
        settings: serde_json::Map::new(),
        set_name: "test".to_string(),
        problems: problems().problems,
    }
}

struct Ran {
    report: RunReport,
    /// Attempts that were begun, as problem and attempt.
    begun: Vec<(usize, usize)>,
}

/// Runs what `history` leaves to do.
fn run(
    recorder: Recorder,
    clock: &FakeClock,
    history: Option<History>,
    outputs: Outputs,
    options: &SolverOptions,
    cancel_after_events: Option<usize>,
) -> Ran {
    let is_final = |p: usize, a: usize| {
        let problem = history.as_ref().and_then(|h| h.problem(p));
        problem.is_some_and(|p| {
            p.done().is_some() || p.attempts.iter().any(|t| t.number == a && t.end().is_some_and(AttemptEnd::is_final))
        })
    };
    let all = (0..3).flat_map(|p| (1..=N_ATTEMPTS).map(move |a| (p, a)));
    let left: Vec<(usize, usize)> = all.filter(|&(p, a)| !is_final(p, a)).collect();
    let scripts = left.iter().map(|&(p, a)| script(p, a));
    let mut model = ScriptedModel::new(scripts).with_split(1, 0).with_clock(clock.clone(), Duration::from_millis(40));
    let cancel = CancelToken::default();
    let setup = Setup {
        outputs,
        recorder: Some(recorder),
        history,
        clock: Arc::new(clock.clone()),
        cancel: cancel.clone(),
        ..Setup::new(options, 3)
    };
    let (mut begun, mut n_events) = (Vec::new(), 0);
    let python = Arc::new(FakePython::new(|_, _| FakePython::ok("7\n")));
    let report = run_set(&mut model, python, &problems(), setup, &mut |event| {
        if let RunEvent::Solving { index, event: SolveEvent::AttemptStarted { attempt } } = event {
            begun.push((index, attempt));
        }
        n_events += 1;
        if cancel_after_events == Some(n_events) {
            cancel.cancel();
        }
    });
    let report = report.unwrap();
    if report.end == RunEnd::Complete {
        assert_eq!(begun, left, "what was finished isn't paid for twice, what wasn't is made");
    }
    Ran { report, begun }
}

fn fresh(folder: &Path, options: &SolverOptions, cancel_after_events: Option<usize>) -> Ran {
    let clock = FakeClock::default();
    let journal = Journal::create(folder).unwrap();
    let recorder = Recorder::begin(journal, Arc::new(clock.clone()), header(options)).unwrap();
    run(recorder, &clock, None, Outputs::default(), options, cancel_after_events)
}

fn resumed(folder: &Path, options: &SolverOptions, outputs: Outputs) -> Ran {
    let (journal, history) = Journal::resume(folder, false).unwrap();
    let clock = FakeClock::default();
    let recorder = Recorder::resume(journal, Arc::new(clock.clone()), "none").unwrap();
    run(recorder, &clock, Some(history), outputs, options, None)
}

/// Answers and votes: what must not depend on how often a run was cut short.
fn outcome(report: &RunReport) -> serde_json::Value {
    let of_problem = |p: &solver::ProblemReport| {
        let attempts: Vec<serde_json::Value> = p
            .attempts
            .iter()
            .map(|a| serde_json::json!([a.number, a.seed, a.end, a.generated_tokens, a.tool_calls, a.confidence]))
            .collect();
        serde_json::json!([p.id, p.answer, p.votes, attempts])
    };
    report.problems.iter().map(of_problem).collect()
}

fn with_journal(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(FILE_NAME), bytes).unwrap();
    (dir, folder)
}

#[test]
fn a_journal_tells_the_whole_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let ran = fresh(&folder, &options(StopRule::All), None);
    assert_eq!(ran.report.journal, None);
    let history = History::read(&folder).unwrap();
    assert_eq!(history.end, Some(RunEnd::Complete));
    assert_eq!(history.report().problems, ran.report.problems, "the report can be had from the journal alone");
    let attempt = &history.problem(2).unwrap().attempts[0];
    let steps: Vec<&Step> = attempt.steps.iter().map(|s| &s.step).collect();
    let Step::Call { code, outcome } = steps[1] else { panic!("{steps:?}") };
    assert_eq!((code.as_str(), &outcome.status), ("print(7)", &Status::Ok));
    assert_eq!(steps[2], &Step::Result("\n```output\n7\n```\n".to_string()));
    assert!(matches!(steps[0], Step::Text(text) if text == "I count.\n```python\nprint(7)\n```"), "{steps:?}");
    assert!(matches!(steps.last(), Some(Step::Text(text)) if text == "So \\boxed{3}"), "{steps:?}");
    let tokens: usize = attempt.tokens.iter().map(|(_, n)| n).sum();
    assert_eq!(tokens, attempt.report.as_ref().unwrap().generated_tokens);
    assert!(history.problems[1].attempts[2].tokens.len() > 3, "long text is written while it comes");
    assert!(history.elapsed_ms > 0 && attempt.steps.is_sorted_by_key(|s| s.to_ms));
}

#[test]
fn a_run_goes_on_from_wherever_its_journal_was_cut() {
    for stop in [StopRule::All, StopRule::Unbeatable] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let options = options(stop);
        let whole = fresh(&folder, &options, None);
        let bytes = fs::read(folder.join(FILE_NAME)).unwrap();
        let header_bytes = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        let mut n_records = 0;
        for cut in header_bytes..bytes.len() {
            // Reading at every byte; going on at every end of a record, and inside each.
            let history = History::read_from(&mut &bytes[..cut], false).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
            assert_eq!(history.good_bytes + history.torn_bytes, cut as u64);
            let is_end = bytes[cut - 1] == b'\n';
            let is_inside = bytes[cut.saturating_sub(30)] == b'\n';
            n_records += usize::from(is_end);
            let every = if stop == StopRule::All { 2 } else { 6 };
            if is_end && n_records % every == 0 || is_inside && n_records % 9 == 0 {
                let (_dir, folder) = with_journal(&bytes[..cut]);
                let ran = resumed(&folder, &options, Outputs::default());
                if stop == StopRule::All {
                    assert_eq!(outcome(&ran.report), outcome(&whole.report), "cut at {cut}");
                }
                let answers = |r: &RunReport| r.problems.iter().map(|p| p.answer).collect::<Vec<_>>();
                assert_eq!(answers(&ran.report), answers(&whole.report), "cut at {cut}");
                // The journal that was gone on with is whole again, and tells the same.
                let again = History::read(&folder).unwrap();
                assert_eq!(answers(&again.report()), answers(&whole.report));
                assert_eq!(again.resumed_ms.len(), 1);
                assert_eq!(again.torn_bytes, 0);
            }
        }
        assert!(n_records > 40, "{n_records}");
    }
}

#[test]
fn a_journal_without_its_beginning_is_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    fresh(&folder, &options(StopRule::All), None);
    let bytes = fs::read(folder.join(FILE_NAME)).unwrap();
    let header_bytes = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    for cut in (0..header_bytes).step_by(17) {
        let (_dir, folder) = with_journal(&bytes[..cut]);
        let Err(error) = Journal::resume(&folder, false) else { panic!("cut at {cut}") };
        assert!(error.to_string().contains("never began"), "{error}");
        // The folder can be used for a run that begins.
        fresh(&folder, &options(StopRule::All), None);
    }
    let (_dir, folder) = with_journal(&bytes[header_bytes..]);
    let Err(error) = Journal::resume(&folder, true) else { panic!("no beginning") };
    assert!(error.to_string().contains("record 0 is missing"), "{error}");
}

#[test]
fn damage_in_the_middle_is_refused_by_record_and_can_be_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    let options = options(StopRule::All);
    let whole = fresh(&folder, &options, None);
    let mut bytes = fs::read(folder.join(FILE_NAME)).unwrap();
    let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
    let record = ends.len() / 2;
    bytes[ends[record - 1] + 40] ^= 4;
    let (_dir, folder) = with_journal(&bytes);
    let Err(error) = Journal::resume(&folder, false) else { panic!("damage passes") };
    let place = format!("record {record} (byte {}) is damaged", ends[record - 1]);
    assert!(error.to_string().contains(&place), "{error}");
    assert!(error.to_string().contains(FILE_NAME), "{error}");
    assert!(History::read(&folder).unwrap_err().to_string().contains(&place));
    let (journal, history) = Journal::resume(&folder, true).unwrap();
    let clock = FakeClock::default();
    let recorder = Recorder::resume(journal, Arc::new(clock.clone()), "none").unwrap();
    let ran = run(recorder, &clock, Some(history), Outputs::default(), &options, None);
    assert_eq!(outcome(&ran.report), outcome(&whole.report));
    assert_eq!(fs::read(folder.join("journal.damaged")).unwrap(), bytes, "nothing is thrown away");
    assert_eq!(History::read(&folder).unwrap().report().problems.len(), 3);
}

#[test]
fn an_interrupted_run_goes_on_and_fills_its_submission() {
    let options = options(StopRule::All);
    let dir = tempfile::tempdir().unwrap();
    let whole = fresh(&dir.path().join("whole"), &options, None);
    for after in (1..400).step_by(23) {
        let folder = dir.path().join(format!("run-{after}"));
        let first = fresh(&folder, &options, Some(after));
        let out = dir.path().join("out.csv");
        let outputs = Outputs::prepare(std::slice::from_ref(&out), None, &problems(), 0).unwrap();
        let second = resumed(&folder, &options, outputs);
        assert_eq!(outcome(&second.report), outcome(&whole.report), "interrupted after {after} events");
        assert_eq!(fs::read_to_string(&out).unwrap(), "id,answer\na,1\nb,13\nc,3\n");
        assert!(first.begun.len() + second.begun.len() >= 9);
        // Once more: nothing is left to do.
        let third = resumed(&folder, &options, Outputs::default());
        assert_eq!((third.begun.len(), outcome(&third.report)), (0, outcome(&whole.report)));
    }
}

/// Writes to memory and refuses from the n-th call on, for some calls.
struct Full {
    n_calls: usize,
    fail: std::ops::Range<usize>,
}

impl Store for Full {
    fn append(&mut self, _: &[u8]) -> io::Result<()> {
        self.n_calls += 1;
        if self.fail.contains(&self.n_calls) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_ends_no_run_and_is_reported_once() {
    for (fail, whole) in [(5..usize::MAX, false), (5..9, true), (30..31, true)] {
        let options = options(StopRule::All);
        let clock = FakeClock::default();
        let journal = Journal::new("j".into(), Box::new(Full { n_calls: 0, fail }), 0, 0);
        let recorder = Recorder::begin(journal, Arc::new(clock.clone()), header(&options)).unwrap();
        let ran = run(recorder, &clock, None, Outputs::default(), &options, None);
        assert_eq!(ran.report.problems.iter().map(|p| p.answer).collect::<Vec<_>>(), [Some(1), Some(13), Some(3)]);
        assert_eq!(ran.report.warnings.len(), 1, "{:?}", ran.report.warnings);
        assert_eq!(ran.report.journal.is_none(), whole, "{:?}", ran.report.journal);
    }
}

#[test]
fn journals_of_other_versions_are_refused_by_version() {
    let options = options(StopRule::All);
    let dir = tempfile::tempdir().unwrap();
    fresh(&dir.path().join("run"), &options, None);
    let line = |json: &str| solver::journal::record::encode(0, json);
    let refused = |bytes: &[u8]| {
        let (_dir, folder) = with_journal(bytes);
        match Journal::resume(&folder, false) {
            Err(JournalError::Read { source, .. }) => source.to_string(),
            _ => panic!("it passes"),
        }
    };
    let message = refused(&line(r#"{"t_ms":0,"event":{"kind":"run_started","version":99,"program":"7.0"}}"#));
    assert!(message.contains("version 99 (written by version 7.0)"), "{message}");
    let message = refused(&line(r#"{"t_ms":0,"event":{"kind":"dance"}}"#));
    assert!(message.contains("record 0 can't be understood"), "{message}");
}
