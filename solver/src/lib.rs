//! From a problem to an answer: `problem` (files) → `prompt` → `rollout` (attempts in one batch, Python beside it; how
//! a model calls it is `protocol`) →
//! `answer` → `vote` → `run` (the whole set, submission, transcripts, report).
//!
//! The solver knows models only through the trait [`LanguageModel`] and Python only through [`Interpreter`]; it knows
//! neither tensors nor devices. Everything that a model writes is untrusted: it can't stretch a budget, spell a control
//! token or smuggle an answer out of code, tool output or the middle of a thought.

pub mod answer;
pub mod attempt;
pub mod clock;
pub mod confidence;
pub mod conversation;
pub mod dataset;
pub mod evaluation;
pub mod html;
pub mod integer;
pub mod journal;
pub mod local;
pub mod model;
pub mod options;
mod parquet;
pub mod problem;
pub mod prompt;
pub mod protocol;
mod python;
pub mod remote;
pub mod report;
pub mod rollout;
pub mod run;
pub mod selection;
pub mod submission;
pub mod testing;
pub mod tool;
pub mod transcript;
mod verify;
pub mod vote;

pub use answer::AnswerRange;
pub use conversation::ChatSettings;
pub use local::LocalModel;
pub use model::{LanguageModel, Message, ModelError, SamplerParams};
pub use options::{LIBRARIES, SolverOptions};
pub use problem::{Problem, ProblemError, ProblemSet, demo_set};
pub use protocol::Protocol;
pub use remote::RemoteModel;
pub use report::{ProblemReport, RunEnd, RunReport};
pub use rollout::{CancelToken, SolveEvent};
pub use run::{Outputs, Run, RunError, RunEvent, Setup, run};
pub use selection::Select;
pub use tool::Interpreter;
pub use vote::{StopRule, VoteRule};
