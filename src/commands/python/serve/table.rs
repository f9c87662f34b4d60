//! The sessions of the server by id: bounded in number, each with limits no wider than the server's, gone when idle.
//!
//! Knows no HTTP. A session is taken out of its entry while it runs a call, so that other requests on it are refused
//! and none of them waits. Called by `serve` from threads that may wait.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sandbox::{Limits, Outcome, SandboxError, WorkerSession, Workers};
use serde::Deserialize;
use serde_json::{Value, json};

/// Why a request on the table failed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is no such session.
    #[error("no session {0:?}: it was never made, was deleted or was idle for too long")]
    Unknown(String),
    /// It runs a call.
    #[error("session {0:?} is busy with another request")]
    Busy(String),
    /// The server has as many as it may have.
    #[error("{0} sessions exist, as many as --max-sessions allows: delete one first")]
    Full(usize),
    /// A limit that the server doesn't grant.
    #[error("limits.{name} = {actual}: must be from {minimum} to {maximum}, the server's own limit")]
    Limit {
        /// Field of the request.
        name: &'static str,
        /// What was asked for.
        actual: u64,
        /// The least.
        minimum: u64,
        /// The most.
        maximum: u64,
    },
    /// The server keeps the machine's date to itself.
    #[error("limits.allow_clock = true: the server was not started with --allow-clock")]
    NoClock,
    /// The session itself failed.
    #[error("{0}")]
    Sandbox(#[from] SandboxError),
}

/// Limits that a request asks for; the server's own where it is silent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    time_ms: Option<u64>,
    grace_ms: Option<u64>,
    memory_bytes: Option<u64>,
    output_bytes: Option<u64>,
    n_calls: Option<u64>,
    allow_clock: Option<bool>,
}

impl Asked {
    fn within(&self, own: Limits) -> Result<Limits, TableError> {
        let pick = |name, asked: Option<u64>, minimum, maximum| match asked {
            Some(actual) if !(minimum..=maximum).contains(&actual) => {
                Err(TableError::Limit { name, actual, minimum, maximum })
            }
            asked => Ok(asked.unwrap_or(maximum)),
        };
        let output_bytes = pick("output_bytes", self.output_bytes, 0, own.output_bytes as u64)?;
        Ok(Limits {
            time_ms: pick("time_ms", self.time_ms, 1, own.time_ms)?,
            grace_ms: pick("grace_ms", self.grace_ms, 0, own.grace_ms)?,
            memory_bytes: pick("memory_bytes", self.memory_bytes, 1, own.memory_bytes)?,
            output_bytes: usize::try_from(output_bytes).unwrap_or(own.output_bytes),
            n_calls: pick("n_calls", self.n_calls, 0, own.n_calls)?,
            allow_clock: match self.allow_clock {
                Some(true) if !own.allow_clock => return Err(TableError::NoClock),
                asked => asked.unwrap_or(own.allow_clock),
            },
        })
    }
}

/// All sessions.
pub struct Table {
    workers: Workers,
    limits: Limits,
    max_sessions: usize,
    idle: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Entry>,
    /// Sessions that are being made: they count before they have an entry.
    n_coming: usize,
    n_made: u64,
}

struct Entry {
    limits: Limits,
    seed: u64,
    n_calls: u64,
    last_used: Instant,
    /// None while a request has it.
    session: Option<WorkerSession>,
}

impl Table {
    /// No sessions yet. `limits` are the widest that one can have.
    pub fn new(workers: Workers, limits: Limits, max_sessions: usize, idle: Duration) -> Table {
        Table { workers, limits, max_sessions, idle, state: Mutex::default() }
    }

    /// Nothing that panics is done under the lock but inserting and removing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's limits.
    pub fn limits_json(&self) -> Value {
        let mut value = limits_json(&self.limits);
        value["max_sessions"] = self.max_sessions.into();
        value["idle_timeout_s"] = self.idle.as_secs_f64().into();
        value
    }

    /// All sessions, oldest first.
    pub fn list(&self) -> Vec<Value> {
        self.lock().entries.iter().map(|(id, entry)| entry.json(id)).collect()
    }

    /// One session.
    pub fn describe(&self, id: &str) -> Result<Value, TableError> {
        let state = self.lock();
        let entry = state.entries.get(id).ok_or_else(|| TableError::Unknown(id.into()))?;
        Ok(entry.json(id))
    }

    /// A new session.
    pub fn create(&self, asked: &Asked, seed: u64) -> Result<Value, TableError> {
        let limits = asked.within(self.limits)?;
        self.add(limits, seed, 0, || self.workers.session(limits, seed))
    }

