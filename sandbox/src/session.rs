//! A Python session: names persist from call to call; a call that is ended by force leaves no trace.
//!
//! Owns one instance of the interpreter, the limits, and the checkpoint that a stopped call is undone with. Called by
//! whoever runs code; not shared between threads, but it may move. Surprising fact: a call runs on a stack of its own, far
//! larger than the calling thread's (`stack`).

use crate::{
    alarm::Alarm,
    brake::Deadlines,
    cpython::Files,
    guest::{self, Calls, Reply, Request},
    outcome::{Completeness, Limits, Outcome, SandboxError, Status},
    output::Output,
    pages::Checkpoint,
    python::Inner,
    stack::on_large_stack,
    wasi::{Host, Random, Stop},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use wasmtime::{Memory, Store, Trap};

/// Answering whether code is complete takes microseconds; this bounds hostile code.
const COMPLETENESS_LIMIT: Duration = Duration::from_secs(2);
/// An exception that is raised because the time is over is raised again this often until the grace is over.
const N_TIMEOUTS: u32 = 4;
/// `MemoryError` is raised when no more than this part of a session's memory, the image aside, is left.
const SPARE_MEMORY: usize = 8;
/// Preparing a fresh session is our own code.
const SEED_LIMIT: Duration = Duration::from_secs(10);

/// One user's interpreter.
pub struct Session {
    python: Arc<Inner>,
    limits: Limits,
    seed: u64,
    live: Live,
    /// The memory as it was before the current call, once there has been one.
    checkpoint: Option<Checkpoint>,
    /// Whether the checkpoint is the memory as it is now.
    is_saved: bool,
    n_calls: u64,
}

/// An instance and the functions it exports.
pub(crate) struct Live {
    store: Store<Host>,
    memory: Memory,
    calls: Calls,
}

/// What the host knows of a session and its memory doesn't hold.
#[derive(Clone)]
struct Beside {
    random: Random,
    files: Files,
}

impl Session {
    pub(crate) fn new(
        python: Arc<Inner>,
        warm: Option<Live>,
        limits: Limits,
        seed: u64,
    ) -> Result<Session, SandboxError> {
        python.check(limits)?;
        let mut live = warm.map_or_else(|| Live::new(&python), Ok)?;
        live.seed(&python, limits, seed)?;
        Ok(Session { python, limits, seed, live, checkpoint: None, is_saved: false, n_calls: 0 })
    }

    /// Changes the limits of the calls to come. The memory that the session already has is kept.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), SandboxError> {
        self.python.check(limits)?;
        self.limits = limits;
        self.live.limit(&self.python, limits);
        Ok(())
    }

    /// Runs `code` as one notebook cell. Whatever it does, the session can be used afterwards.
    pub fn run(&mut self, code: &str) -> Outcome {
        if self.n_calls >= self.limits.n_calls {
            return self.no_calls_left();
        }
        self.n_calls += 1;
        let started = Instant::now();
        self.save();
        self.is_saved = false;
        let beside = self.live.beside();
        let [time, grace] = [self.limits.time_ms, self.limits.grace_ms].map(Duration::from_millis);
        self.live.begin(self.limits, time, grace);
        let ended = self.live.ask(Request::Run(code.to_owned()));
        let elapsed_ms = started.elapsed().as_millis() as u64;
        let rolled_back = ended.is_err();
        let (status, note) = match ended {
            Ok(reply) => self.live.outcome_of(reply, self.limits),
            Err(error) => {
                let status = self.live.status_of(&error, self.limits);
                let note = self.note(&status, beside);
                (status, Some(note))
            }
        };
        let (mut output, truncated_bytes) = self.live.take_output(self.limits).finish();
        if let Some(note) = note {
            if !output.is_empty() && !output.ends_with('\n') {
                output.push('\n');
            }
            output.push_str(&note);
            output.push('\n');
        }
        Outcome { status, output, elapsed_ms, truncated_bytes, rolled_back }
    }

    fn no_calls_left(&self) -> Outcome {
        let limit = self.limits.n_calls;
        Outcome {
            status: Status::NoCallsLeft { limit },
            output: format!("[limit of {limit} calls reached; nothing was run]\n"),
            elapsed_ms: 0,
            truncated_bytes: 0,
            rolled_back: false,
        }
    }

    /// The session as it is now, to make others of. Costs a copy of the memory that it has written since its last call
    /// began, and shares the rest.
    pub fn snapshot(&self) -> Snapshot {
        let Live { store, memory, .. } = &self.live;
        let checkpoint = Checkpoint::of(memory.data(store), store.data().brake.chunks(), self.checkpoint.as_ref());
        Snapshot {
            python: Arc::clone(&self.python),
            limits: self.limits,
            seed: self.seed,
            checkpoint: Arc::new(checkpoint),
            beside: self.live.beside(),
            clock: self.live.store.data().started.elapsed(),
            n_calls: self.n_calls,
        }
    }

    /// A second session that goes on from where this one is; neither sees what the other does from now on.
    pub fn fork(&self) -> Result<Session, SandboxError> {
        self.snapshot().session()
    }

    /// Whether `code` is a whole cell or needs more lines, as the interactive interpreter decides it.
    pub fn is_complete(&mut self, code: &str) -> Completeness {
        self.save();
        self.is_saved = false;
        let beside = self.live.beside();
        self.live.begin(self.limits, COMPLETENESS_LIMIT, Duration::ZERO);
        let answer = self.live.ask(Request::IsComplete(code.to_owned()));
        self.live.take_output(self.limits);
        match answer.map(|reply| reply.status) {
            Ok(0) => Completeness::Complete,
            Ok(1) => Completeness::Incomplete,
            Ok(_) => Completeness::Invalid,
            Err(_) => {
                // Code that breaks the parser breaks `run` too, which reports it.
                let _ = self.roll_back(beside);
                Completeness::Invalid
            }
        }
    }

    /// Remembers the memory as it is before the next call. Before the first one it is the image, and nothing has to be
    /// remembered.
    pub(crate) fn save(&mut self) {
        if self.is_saved {
            return;
        }
        self.is_saved = true;
        match &mut self.checkpoint {
            None => self.checkpoint = Some(Checkpoint::default()),
            Some(checkpoint) => {
                let Live { store, memory, .. } = &self.live;
                checkpoint.update(memory.data(store), store.data().brake.chunks());
            }
        }
    }

    /// Undoes the call that just ended by force and says so.
    fn note(&mut self, status: &Status, beside: Beside) -> String {
        let what = match status {
            Status::TimedOut { limit_ms } => format!("time limit of {} s reached", *limit_ms as f64 / 1e3),
            Status::OutOfMemory { limit_bytes } => format!("memory limit of {} MiB reached", limit_bytes >> 20),
            Status::Exited { code } => format!("the code ended the process with status {code}"),
            Status::Crashed { reason } => format!("the interpreter crashed: {reason}"),
            Status::Ok | Status::Exception { .. } | Status::NoCallsLeft { .. } => {
                unreachable!("the call ended by itself: {status:?}")
            }
        };
        match self.roll_back(beside) {
            Ok(()) => format!("[{what}; the session was restored to its state before this cell]"),
            Err(error) => format!("[{what}; the session could not be restored: {error}]"),
        }
    }

    /// Replaces the instance by a fresh one with the memory of the checkpoint. The output so far is carried over.
    fn roll_back(&mut self, beside: Beside) -> Result<(), SandboxError> {
        let n_bytes = self.checkpoint.as_ref().map_or(0, Checkpoint::memory_bytes);
        let mut fresh = Live::new(&self.python)?;
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|_| n_bytes > 0) {
            fresh.limit(&self.python, self.limits);
            fresh.restore(checkpoint, beside)?;
        } else {
            fresh.seed(&self.python, self.limits, self.seed)?;
            self.checkpoint = None;
        }
        if let Some(checkpoint) = &mut self.checkpoint {
            checkpoint.memory_was_replaced();
        }
        fresh.store.data_mut().output = self.live.take_output(self.limits);
        fresh.store.data_mut().started = self.live.store.data().started;
        self.live = fresh;
        Ok(())
    }
}

