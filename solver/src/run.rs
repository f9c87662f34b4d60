//! A whole set of problems: one after the other, the submission rewritten after each, a transcript per attempt.
//!
//! [`Outputs::prepare`] and [`check_prompts`] find what can be found before work starts. From then on nothing ends a
//! run but its limits, an interrupt or a model that fails; even then every id has its row and the report says what was
//! reached. Called by the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::LanguageModel;
use crate::options::{OptionsError, SolverOptions};
use crate::problem::{Problem, ProblemSet};
use crate::prompt;
use crate::report::{ProblemReport, RunEnd, RunReport};
use crate::rollout::{CancelToken, ProblemStop, SolveEvent, Solver};
use crate::submission::{OutputError, Submission};
use crate::tool::Interpreter;
use crate::transcript;

/// Where results go. Nothing is written where a path is missing.
#[derive(Debug, Default)]
pub struct Outputs {
    submission: Option<Submission>,
    transcripts: Option<PathBuf>,
}

impl Outputs {
    /// Checks every output by writing it: the submission with default answers, the (empty) folder of transcripts.
    pub fn prepare(
        submission: Option<&Path>,
        transcripts: Option<&Path>,
        problems: &ProblemSet,
        default_answer: i64,
    ) -> Result<Outputs, OutputError> {
        let transcripts = transcripts.map(|folder| {
            let failed = |source| OutputError::Write { path: folder.to_path_buf(), source };
            fs::create_dir_all(folder).map_err(failed)?;
            tempfile::tempfile_in(folder).map_err(failed)?;
            Ok(folder.to_path_buf())
        });
        let transcripts = transcripts.transpose()?;
        let submission = submission.map(|path| Submission::create(path, problems, default_answer)).transpose()?;
        Ok(Outputs { submission, transcripts })
    }

    /// The folder that transcripts go to unless another is asked for: `out.csv.transcripts` beside `out.csv`.
    pub fn default_transcripts(submission: &Path) -> PathBuf {
        let mut name = submission.as_os_str().to_owned();
        name.push(".transcripts");
        name.into()
    }
}

/// Why a run can't begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A setting outside its limits.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The chat template refuses the conversation.
    #[error("the prompt of problem {problem_id:?} can't be made: {source}")]
    Prompt {
        /// The problem.
        problem_id: String,
        /// The model's error.
        source: crate::model::ModelError,
    },
    /// A problem that the model can't even read.
    #[error(
        "the prompt of problem {problem_id:?} has {tokens} tokens, which leaves no room for an answer in a context of \
         {n_ctx}"
    )]
    PromptTooLong {
        /// The problem.
        problem_id: String,
        /// Its prompt.
        tokens: usize,
        /// The context.
        n_ctx: usize,
    },
}

/// What happens during a run. `index` is a problem's position in its set, from 0.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunEvent<'e> {
    /// Work on a problem begins.
    ProblemStarted {
        /// Position.
        index: usize,
        /// The problem.
        problem: &'e Problem,
        /// Time that it has, where that is limited.
        budget: Option<Duration>,
    },
    /// Something happened inside it.
    Solving {
        /// Position.
        index: usize,
        /// What.
        event: SolveEvent<'e>,
    },
    /// Work on a problem has ended; its row is written.
    ProblemFinished {
        /// Position.
        index: usize,
        /// What came of it.
        report: &'e ProblemReport,
    },
    /// Something went wrong that doesn't end the run.
    Warning {
        /// What.
        message: &'e str,
    },
}

/// Fewest tokens of context that must be left after a prompt.
const MIN_ROOM_TOKENS: usize = 64;

/// Makes every prompt once, so that a problem that can't be given to the model is known before work starts.
pub fn check_prompts<M: LanguageModel>(
    model: &M,
    problems: &ProblemSet,
    options: &SolverOptions,
) -> Result<(), RunError> {
    for problem in &problems.problems {
        let problem_id = || problem.id.clone();
        let rendered = model
            .render_chat(&prompt::opening(&problem.text, options))
            .map_err(|source| RunError::Prompt { problem_id: problem_id(), source })?;
        let (tokens, n_ctx) = (rendered.tokens.len(), model.n_ctx());
        if tokens + MIN_ROOM_TOKENS > n_ctx {
            return Err(RunError::PromptTooLong { problem_id: problem_id(), tokens, n_ctx });
        }
    }
    Ok(())
}