    /// A copy of a session, under an id of its own.
    pub fn fork(&self, id: &str) -> Result<Value, TableError> {
        let mut loan = self.take(id)?;
        let (limits, seed, n_calls) = (loan.limits, loan.seed, loan.n_calls);
        let session = loan.session.as_mut().expect("taken above");
        self.add(limits, seed, n_calls, || session.fork())
    }

    /// The session from its beginning again.
    pub fn reset(&self, id: &str) -> Result<Value, TableError> {
        let mut loan = self.take(id)?;
        let session = self.workers.session(loan.limits, loan.seed)?;
        loan.session = Some(session);
        loan.n_calls = 0;
        drop(loan);
        self.describe(id)
    }

    /// Runs code in a session.
    pub fn run(&self, id: &str, code: &str) -> Result<Outcome, TableError> {
        let mut loan = self.take(id)?;
        loan.n_calls += 1;
        Ok(loan.session.as_mut().expect("taken above").run(code))
    }

    /// Ends a session. A call that it runs is over within its limits, and its outcome still goes to who asked for it.
    pub fn delete(&self, id: &str) -> Result<(), TableError> {
        let removed = self.lock().entries.remove(id);
        removed.map(drop).ok_or_else(|| TableError::Unknown(id.into()))
    }

    /// Ends the sessions that nobody has used for too long.
    pub fn sweep(&self) {
        let mut state = self.lock();
        let is_idle = |entry: &Entry| entry.session.is_some() && entry.last_used.elapsed() >= self.idle;
        let ids: Vec<String> = state.entries.iter().filter(|(_, e)| is_idle(e)).map(|(id, _)| id.clone()).collect();
        let removed: Vec<_> = ids.iter().filter_map(|id| state.entries.remove(id)).collect();
        drop(state);
        // Waits for the processes, without the lock.
        drop(removed);
    }

    fn add(
        &self,
        limits: Limits,
        seed: u64,
        n_calls: u64,
        make: impl FnOnce() -> Result<WorkerSession, SandboxError>,
    ) -> Result<Value, TableError> {
        let mut state = self.lock();
        if state.entries.len() + state.n_coming >= self.max_sessions {
            return Err(TableError::Full(self.max_sessions));
        }
        state.n_coming += 1;
        drop(state);
        let made = make();
        let mut state = self.lock();
        state.n_coming -= 1;
        let entry = Entry { limits, seed, n_calls, last_used: Instant::now(), session: Some(made?) };
        state.n_made += 1;
        // Padded, so that the order of names is the order of age.
        let id = format!("s{:06}", state.n_made);
        let value = entry.json(&id);
        state.entries.insert(id, entry);
        Ok(value)
    }

    fn take(&self, id: &str) -> Result<Loan<'_>, TableError> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(id).ok_or_else(|| TableError::Unknown(id.into()))?;
        let session = entry.session.take().ok_or_else(|| TableError::Busy(id.into()))?;
        let (limits, seed, n_calls) = (entry.limits, entry.seed, entry.n_calls);
        Ok(Loan { table: self, id: id.to_owned(), limits, seed, n_calls, session: Some(session) })
    }
}

/// A session that a request has; it goes back when the request is done.
struct Loan<'a> {
    table: &'a Table,
    id: String,
    limits: Limits,
    seed: u64,
    n_calls: u64,
    session: Option<WorkerSession>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let mut state = self.table.lock();
        // A session that was deleted meanwhile ends here, when the loan's fields are dropped.
        if let Some(entry) = state.entries.get_mut(&self.id) {
            (entry.session, entry.n_calls, entry.last_used) = (self.session.take(), self.n_calls, Instant::now());
        }
    }
}

impl Entry {
    fn json(&self, id: &str) -> Value {
        json!({
            "id": id,
            "seed": self.seed,
            "n_calls": self.n_calls,
            "busy": self.session.is_none(),
            "idle_s": self.last_used.elapsed().as_secs(),
            "limits": limits_json(&self.limits),
        })
    }
}

fn limits_json(limits: &Limits) -> Value {
    let Limits { time_ms, grace_ms, memory_bytes, output_bytes, n_calls, allow_clock } = limits;
    // No limit is no number.
    let n_calls = (*n_calls < u64::MAX).then_some(n_calls);
    json!({
        "time_ms": time_ms, "grace_ms": grace_ms, "memory_bytes": memory_bytes, "output_bytes": output_bytes,
        "n_calls": n_calls, "allow_clock": allow_clock,
    })
}
