//! The journal of a run: every event, appended to one file in the run's folder as it happens, so that a run goes on
//! after a crash and can be looked at afterwards.
//!
//! `record` is the form of a line (checksum, number, JSON), `event` what a line says, `writer` the file (lock, sync,
//! full disks), `recorder` the way from a run's events to lines, `history` the way back, `identity` what must not
//! change between a run and its continuation. A problem's or attempt's end is on disk before anybody acts on it; text
//! may be lost for the last second. Called by `run`, `resume`, `replay`, `report` and `eval`.

pub mod event;
pub mod history;
pub mod identity;
pub mod record;
pub mod recorder;
pub mod writer;

pub use event::{Entry, Event, Header};
pub use history::{AttemptHistory, History, ProblemHistory};
pub use identity::ModelIdentity;
pub use recorder::Recorder;
pub use writer::{Journal, JournalError};

use std::path::{Path, PathBuf};

/// Name of the journal in a run's folder.
pub const FILE_NAME: &str = "journal.jsonl";

/// The journal of a run, given its folder or the file itself.
pub fn path_of(run: &Path) -> PathBuf {
    if run.is_file() { run.to_path_buf() } else { run.join(FILE_NAME) }
}