/// A session at one moment; any number of sessions can go on from there.
#[derive(Clone)]
pub struct Snapshot {
    python: Arc<Inner>,
    limits: Limits,
    seed: u64,
    checkpoint: Arc<Checkpoint>,
    beside: Beside,
    /// What the session's clock showed.
    clock: Duration,
    n_calls: u64,
}

impl Snapshot {
    /// A session with the names and values, the random state, the clock and the limits of that moment.
    pub fn session(&self) -> Result<Session, SandboxError> {
        self.python.check(self.limits)?;
        let mut live = Live::new(&self.python)?;
        live.limit(&self.python, self.limits);
        live.restore(&self.checkpoint, self.beside.clone())?;
        let host = live.store.data_mut();
        host.started = Instant::now().checked_sub(self.clock).unwrap_or(host.started);
        // The first call of the new session has to find the state to return to.
        let checkpoint = Some(Checkpoint::default());
        let (python, n_calls) = (Arc::clone(&self.python), self.n_calls);
        Ok(Session { python, limits: self.limits, seed: self.seed, live, checkpoint, is_saved: false, n_calls })
    }

    /// The snapshot for another process that runs the same interpreter. What the session has open stays behind.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let clock_ms = u64::try_from(self.clock.as_millis()).unwrap_or(u64::MAX);
        let mut bytes = Vec::new();
        for number in [self.seed, self.beside.random.0, clock_ms, self.n_calls] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        self.checkpoint.encode(&mut bytes);
        bytes
    }

    /// The snapshot that `encode` wrote, or None for anything else.
    pub(crate) fn decode(python: Arc<Inner>, limits: Limits, bytes: &[u8]) -> Option<Snapshot> {
        let (head, pages) = bytes.split_first_chunk::<32>()?;
        let number = |i: usize| u64::from_le_bytes(head[8 * i..][..8].try_into().expect("eight bytes"));
        let checkpoint = Arc::new(Checkpoint::decode(pages)?);
        let (seed, clock) = (number(0), Duration::from_millis(number(2)));
        let beside = Beside { random: Random(number(1)), files: python.guest.files() };
        Some(Snapshot { python, limits, seed, checkpoint, beside, clock, n_calls: number(3) })
    }

    /// Memory that the snapshot holds, in bytes.
    pub fn n_bytes(&self) -> usize {
        self.checkpoint.n_bytes()
    }
}