/// Works on every problem. An error means that nothing was begun; how it ended otherwise is in the report.
pub fn run<M: LanguageModel>(
    model: &mut M,
    python: Arc<dyn Interpreter>,
    problems: &ProblemSet,
    options: &SolverOptions,
    outputs: Outputs,
    cancel: &CancelToken,
    observer: &mut dyn FnMut(RunEvent<'_>),
) -> Result<RunReport, RunError> {
    options.validate()?;
    check_prompts(model, problems, options)?;
    let started = Instant::now();
    let run_deadline = options.run_time_ms.map(|ms| started + Duration::from_millis(ms));
    let mut run = Run { outputs, warnings: Vec::new(), unwritten: None, observer };
    let mut solver = Solver { model, python, options, cancel: cancel.clone() };
    let mut reports = Vec::with_capacity(problems.problems.len());
    let mut end = RunEnd::Complete;
    for (index, problem) in problems.problems.iter().enumerate() {
        let now = Instant::now();
        if end == RunEnd::Complete && cancel.is_cancelled() {
            end = RunEnd::Cancelled;
        }
        if end == RunEnd::Complete && run_deadline.is_some_and(|d| now >= d) {
            end = RunEnd::TimeUp;
        }
        if end != RunEnd::Complete {
            reports.push(ProblemReport::not_reached(problem));
            continue;
        }
        // An equal share of what is left: what a problem doesn't use goes to those after it.
        let n_left = u32::try_from(problems.problems.len() - index).unwrap_or(u32::MAX);
        let share = run_deadline.map(|d| d.saturating_duration_since(now) / n_left);
        let own = options.problem_time_ms.map(Duration::from_millis);
        let budget = [share, own].into_iter().flatten().min();
        (run.observer)(RunEvent::ProblemStarted { index, problem, budget });
        let solved = solver.solve(problem, budget.map(|b| now + b), &mut |event| {
            (run.observer)(RunEvent::Solving { index, event });
        });
        let report = ProblemReport::new(problem, &solved);
        run.save(index, problem, options, &solved.attempts, report.answer);
        (run.observer)(RunEvent::ProblemFinished { index, report: &report });
        reports.push(report);
        match (&solved.fault, solved.stop) {
            (Some(fault), _) => {
                end = RunEnd::Fault { problem_id: problem.id.clone(), message: fault.to_string() };
            }
            (None, ProblemStop::Cancelled) => end = RunEnd::Cancelled,
            _ => {}
        }
    }
    // What couldn't be written after its problem gets one more chance.
    if let (Some(_), Some(submission)) = (&run.unwritten, &run.outputs.submission) {
        run.unwritten = submission.write().err();
    }
    Ok(RunReport {
        options: options.clone(),
        problems: reports,
        end,
        elapsed_s: started.elapsed().as_secs_f64(),
        warnings: run.warnings,
        unwritten: run.unwritten.map(|e| e.to_string()),
    })
}

struct Run<'r> {
    outputs: Outputs,
    warnings: Vec<String>,
    /// Set while the submission on disk isn't up to date.
    unwritten: Option<OutputError>,
    observer: &'r mut dyn FnMut(RunEvent<'_>),
}

impl Run<'_> {
    /// Writes a problem's answer, then its transcripts: the answer is what must not be lost.
    fn save(
        &mut self,
        index: usize,
        problem: &Problem,
        options: &SolverOptions,
        attempts: &[crate::attempt::Attempt],
        answer: Option<i64>,
    ) {
        if let Some(submission) = &mut self.outputs.submission {
            let answer = answer.unwrap_or(options.default_answer);
            self.unwritten = submission.answer(&problem.id, answer).err();
            if let Some(error) = &self.unwritten {
                let message = format!("{error}; it will be tried again");
                self.warn(message);
            }
        }
        let Some(folder) = self.outputs.transcripts.clone() else { return };
        let prompt = prompt::opening(&problem.text, options);
        for attempt in attempts {
            let path = folder.join(transcript::file_name(index, &problem.id, attempt.number));
            if let Err(error) = fs::write(&path, transcript::render(problem, &prompt, attempt)) {
                self.warn(format!("cannot write {}: {error}", path.display()));
            }
        }
    }

    fn warn(&mut self, message: String) {
        (self.observer)(RunEvent::Warning { message: &message });
        self.warnings.push(message);
    }
}
