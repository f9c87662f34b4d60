//! A journal read back: the run as far as it came, problem by problem and attempt by attempt.
//!
//! Where a problem was begun again, attempts that had ended stay and the others are forgotten: they were begun again
//! too. Called by `writer` for a continuation, by `replay`, `report` and `eval` for a look.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use crate::attempt::{Attempt, AttemptEnd, Step};
use crate::journal::event::VERSION;
use crate::journal::record::{self, ReadError};
use crate::journal::{Entry, Event, Header, path_of};
use crate::problem::Problem;
use crate::report::{AttemptReport, ProblemReport, RunEnd, RunReport};
use crate::rollout::ProblemStop;

/// Why a journal tells of no run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Damage to what was once whole.
    #[error("{0}")]
    Damaged(ReadError),
    /// Not even the first record is whole.
    #[error("it holds no whole record: the run never began")]
    Empty,
    /// The first record is no header.
    #[error("its first record isn't the beginning of a run")]
    NoHeader,
    /// From another version of the program.
    #[error("its form has version {found} (written by version {program}); this program reads {VERSION}")]
    Version {
        /// Version of the form.
        found: u32,
        /// Version of the program.
        program: String,
    },
    /// A whole record that says nothing that is known.
    #[error("record {number} can't be understood: {message}")]
    Record {
        /// Its number.
        number: u64,
        /// Why.
        message: String,
    },
}

/// A run as its journal tells it.
#[derive(Debug)]
pub struct History {
    /// What the run is.
    pub header: Header,
    /// Problems that were begun, in the order in which they were.
    pub problems: Vec<ProblemHistory>,
    /// How its last process ended; none if it was killed, or still works.
    pub end: Option<RunEnd>,
    /// What went wrong on the way.
    pub warnings: Vec<String>,
    /// Times since its start at which another process went on with it.
    pub resumed_ms: Vec<u64>,
    /// Time of the last record.
    pub elapsed_ms: u64,
    /// Whole records.
    pub n_records: u64,
    /// Bytes that they take.
    pub good_bytes: u64,
    /// Bytes of a record that a crash cut short.
    pub torn_bytes: u64,
    /// Damage behind the last record that was read, where that was allowed.
    pub damage: Option<ReadError>,
}

/// One problem.
#[derive(Debug)]
pub struct ProblemHistory {
    /// Position in the set.
    pub index: usize,
    /// The problem.
    pub problem: Problem,
    /// When it was begun, the last time.
    pub started_ms: u64,
    /// The time that it had.
    pub budget_ms: Option<u64>,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Its attempts, by number.
    pub attempts: Vec<AttemptHistory>,
    /// What came of it.
    pub report: Option<ProblemReport>,
}

/// One attempt.
#[derive(Debug, Default)]
pub struct AttemptHistory {
    /// From 1.
    pub number: usize,
    /// When it was begun.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// What happened, sorted into thoughts, text and calls; empty while it runs.
    pub sorted: Vec<Step>,
    /// What happened as it came, each with the times of its beginning and end.
    pub steps: Vec<TimedStep>,
    /// Tokens as they came, with the time.
    pub tokens: Vec<(u64, usize)>,
    /// What came of it.
    pub report: Option<AttemptReport>,
    /// A block that runs, and since when.
    running: Option<(u64, String)>,
}

/// A step with its times.
#[derive(Debug)]
pub struct TimedStep {
    /// Its beginning.
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
    /// What.
    pub step: Step,
}

impl History {
    /// Reads the journal of a run, given its folder or the journal itself. A run that another process works on can be
    /// read too: what it is about to write is left out.
    pub fn read(run: &Path) -> Result<History, HistoryError> {
        History::read_from(&mut BufReader::new(File::open(path_of(run))?), false)
    }

    /// Reads a journal; with `salvage`, damage ends it instead of being an error.
    pub fn read_from(reader: &mut impl BufRead, salvage: bool) -> Result<History, HistoryError> {
        let mut history: Option<History> = None;
        let mut refused = None;
        let scan = record::scan(reader, |number, json| {
            let taken = take(&mut history, number, json);
            taken.map_err(|error| {
                refused = Some(error);
                io::Error::other("the record can't be used")
            })
        });
        if let Some(error) = refused {
            return Err(error);
        }
        let scan = scan?;
        let damage = match scan.damage {
            Some(ReadError::Io(error)) => return Err(error.into()),
            Some(damage) if !salvage || history.is_none() => return Err(HistoryError::Damaged(damage)),
            damage => damage,
        };
        let mut history = history.ok_or(HistoryError::Empty)?;
        history.n_records = scan.n_records;
        history.good_bytes = scan.good_bytes;
        history.torn_bytes = scan.torn_bytes;
        history.damage = damage;
        Ok(history)
    }

