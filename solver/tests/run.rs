//! Whole sets on a scripted model: submission, transcripts, report, limits, interrupts.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use solver::clock::budget::BudgetOptions;
use solver::clock::{Clock, FakeClock};
use solver::rollout::ProblemStop;
use solver::testing::{FakePython, Script, ScriptedModel};
use solver::{
    CancelToken, Outputs, ProblemSet, RunEnd, RunError, RunEvent, RunReport, Setup, SolverOptions, run as run_set,
};

struct Set {
    dir: tempfile::TempDir,
    problems: ProblemSet,
}

impl Set {
    fn new(csv: &str) -> Set {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("problems.csv");
        fs::write(&path, csv).unwrap();
        let problems = ProblemSet::read(&path, SolverOptions::default().answer_range).unwrap();
        Set { dir, problems }
    }

    fn outputs(&self) -> Outputs {
        let out = self.out();
        Outputs::prepare(std::slice::from_ref(&out), Some(&Outputs::default_transcripts(&out)), &self.problems, 0)
            .unwrap()
    }

    fn out(&self) -> std::path::PathBuf {
        self.dir.path().join("out.csv")
    }

    fn submission(&self) -> String {
        fs::read_to_string(self.out()).unwrap()
    }

    fn transcripts(&self) -> Vec<String> {
        let folder = self.dir.path().join("out.csv.transcripts");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn run(&self, model: &mut ScriptedModel, options: &SolverOptions) -> Result<RunReport, RunError> {
        self.run_observed(model, options, &CancelToken::default(), &mut |_| {})
    }

    fn run_observed(
        &self,
        model: &mut ScriptedModel,
        options: &SolverOptions,
        cancel: &CancelToken,
        observer: &mut dyn FnMut(RunEvent<'_>),
    ) -> Result<RunReport, RunError> {
        let python = Arc::new(FakePython::new(|_, _| FakePython::ok("391\n")));
        let setup = Setup {
            outputs: self.outputs(),
            cancel: cancel.clone(),
            ..Setup::new(options, self.problems.problems.len())
        };
        run_set(model, python, &self.problems, setup, observer)
    }
}

const THREE: &str = "id,problem,answer\na,What is 1?,1\nb,What is 2?,2\nc,What is 3?,\n";

fn options(attempts: usize) -> SolverOptions {
    SolverOptions { attempts, ..SolverOptions::default() }
}

fn boxed(answer: &str) -> Script {
    Script::new(&[&format!("It is \\boxed{{{answer}}}")])
}

#[test]
fn a_run_gives_a_submission_transcripts_and_a_report() {
    let set = Set::new(THREE);
    let call = Script::new(&["Compute:\n```python\nprint(391)\n```", "So \\boxed{9}"]);
    let mut model =
        ScriptedModel::new([boxed("1"), boxed("1"), call, Script::new(&["?", "?"]), boxed("x"), boxed("7")]);
    let report = set.run(&mut model, &options(2)).unwrap();
    assert_eq!(set.submission(), "id,answer\na,1\nb,9\nc,7\n");
    assert_eq!(report.end, RunEnd::Complete);
    assert_eq!((report.n_known(), report.n_correct(), report.accuracy()), (2, 1, Some(0.5)));
    assert_eq!(report.problems.iter().map(|p| p.answer).collect::<Vec<_>>(), [Some(1), Some(9), Some(7)]);
    assert_eq!(report.problems[1].tool_calls(), 1);
    assert_eq!(report.generated_tokens(), report.problems.iter().map(|p| p.generated_tokens()).sum::<usize>());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["problems"][1]["votes"]["rows"][0]["answer"], 9);
    assert_eq!(json["problems"][1]["attempts"][0]["end"]["kind"], "answer");
    assert_eq!(json["options"]["answer_range"], "0..99999");
    assert_eq!(json["options"]["python"]["time_ms"], 6000);
    assert_eq!(
        set.transcripts(),
        [
            "0001-a-attempt-1.md",
            "0001-a-attempt-2.md",
            "0002-b-attempt-1.md",
            "0002-b-attempt-2.md",
            "0003-c-attempt-1.md",
            "0003-c-attempt-2.md",
        ]
    );
    let transcript = fs::read_to_string(set.dir.path().join("out.csv.transcripts/0002-b-attempt-1.md")).unwrap();
    for part in [
        "# b, attempt 1\n",
        "- end: answer 9\n",
        "- expected: 2\n",
        "- Python: 1 blocks, 0 failed, 0.001 s\n",
        "\n## user\n\nWhat is 2?\n",
        "\n## assistant\n\nCompute:\n```python\nprint(391)\n```\n",
        "> Python: ok in 1 ms\n",
        "```output\n391\n```\nSo \\boxed{9}\n",
    ] {
        assert!(transcript.contains(part), "{part:?} is missing from:\n{transcript}");
    }
}

#[test]
fn every_id_has_its_row_after_every_problem() {
    let set = Set::new(THREE);
    let mut model = ScriptedModel::new([boxed("1"), Script::new(&["no", "no"]), boxed("3")]);
    let mut seen = Vec::new();
    set.run_observed(&mut model, &options(1), &CancelToken::default(), &mut |event| {
        if let RunEvent::ProblemStarted { .. } | RunEvent::ProblemFinished { .. } = event {
            seen.push(set.submission());
        }
    })
    .unwrap();
    let rows = |a, b, c| format!("id,answer\na,{a}\nb,{b}\nc,{c}\n");
    assert_eq!(seen, [rows(0, 0, 0), rows(1, 0, 0), rows(1, 0, 0), rows(1, 0, 0), rows(1, 0, 0), rows(1, 0, 3)]);
}

#[test]
fn an_interrupted_run_keeps_what_it_has() {
    let set = Set::new(THREE);
    let mut model = ScriptedModel::new([boxed("1"), boxed("2"), Script::new(&["word "]).endless(), boxed("3")]);
    let cancel = CancelToken::default();
    let options = SolverOptions { stop: solver::StopRule::All, ..options(2) };
    let mut n_finished = 0;
    let report = set
        .run_observed(&mut model, &options, &cancel, &mut |event| {
            if let RunEvent::Solving { index: 1, event: solver::SolveEvent::AttemptFinished { attempt } } = event {
                n_finished += 1;
                if attempt.number == 2 {
                    cancel.cancel();
                }
            }
        })
        .unwrap();
    assert_eq!(n_finished, 2, "also those that are cancelled are reported");
    assert_eq!(report.end, RunEnd::Cancelled);
    assert_eq!(set.submission(), "id,answer\na,1\nb,3\nc,0\n", "the vote of the problem under way counts");
    assert_eq!(report.problems.len(), 3);
    assert_eq!(report.problems[2].stop, ProblemStop::NotReached);
    assert_eq!(set.transcripts().len(), 4);
}

#[test]
fn a_model_that_fails_leaves_a_row_for_every_id() {
    let set = Set::new(THREE);
    let mut model = ScriptedModel::new([boxed("1"), Script::new(&["word "]).endless()]).failing_at_step(60);
    let report = set.run(&mut model, &options(1)).unwrap();
    assert_eq!(report.end, RunEnd::Fault { problem_id: "b".to_string(), message: "the device was lost".to_string() });
    assert_eq!(set.submission(), "id,answer\na,1\nb,0\nc,0\n");
    assert_eq!(report.n_correct(), 1);
}

#[test]
fn the_time_of_a_run_is_shared_and_ends_it() {
    let set = Set::new(THREE);
    let endless = || Script::new(&["word "]).endless();
    let clock = FakeClock::default();
    let step = std::time::Duration::from_millis(100);
    let solve = |scripts: Vec<Script>, limit_ms, problem_ms| {
        let mut model = ScriptedModel::new(scripts).with_clock(clock.clone(), step);
        let budget =
            BudgetOptions { limit_ms: Some(limit_ms), problem_ms, reserve_ms: Some(1000), ..Default::default() };
        let options = SolverOptions { max_tokens: None, budget, ..options(1) };
        let start = Arc::new(clock.clone());
        let setup = Setup { outputs: set.outputs(), clock: start, ..Setup::new(&options, 3) };
        let mut budgets = Vec::new();
        let python = Arc::new(FakePython::counting());
        let report = run_set(&mut model, python, &set.problems, setup, &mut |event| {
            if let RunEvent::ProblemStarted { budget, .. } = event {
                budgets.push(budget.unwrap().as_millis());
            }
        });
        (report.unwrap(), budgets)
    };
    let (report, budgets) = solve(vec![boxed("1"), endless(), endless()], 31_000, None);
    assert_eq!(report.problems.iter().map(|p| p.answer).collect::<Vec<_>>(), [Some(1), None, None]);
    assert_eq!(report.problems[1].stop, ProblemStop::TimeUp);
    // What the first left of its 10 s goes to the second; the third gets its share.
    let used = 100 * report.problems[0].generated_tokens() as u128;
    assert_eq!(budgets, [10_000, 20_000 - used, 10_000]);
    assert!(clock.now() <= std::time::Duration::from_secs(30), "the reserve is kept: {:?}", clock.now());
    // The time was up before: every id has its row all the same.
    let (report, budgets) = solve(Vec::new(), 20_000, None);
    assert_eq!((report.end, budgets), (RunEnd::TimeUp, vec![]));
    assert_eq!(set.submission(), "id,answer\na,0\nb,0\nc,0\n");
    let (report, budgets) = solve(vec![endless(), endless(), endless()], 1_000_000, Some(700));
    assert_eq!((report.end, budgets), (RunEnd::Complete, vec![700, 700, 700]));
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_before_work_starts() {
    let set = Set::new(&format!("id,problem\na,x\nlong,{}\n", "y".repeat(5000)));
    let mut model = ScriptedModel::new([boxed("1")]).with_n_ctx(4096);
    let error = set.run(&mut model, &options(1)).unwrap_err();
    assert!(
        matches!(&error, RunError::PromptTooLong { problem_id, n_ctx: 4096, tokens } if problem_id == "long" && *tokens > 5000),
        "{error}"
    );
    assert_eq!(model.n_started(), 0);
    let nothing = SolverOptions { attempts: 0, ..options(1) };
    assert!(matches!(set.run(&mut model, &nothing), Err(RunError::Options(_))));
}

#[test]
fn a_transcript_that_cannot_be_written_is_a_warning() {
    let set = Set::new(THREE);
    let mut model = ScriptedModel::new([boxed("1"), boxed("2"), boxed("3")]);
    let blocked = set.dir.path().join("out.csv.transcripts/0002-b-attempt-1.md");
    let mut warnings = 0;
    let report = set
        .run_observed(&mut model, &options(1), &CancelToken::default(), &mut |event| match event {
            RunEvent::ProblemStarted { index: 0, .. } => fs::create_dir(&blocked).unwrap(),
            RunEvent::Warning { .. } => warnings += 1,
            _ => {}
        })
        .unwrap();
    assert_eq!((warnings, report.warnings.len()), (1, 1));
    assert!(report.warnings[0].contains("0002-b-attempt-1.md"), "{:?}", report.warnings);
    assert_eq!(set.submission(), "id,answer\na,1\nb,2\nc,3\n");
}

#[test]
fn a_submission_that_cannot_be_written_for_a_while_is_written_in_the_end() {
    let set = Set::new(THREE);
    let mut model = ScriptedModel::new([boxed("1"), boxed("2"), boxed("3")]);
    let folder = set.dir.path().join("sub");
    fs::create_dir(&folder).unwrap();
    let out = folder.join("out.csv");
    let outputs = || Outputs::prepare(std::slice::from_ref(&out), None, &set.problems, 0).unwrap();
    let away = set.dir.path().join("away");
    let python = || Arc::new(FakePython::counting());
    let one = options(1);
    let setup = || Setup { outputs: outputs(), ..Setup::new(&one, 3) };
    let mut move_folder = |event: RunEvent<'_>| match event {
        RunEvent::ProblemStarted { index: 0, .. } => fs::rename(&folder, &away).unwrap(),
        RunEvent::ProblemStarted { index: 2, .. } => fs::rename(&away, &folder).unwrap(),
        _ => {}
    };
    let report = run_set(&mut model, python(), &set.problems, setup(), &mut move_folder).unwrap();
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    assert_eq!(fs::read_to_string(&out).unwrap(), "id,answer\na,1\nb,2\nc,3\n");
    assert_eq!(report.unwritten, None);
    // Where it stays impossible, the report says so.
    let mut model = ScriptedModel::new([boxed("1"), boxed("2"), boxed("3")]);
    let mut take_away = |event: RunEvent<'_>| {
        if let RunEvent::ProblemStarted { index: 0, .. } = event {
            fs::rename(&folder, &away).unwrap();
        }
    };
    let report = run_set(&mut model, python(), &set.problems, setup(), &mut take_away).unwrap();
    assert!(report.unwritten.is_some_and(|message| message.contains("out.csv")));
    assert_eq!(report.problems[2].answer, Some(3), "the answers are still in the report");
}

#[test]
fn outputs_are_checked_before_anything_is_run() {
    let set = Set::new(THREE);
    let prepare =
        |out: &Path, transcripts: Option<&Path>| Outputs::prepare(&[out.to_path_buf()], transcripts, &set.problems, 0);
    assert!(prepare(set.dir.path(), None).is_err());
    assert!(prepare(&set.dir.path().join("problems.csv"), None).is_err());
    assert!(prepare(&set.dir.path().join("no/out.csv"), None).is_err());
    assert!(prepare(&set.out(), Some(&set.dir.path().join("problems.csv"))).is_err());
    assert!(!set.out().exists(), "nothing is written where something else is refused");
    assert!(Outputs::prepare(&[], None, &set.problems, 0).is_ok());
}