impl Live {
    /// A fresh instance, not limited and not seeded yet.
    pub(crate) fn new(python: &Inner) -> Result<Live, SandboxError> {
        let host = Host::new(python.image_bytes as usize, 0);
        let mut store = Store::new(&python.engine, host);
        store.limiter(|host| host);
        let instance = python.instance.instantiate(&mut store).map_err(session_error)?;
        let memory = instance
            .get_memory(&mut store, "memory")
            .ok_or_else(|| SandboxError::Session { reason: "the interpreter exports no memory".into() })?;
        let calls = python.guest.begin(&mut store, &instance, memory).map_err(session_error)?;
        Ok(Live { calls, memory, store })
    }

    fn limit(&mut self, python: &Inner, limits: Limits) {
        let (hard, image) = (limit_bytes(limits), python.image_bytes as usize);
        let host = self.store.data_mut();
        host.limit_bytes = hard;
        host.allow_clock = limits.allow_clock;
        host.soft_limit_bytes = hard - hard.saturating_sub(image) / SPARE_MEMORY;
    }

    /// Writes a checkpoint into a fresh instance.
    fn restore(&mut self, checkpoint: &Checkpoint, beside: Beside) -> Result<(), SandboxError> {
        let missing_bytes = checkpoint.memory_bytes().saturating_sub(self.memory.data_size(&self.store)) as u64;
        let missing_pages = missing_bytes.div_ceil(self.memory.page_size(&self.store));
        self.memory.grow(&mut self.store, missing_pages).map_err(session_error)?;
        checkpoint.restore(self.memory.data_mut(&mut self.store));
        let host = self.store.data_mut();
        host.random = beside.random;
        host.files = beside.files;
        Ok(())
    }

    /// Makes a fresh instance a session's: its limits, its clock, and random generators that are the seed's own.
    fn seed(&mut self, python: &Inner, limits: Limits, seed: u64) -> Result<(), SandboxError> {
        self.limit(python, limits);
        let host = self.store.data_mut();
        host.random = Random(seed);
        host.started = Instant::now();
        self.begin(limits, SEED_LIMIT, Duration::ZERO);
        let reply = self.ask(Request::Seed(seed)).map_err(session_error)?;
        let said = self.take_output(limits).finish().0;
        if reply.status != guest::OK {
            return Err(SandboxError::Session { reason: format!("seeding failed: {said}") });
        }
        Ok(())
    }