    /// What is known of a problem, by position.
    pub fn problem(&self, index: usize) -> Option<&ProblemHistory> {
        self.problems.iter().find(|p| p.index == index)
    }

    /// The run as a report; problems that were begun and not finished have what their attempts came to.
    pub fn report(&self) -> RunReport {
        let options = &self.header.options;
        let unfinished = |p: &ProblemHistory| ProblemReport::of_attempts(&p.problem, options, p.reports());
        let begun = |index: usize| self.problem(index).map(|p| p.report.clone().unwrap_or_else(|| unfinished(p)));
        let n_problems = self.problems.iter().map(|p| p.index + 1).max().unwrap_or(0).max(self.header.problems.len());
        let problems = (0..n_problems).filter_map(|index| {
            begun(index).or_else(|| self.header.problems.get(index).map(ProblemReport::not_reached))
        });
        RunReport {
            options: options.clone(),
            problems: problems.collect(),
            end: self.end.clone().unwrap_or(RunEnd::Cancelled),
            elapsed_s: self.elapsed_ms as f64 / 1000.0,
            warnings: self.warnings.clone(),
            unwritten: None,
            journal: None,
        }
    }

    fn new(header: Header) -> History {
        History {
            header,
            problems: Vec::new(),
            end: None,
            warnings: Vec::new(),
            resumed_ms: Vec::new(),
            elapsed_ms: 0,
            n_records: 0,
            good_bytes: 0,
            torn_bytes: 0,
            damage: None,
        }
    }

    fn attempt(&mut self, index: usize, number: usize) -> &mut AttemptHistory {
        let at = self.problems.iter().position(|p| p.index == index).unwrap_or_else(|| {
            let problem = self.header.problems.get(index).cloned();
            let unknown = || Problem { id: (index + 1).to_string(), text: String::new(), answer: None };
            self.problems.push(ProblemHistory::new(index, problem.unwrap_or_else(unknown), 0));
            self.problems.len() - 1
        });
        let attempts = &mut self.problems[at].attempts;
        let at = attempts.iter().position(|a| a.number == number).unwrap_or_else(|| {
            let at = attempts.iter().position(|a| a.number > number).unwrap_or(attempts.len());
            attempts.insert(at, AttemptHistory { number, ..AttemptHistory::default() });
            at
        });
        &mut attempts[at]
    }

    fn apply(&mut self, t_ms: u64, event: Event) {
        self.elapsed_ms = self.elapsed_ms.max(t_ms);
        match event {
            // A second beginning says nothing new.
            Event::RunStarted(_) => {}
            Event::RunResumed { .. } => {
                self.resumed_ms.push(t_ms);
                self.end = None;
            }
            Event::ProblemStarted { index, id, text, expected, budget_ms } => {
                let problem = Problem { id, text, answer: expected };
                match self.problems.iter_mut().find(|p| p.index == index) {
                    Some(known) => known.begin_again(t_ms, budget_ms),
                    None => {
                        let begun = ProblemHistory { budget_ms, ..ProblemHistory::new(index, problem, t_ms) };
                        self.problems.push(begun);
                    }
                }
            }
            Event::AttemptStarted { index, attempt } => {
                *self.attempt(index, attempt) =
                    AttemptHistory { number: attempt, started_ms: t_ms, ..AttemptHistory::default() };
            }
            Event::Text { index, attempt, text, tokens } => self.attempt(index, attempt).wrote(t_ms, text, tokens),
            Event::Given { index, attempt, text, is_user_turn } => {
                let step = if is_user_turn { Step::User(text) } else { Step::Result(text) };
                self.attempt(index, attempt).steps.push(TimedStep { from_ms: t_ms, to_ms: t_ms, step });
            }
            Event::ToolStarted { index, attempt, code } => self.attempt(index, attempt).running = Some((t_ms, code)),
            Event::ToolFinished { index, attempt, outcome } => {
                let attempt = self.attempt(index, attempt);
                let (from_ms, code) = attempt.running.take().unwrap_or((t_ms, String::new()));
                attempt.steps.push(TimedStep { from_ms, to_ms: t_ms, step: Step::Call { code, outcome } });
            }
            Event::AttemptFinished { index, report, steps } => {
                let attempt = self.attempt(index, report.number);
                attempt.sorted = steps;
                attempt.ended_ms = Some(t_ms);
                attempt.report = Some(report);
            }
            Event::ProblemFinished { index, report } => {
                if let Some(problem) = self.problems.iter_mut().find(|p| p.index == index) {
                    problem.ended_ms = Some(t_ms);
                    problem.report = Some(report);
                }
            }
            Event::Warning { message } => self.warnings.push(message),
            Event::RunFinished { end } => self.end = Some(end),
        }
    }
}

