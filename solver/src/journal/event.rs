//! What the lines of a journal say. Attempts are given by number, from 1; problems by position, from 0.
//!
//! Owns the form on disk and nothing else. A kind of event that a later version adds is refused by an earlier one,
//! which names the version that wrote the journal.

use sandbox::{Outcome, Status};
use serde::{Deserialize, Serialize};

use crate::attempt::Step;
use crate::journal::ModelIdentity;
use crate::options::SolverOptions;
use crate::problem::Problem;
use crate::report::{AttemptReport, ProblemReport, RunEnd};

/// Version of the form; another one is refused.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Time since the run began, all its processes together.
    pub t_ms: u64,
    /// What happened.
    pub event: Event,
}

impl Entry {
    /// Reads a line's JSON. By way of a value: a tagged enum can't take a number that keeps its digits, which is what
    /// the reader gives where any crate of the program asks for it.
    pub fn from_json(json: &str) -> serde_json::Result<Entry> {
        serde_json::from_value(serde_json::from_str(json)?)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Event {
    /// Always the first.
    RunStarted(Box<Header>),
    /// Another process goes on with the run.
    RunResumed {
        /// Seconds since 1970.
        unix_s: u64,
        /// Device that computes.
        backend: String,
    },
    /// Work on a problem begins, or begins again.
    ProblemStarted {
        /// Problem.
        index: usize,
        /// Its id.
        id: String,
        /// Its text.
        text: String,
        /// The right answer, where it is known.
        expected: Option<i64>,
        /// Its time, where that is limited.
        budget_ms: Option<u64>,
    },
    /// An attempt has its place in the batch.
    AttemptStarted {
        /// Problem.
        index: usize,
        /// Attempt.
        attempt: usize,
    },
    /// The model wrote; several tokens at a time.
    Text {
        /// Problem.
        index: usize,
        /// Attempt.
        attempt: usize,
        /// What it wrote.
        text: String,
        /// Tokens that this took.
        tokens: usize,
    },
    /// The model was shown something.
    Given {
        /// Problem.
        index: usize,
        /// Attempt.
        attempt: usize,
        /// What.
        text: String,
        /// Whether it is a turn of its own.
        is_user_turn: bool,
    },
    /// A block began to run.
    ToolStarted {
        /// Problem.
        index: usize,
        /// Attempt.
        attempt: usize,
        /// The block.
        code: String,
    },
    /// A block has run.
    ToolFinished {
        /// Problem.
        index: usize,
        /// Attempt.
        attempt: usize,
        /// Its outcome.
        #[serde(with = "OutcomeFields")]
        outcome: Outcome,
    },
    /// An attempt has ended: its answer, where it gave one, is safe.
    AttemptFinished {
        /// Problem.
        index: usize,
        /// The attempt.
        report: AttemptReport,
        /// What happened in it, sorted into thoughts, text and calls.
        steps: Vec<Step>,
    },
    /// Work on a problem has ended, with its table of votes.
    ProblemFinished {
        /// Problem.
        index: usize,
        /// What came of it.
        report: ProblemReport,
    },
    /// Something went wrong that didn't end the run.
    Warning {
        /// What.
        message: String,
    },
    /// The process ended in order.
    RunFinished {
        /// How.
        end: RunEnd,
    },
}

/// What a run is, and what its continuation has to be too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// Seconds since 1970 at the start.
    pub unix_s: u64,
    /// The model.
    pub model: ModelIdentity,
    /// Device that computed.
    pub backend: String,
    /// Settings of the solver.
    pub options: SolverOptions,
    /// Settings of the command, by name: what `--resume` takes over.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Where the problems came from.
    pub set_name: String,
    /// The problems; empty where they are handed over one at a time.
    pub problems: Vec<Problem>,
}

/// The sandbox knows no serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Outcome")]
pub(crate) struct OutcomeFields {
    #[serde(with = "StatusFields")]
    status: Status,
    output: String,
    elapsed_ms: u64,
    truncated_bytes: usize,
    rolled_back: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Status", rename_all = "snake_case", tag = "kind")]
enum StatusFields {
    Ok,
    Exception {
        #[serde(rename = "exception")]
        kind: String,
        message: String,
    },
    TimedOut {
        limit_ms: u64,
    },
    OutOfMemory {
        limit_bytes: u64,
    },
    Crashed {
        reason: String,
    },
    NoCallsLeft {
        limit: u64,
    },
    Exited {
        code: i32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_after_they_were_written_and_read() {
        let outcome = |status| Outcome {
            status,
            output: "\u{2028}x\n".into(),
            elapsed_ms: 3,
            truncated_bytes: 9,
            rolled_back: true,
        };
        for status in [
            Status::Ok,
            Status::Exception { kind: "NameError".into(), message: "no".into() },
            Status::TimedOut { limit_ms: 6 },
            Status::OutOfMemory { limit_bytes: 1 << 40 },
            Status::Crashed { reason: "trap".into() },
            Status::NoCallsLeft { limit: 4 },
            Status::Exited { code: -1 },
        ] {
            let event = Event::ToolFinished { index: 1, attempt: 2, outcome: outcome(status) };
            let entry = Entry { t_ms: u64::MAX, event };
            let json = serde_json::to_string(&entry).unwrap();
            assert!(!json.contains('\n'), "{json}");
            assert_eq!(Entry::from_json(&json).unwrap(), entry, "{json}");
        }
    }
}