    /// Starts the clock and empties the output. A `grace` makes the end of `time` a mild one: by force only after it.
    fn begin(&mut self, limits: Limits, time: Duration, grace: Duration) {
        let n_bytes = self.memory.data_size(&self.store);
        let host = self.store.data_mut();
        let half_of_rest = host.limit_bytes.saturating_sub(n_bytes) / 2;
        host.call_soft_limit_bytes = host.soft_limit_bytes.max(n_bytes.saturating_add(half_of_rest));
        let end = Instant::now() + time;
        let soft = (!grace.is_zero()).then_some(end);
        host.brake.set(Deadlines { hard: end + grace, soft, repeat: grace / N_TIMEOUTS });
        host.refused_memory = false;
        host.output = Output::new(limits.output_bytes);
    }

    /// What the host keeps for this session, as it is now.
    fn beside(&self) -> Beside {
        let host = self.store.data();
        Beside { random: host.random, files: host.files.opened() }
    }

    /// Asks the interpreter for something, with a large stack.
    fn ask(&mut self, request: Request) -> wasmtime::Result<Reply> {
        let Live { store, memory, calls } = self;
        let brake = Arc::clone(&store.data().brake);
        let n_bytes = memory.data_size(&*store);
        // Ended by force once its deadline has passed.
        let (result, was_stopped) = on_large_stack(|| {
            brake.during(n_bytes, || {
                let _alarm = Alarm::set(&brake);
                calls.ask(store, *memory, request)
            })
        })?;
        // Memory that was taken away looks like memory that isn't there.
        let is_out_of_bounds = |error: &wasmtime::Error| error.downcast_ref() == Some(&Trap::MemoryOutOfBounds);
        result.map_err(|error| if was_stopped && is_out_of_bounds(&error) { Stop::Deadline.into() } else { error })
    }

    /// How a call that returned by itself ended.
    fn outcome_of(&mut self, reply: Reply, limits: Limits) -> (Status, Option<String>) {
        let Reply { status, kind, message } = reply;
        let status = match status {
            guest::OK if !self.is_overdue() => Status::Ok,
            guest::OK | guest::EXCEPTION if status == guest::OK || is_timeout(&kind, self.store.data()) => {
                let what = format!("time limit of {} s reached", limits.time_ms as f64 / 1e3);
                let note = format!("[{what}; the names bound so far are kept]");
                return (Status::TimedOut { limit_ms: limits.time_ms }, Some(note));
            }
            guest::EXCEPTION => Status::Exception { kind, message },
            guest::EXITED => Status::Exited { code: message.parse().unwrap_or(1) },
            other => Status::Crashed { reason: format!("the interpreter returned {other}") },
        };
        (status, None)
    }

    /// Whether the time was over before the call ended, and the code ended before the exception reached it: a sleep that
    /// was cut short at the very end of a cell.
    fn is_overdue(&self) -> bool {
        self.store.data().brake.is_time_pending(self.memory.data(&self.store))
    }

    /// How a call that was ended by force ended.
    fn status_of(&self, error: &wasmtime::Error, limits: Limits) -> Status {
        match (error.downcast_ref::<Stop>(), error.downcast_ref::<Trap>()) {
            (Some(Stop::Deadline), _) => Status::TimedOut { limit_ms: limits.time_ms },
            (Some(Stop::Exit(code)), _) => Status::Exited { code: *code },
            // An allocation that was refused ends in an abort, which the module does by `unreachable`.
            (None, Some(Trap::UnreachableCodeReached)) if self.store.data().refused_memory => {
                Status::OutOfMemory { limit_bytes: limits.memory_bytes }
            }
            // The guest's stack lies below everything else: overflowing it leaves the memory.
            (None, Some(Trap::StackOverflow | Trap::MemoryOutOfBounds)) => {
                Status::Crashed { reason: "its stack overflowed (too deeply nested code or data)".into() }
            }
            (None, Some(trap)) => Status::Crashed { reason: trap.to_string() },
            (None, None) => Status::Crashed { reason: format!("{error:#}") },
        }
    }

    fn take_output(&mut self, limits: Limits) -> Output {
        std::mem::replace(&mut self.store.data_mut().output, Output::new(limits.output_bytes))
    }
}

/// Whether an exception of this kind is the one that the host had raised.
fn is_timeout(kind: &str, host: &Host) -> bool {
    kind == "TimeoutError" && host.brake.raised_timeout()
}

fn limit_bytes(limits: Limits) -> usize {
    usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX)
}

fn session_error(error: wasmtime::Error) -> SandboxError {
    SandboxError::Session { reason: format!("{error:#}") }
}
