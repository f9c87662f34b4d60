//! A whole set of problems, or problems as they come: one after the other, every event in the journal, the submission
//! rewritten after each, a transcript per attempt.
//!
//! [`Outputs::prepare`] and [`check_prompts`] find what can be found before work starts. From then on nothing ends a
//! run but its limits, an interrupt or a model that fails; even then every id has its row and the report says what was
//! reached. Called by the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::attempt::Attempt;
use crate::clock::budget::Plan;
use crate::clock::{Clock, MonotonicClock};
use crate::journal::{History, Recorder};
use crate::model::LanguageModel;
use crate::options::{OptionsError, SolverOptions};
use crate::problem::{Problem, ProblemSet};
use crate::prompt;
use crate::report::{ProblemReport, RunEnd, RunReport};
use crate::rollout::{CancelToken, Deadline, ProblemStop, SolveEvent, Solver};
use crate::submission::{OutputError, Submission};
use crate::tool::Interpreter;
use crate::transcript;

/// Where results go. Nothing is written where a path is missing.
#[derive(Debug, Default)]
pub struct Outputs {
    submissions: Vec<Submission>,
    transcripts: Option<PathBuf>,
}

impl Outputs {
    /// Checks every output by writing it: the submissions with default answers, the (empty) folder of transcripts.
    pub fn prepare(
        submissions: &[PathBuf],
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
        let create = |path: &PathBuf| Submission::create(path, problems, default_answer);
        let submissions = submissions.iter().map(create).collect::<Result<_, _>>()?;
        Ok(Outputs { submissions, transcripts })
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
    /// An earlier process of the run has finished the problem.
    ProblemRestored {
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
    problems.problems.iter().try_for_each(|problem| check_prompt(model, problem, options))
}

/// Whether a problem can be given to the model.
pub fn check_prompt<M: LanguageModel>(model: &M, problem: &Problem, options: &SolverOptions) -> Result<(), RunError> {
    let rendered = model
        .render_chat(&prompt::opening(&problem.text, options))
        .map_err(|source| RunError::Prompt { problem_id: problem.id.clone(), source })?;
    let (tokens, n_ctx) = (rendered.tokens.len(), model.n_ctx());
    if tokens + MIN_ROOM_TOKENS > n_ctx {
        return Err(RunError::PromptTooLong { problem_id: problem.id.clone(), tokens, n_ctx });
    }
    Ok(())
}

/// What a run is carried out with, beside its model and its Python.
pub struct Setup<'r> {
    /// Settings.
    pub options: &'r SolverOptions,
    /// Where results go.
    pub outputs: Outputs,
    /// The run's journal, where it keeps one.
    pub recorder: Option<Recorder>,
    /// What earlier processes of the run have done.
    pub history: Option<History>,
    /// The run's time.
    pub clock: Arc<dyn Clock>,
    /// Ends the run early.
    pub cancel: CancelToken,
    /// Problems that time is planned for.
    pub n_expected: usize,
}

impl<'r> Setup<'r> {
    /// A run without a journal that begins now.
    pub fn new(options: &'r SolverOptions, n_expected: usize) -> Setup<'r> {
        Setup {
            options,
            outputs: Outputs::default(),
            recorder: None,
            history: None,
            clock: Arc::new(MonotonicClock::since(Instant::now())),
            cancel: CancelToken::default(),
            n_expected,
        }
    }
}

/// Works on every problem. An error means that nothing was begun; how it ended otherwise is in the report.
pub fn run<M: LanguageModel>(
    model: &mut M,
    python: Arc<dyn Interpreter>,
    problems: &ProblemSet,
    setup: Setup<'_>,
    observer: &mut dyn FnMut(RunEvent<'_>),
) -> Result<RunReport, RunError> {
    setup.options.validate()?;
    check_prompts(model, problems, setup.options)?;
    let mut run = Run::new(model, python, setup, observer);
    for (index, problem) in problems.problems.iter().enumerate() {
        run.solve(index, problem);
    }
    Ok(run.finish())
}

/// A run that is given its problems one at a time.
pub struct Run<'r, M: LanguageModel> {
    solver: Solver<'r, M>,
    outputs: Outputs,
    recorder: Option<Recorder>,
    history: Option<History>,
    clock: Arc<dyn Clock>,
    plan: Plan,
    /// Time at which this process began to solve; 0 where it goes on with a run.
    begun: Duration,
    reports: Vec<ProblemReport>,
    /// Problems solved here that no earlier process knew.
    n_new: usize,
    end: RunEnd,
    warnings: Vec<String>,
    /// Set while the submission on disk isn't up to date.
    unwritten: Option<OutputError>,
    observer: &'r mut dyn FnMut(RunEvent<'_>),
}

impl<'r, M: LanguageModel> Run<'r, M> {
    /// Ready for the first problem.
    pub fn new(
        model: &'r mut M,
        python: Arc<dyn Interpreter>,
        setup: Setup<'r>,
        observer: &'r mut dyn FnMut(RunEvent<'_>),
    ) -> Run<'r, M> {
        let Setup { options, outputs, recorder, history, clock, cancel, n_expected } = setup;
        let begun = if history.is_some() { Duration::ZERO } else { clock.now() };
        Run {
            solver: Solver { model, python, options, cancel },
            outputs,
            recorder,
            history,
            plan: Plan::new(&options.budget, n_expected),
            begun,
            clock,
            reports: Vec::new(),
            n_new: 0,
            end: RunEnd::Complete,
            warnings: Vec::new(),
            unwritten: None,
            observer,
        }
    }

    /// Works on the next problem, at `index` of its set, and gives what came of it. What an earlier process has
    /// finished isn't done again; after the run's end nothing is begun.
    pub fn solve(&mut self, index: usize, problem: &Problem) -> &ProblemReport {
        let is_new = self.history.as_ref().is_none_or(|h| h.problem(index).is_none());
        let report = self.report_on(index, problem);
        self.n_new += usize::from(is_new);
        self.reports.push(report);
        self.reports.last().expect("a report was just pushed")
    }

    fn report_on(&mut self, index: usize, problem: &Problem) -> ProblemReport {
        let options = self.solver.options;
        let known = self.history.as_ref().and_then(|h| h.problem(index)).filter(|p| p.problem == *problem);
        if let Some(report) = known.and_then(|p| p.done()) {
            let report = report.clone();
            self.save(index, problem, &[], report.answer);
            self.emit(RunEvent::ProblemRestored { index, report: &report });
            return report;
        }
        let ended = known.map(|p| p.ended(options)).unwrap_or_default();
        let now = self.clock.now();
        if self.end == RunEnd::Complete && self.solver.cancel.is_cancelled() {
            self.end = RunEnd::Cancelled;
        }
        if self.end == RunEnd::Complete && self.plan.hard_stop().is_some_and(|stop| now >= stop) {
            self.end = RunEnd::TimeUp;
        }
        if self.end != RunEnd::Complete {
            // What its attempts came to before the run was interrupted still counts.
            let attempts = known.map(|p| p.reports()).unwrap_or_default();
            let report = ProblemReport::of_attempts(problem, options, attempts);
            let report = ProblemReport { stop: ProblemStop::NotReached, ..report };
            self.save(index, problem, &ended, report.answer);
            return report;
        }
        let budget = self.plan.budget(now, self.reports.len());
        self.emit(RunEvent::ProblemStarted { index, problem, budget });
        let clock = Arc::clone(&self.clock);
        let deadline = budget.map(|budget| Deadline { clock: &*clock, at: now + budget });
        let Run { solver, recorder, observer, warnings, .. } = self;
        let solved = solver.resume(problem, ended, deadline, &mut |event| {
            emit(recorder, *observer, warnings, RunEvent::Solving { index, event });
        });
        let report = ProblemReport::new(problem, &solved);
        self.save(index, problem, &solved.attempts, report.answer);
        self.emit(RunEvent::ProblemFinished { index, report: &report });
        match (&solved.fault, solved.stop) {
            (Some(fault), _) => {
                self.end = RunEnd::Fault { problem_id: problem.id.clone(), message: fault.to_string() };
            }
            (None, ProblemStop::Cancelled) => self.end = RunEnd::Cancelled,
            _ => {}
        }
        report
    }

    /// Whether a problem can be given to the model.
    pub fn check(&self, problem: &Problem) -> Result<(), RunError> {
        check_prompt(self.solver.model, problem, self.solver.options)
    }

    /// Position of a problem that is handed over by itself: where an earlier process had it, or the next that is free.
    pub fn position_of(&self, problem: &Problem) -> usize {
        let known = self.history.iter().flat_map(|h| &h.problems);
        let n_known = known.clone().map(|p| p.index + 1).max().unwrap_or(0);
        let of_history = known.clone().find(|p| p.problem == *problem).map(|p| p.index);
        of_history.unwrap_or_else(|| n_known + self.n_new)
    }

    /// How the run stands: anything but [`RunEnd::Complete`] means that no problem is begun any more.
    pub fn end(&self) -> &RunEnd {
        &self.end
    }

    /// Ends the run.
    pub fn finish(mut self) -> RunReport {
        // What couldn't be written after its problem gets one more chance.
        if self.unwritten.is_some() {
            self.unwritten = self.outputs.submissions.iter().find_map(|s| s.write().err());
        }
        let journal = self.recorder.as_mut().and_then(|r| r.finish(&self.end).err()).map(|e| e.to_string());
        RunReport {
            options: self.solver.options.clone(),
            problems: self.reports,
            end: self.end,
            elapsed_s: self.clock.now().saturating_sub(self.begun).as_secs_f64(),
            warnings: self.warnings,
            unwritten: self.unwritten.map(|e| e.to_string()),
            journal,
        }
    }

    /// Writes a problem's answer, then its transcripts: the answer is what must not be lost.
    fn save(&mut self, index: usize, problem: &Problem, attempts: &[Attempt], answer: Option<i64>) {
        let options = self.solver.options;
        let answer = answer.unwrap_or(options.default_answer);
        let failed: Vec<OutputError> =
            self.outputs.submissions.iter_mut().filter_map(|s| s.answer(&problem.id, answer).err()).collect();
        for error in &failed {
            self.warn(format!("{error}; it will be tried again"));
        }
        self.unwritten = failed.into_iter().next();
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
        self.emit(RunEvent::Warning { message: &message });
        self.warnings.push(message);
    }

    fn emit(&mut self, event: RunEvent<'_>) {
        emit(&mut self.recorder, self.observer, &mut self.warnings, event);
    }
}

/// Gives an event to the journal first: what it holds has happened.
fn emit(
    recorder: &mut Option<Recorder>,
    observer: &mut dyn FnMut(RunEvent<'_>),
    warnings: &mut Vec<String>,
    event: RunEvent<'_>,
) {
    if let Some(message) = recorder.as_mut().and_then(|r| r.record(&event)) {
        let message = format!("{message}; the run goes on, and the journal will be tried again");
        observer(RunEvent::Warning { message: &message });
        warnings.push(message);
    }
    observer(event);
}