fn take(history: &mut Option<History>, number: u64, json: &str) -> Result<(), HistoryError> {
    let entry = Entry::from_json(json);
    let entry = entry.map_err(|error| {
        // A header of another version may have another form altogether.
        let version = serde_json::from_str::<serde_json::Value>(json).ok().and_then(|value| {
            let event = value.get("event")?;
            let found = u32::try_from(event.get("version")?.as_u64()?).ok()?;
            Some((found, event.get("program")?.as_str()?.to_string()))
        });
        match version {
            Some((found, program)) if found != VERSION => HistoryError::Version { found, program },
            _ => HistoryError::Record { number, message: error.to_string() },
        }
    })?;
    match (history, entry.event) {
        (None, Event::RunStarted(header)) if header.version != VERSION => {
            return Err(HistoryError::Version { found: header.version, program: header.program });
        }
        (history @ None, Event::RunStarted(header)) => *history = Some(History::new(*header)),
        (None, _) => return Err(HistoryError::NoHeader),
        (Some(history), event) => history.apply(entry.t_ms, event),
    }
    Ok(())
}

impl ProblemHistory {
    fn new(index: usize, problem: Problem, started_ms: u64) -> ProblemHistory {
        ProblemHistory {
            index,
            problem,
            started_ms,
            budget_ms: None,
            ended_ms: None,
            attempts: Vec::new(),
            report: None,
        }
    }

    fn begin_again(&mut self, t_ms: u64, budget_ms: Option<u64>) {
        self.attempts.retain(|a| a.report.as_ref().is_some_and(|r| r.end.is_final()));
        (self.started_ms, self.budget_ms) = (t_ms, budget_ms);
        (self.ended_ms, self.report) = (None, None);
    }

    /// What came of it, where nothing is left to do.
    pub fn done(&self) -> Option<&ProblemReport> {
        let again = |stop| matches!(stop, ProblemStop::Cancelled | ProblemStop::Fault | ProblemStop::NotReached);
        self.report.as_ref().filter(|report| !again(report.stop))
    }

    /// Reports of the attempts that have ended.
    pub fn reports(&self) -> Vec<AttemptReport> {
        self.attempts.iter().filter_map(|a| a.report.clone()).collect()
    }

    /// The attempts that need not be made again.
    pub fn ended(&self, options: &crate::options::SolverOptions) -> Vec<Attempt> {
        let restore = |a: &AttemptHistory| {
            let report = a.report.as_ref().filter(|r| r.end.is_final() && r.number <= options.attempts)?;
            Some(Attempt::restored(report, a.sorted.clone(), options))
        };
        self.attempts.iter().filter_map(restore).collect()
    }
}

impl AttemptHistory {
    fn wrote(&mut self, t_ms: u64, text: String, tokens: usize) {
        self.tokens.push((t_ms, tokens));
        match self.steps.last_mut() {
            Some(TimedStep { to_ms, step: Step::Text(written), .. }) => {
                written.push_str(&text);
                *to_ms = t_ms;
            }
            _ => {
                let from_ms = self.steps.last().map_or(self.started_ms, |s| s.to_ms);
                self.steps.push(TimedStep { from_ms, to_ms: t_ms, step: Step::Text(text) });
            }
        }
    }

    /// How it ended; none while it runs.
    pub fn end(&self) -> Option<&AttemptEnd> {
        self.report.as_ref().map(|r| &r.end)
    }
}

impl AttemptEnd {
    /// Whether it ended by itself or by its limits: then it isn't made again. One that was cancelled, or whose model
    /// failed, is.
    pub fn is_final(&self) -> bool {
        !matches!(self, AttemptEnd::Cancelled | AttemptEnd::Error { .. })
    }
}
