//! Python for many attempts at once: a session per attempt, each call on a thread of its own, so that the other
//! attempts go on generating meanwhile.
//!
//! [`Workers`] makes a session with an attempt's first call and hands out results as they come. It trusts no
//! interpreter: one that panics, can't start or outlives its own limit gives an outcome that says so, and the next
//! call gets a fresh session. Called by `rollout`.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use sandbox::{Limits, Outcome, Status};

/// Makes Python sessions.
pub trait Interpreter: Send + Sync {
    /// A fresh session with its own random state. The error says why there is none.
    fn session(&self, limits: &Limits, seed: u64) -> Result<Box<dyn PythonSession>, String>;
}

/// Runs code; names stay from call to call.
pub trait PythonSession: Send {
    /// Runs one block to its end or its limit.
    fn run(&mut self, code: &str) -> Outcome;
}

/// What a session may take beyond its time limit before it is given up.
const GRACE: Duration = Duration::from_secs(10);

/// The sessions of one problem's attempts.
pub struct Workers {
    python: Arc<dyn Interpreter>,
    limits: Limits,
    slots: Vec<Slot>,
    sender: Sender<Finished>,
    finished: Receiver<Finished>,
}

struct Slot {
    seed: u64,
    session: Option<Box<dyn PythonSession>>,
    /// The call that is under way, and when it is given up.
    call: Option<(u64, Instant)>,
    n_calls: u64,
}

struct Finished {
    slot: usize,
    call: u64,
    session: Option<Box<dyn PythonSession>>,
    outcome: Outcome,
}

impl Workers {
    /// One slot per seed; nothing is started yet.
    pub fn new(python: Arc<dyn Interpreter>, limits: Limits, seeds: impl IntoIterator<Item = u64>) -> Workers {
        let (sender, finished) = channel();
        let slots =
            seeds.into_iter().map(|seed| Slot { seed, session: None, call: None, n_calls: 0 }).collect::<Vec<_>>();
        Workers { python, limits, slots, sender, finished }
    }

    /// Runs code in a slot's session. A slot runs one call at a time.
    pub fn call(&mut self, slot: usize, code: String) {
        let entry = &mut self.slots[slot];
        assert!(entry.call.is_none(), "slot {slot} already runs call {:?}", entry.call);
        entry.n_calls += 1;
        let call = entry.n_calls;
        entry.call =
            Some((call, Instant::now() + Duration::from_millis(self.limits.time_ms + self.limits.grace_ms) + GRACE));
        let (session, seed) = (entry.session.take(), entry.seed);
        let (python, limits, sender) = (Arc::clone(&self.python), self.limits, self.sender.clone());
        let work = move || {
            let started = Instant::now();
            let (session, outcome) =
                match catch_unwind(AssertUnwindSafe(|| run(&*python, &limits, seed, session, &code))) {
                    Ok((session, outcome)) => (session, outcome),
                    Err(panic) => (None, crashed(panic_message(&*panic), started.elapsed())),
                };
            // Nobody listens any more where the problem has ended meanwhile.
            sender.send(Finished { slot, call, session, outcome }).ok();
        };
        if let Err(error) = std::thread::Builder::new().name(format!("python-{slot}")).spawn(work) {
            let outcome = crashed(format!("no thread for it: {error}"), Duration::ZERO);
            self.sender.send(Finished { slot, call, session: None, outcome }).ok();
        }
    }

    /// Whether any call is under way.
    pub fn is_busy(&self) -> bool {
        self.slots.iter().any(|s| s.call.is_some())
    }

    /// The next finished call as slot and outcome, waiting for it no longer than `wait`.
    pub fn poll(&mut self, wait: Duration) -> Option<(usize, Outcome)> {
        let until = Instant::now() + wait;
        loop {
            match self.finished.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(done) if self.slots[done.slot].call.is_some_and(|(call, _)| call == done.call) => {
                    let slot = &mut self.slots[done.slot];
                    slot.call = None;
                    slot.session = done.session;
                    return Some((done.slot, done.outcome));
                }
                // The result of a call that was given up.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return self.overdue(),
            }
        }
    }

    fn overdue(&mut self) -> Option<(usize, Outcome)> {
        let now = Instant::now();
        let late = |s: &Slot| s.call.is_some_and(|(_, give_up)| give_up <= now);
        let slot = self.slots.iter().position(late)?;
        self.slots[slot].call = None;
        let waited = Duration::from_millis(self.limits.time_ms + self.limits.grace_ms) + GRACE;
        Some((slot, crashed("the session did not come back; its names are lost".to_string(), waited)))
    }
}

fn run(
    python: &dyn Interpreter,
    limits: &Limits,
    seed: u64,
    session: Option<Box<dyn PythonSession>>,
    code: &str,
) -> (Option<Box<dyn PythonSession>>, Outcome) {
    let session = match session {
        Some(session) => Ok(session),
        None => python.session(limits, seed),
    };
    match session {
        Ok(mut session) => {
            let outcome = session.run(code);
            (Some(session), outcome)
        }
        Err(reason) => (None, crashed(reason, Duration::ZERO)),
    }
}

fn crashed(reason: String, elapsed: Duration) -> Outcome {
    Outcome {
        output: format!("[Python failed: {reason}]"),
        status: Status::Crashed { reason },
        elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        truncated_bytes: 0,
        rolled_back: false,
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_string())
}

/// Whether a block did what its author meant: it ran to its end or left by `exit()`.
pub fn is_error(status: &Status) -> bool {
    !matches!(status, Status::Ok | Status::Exited { .. })
}

/// Keeps the head and the tail of a text that is longer than `max_chars`, and says how much is left out.
pub fn cut_middle(text: &str, max_chars: usize) -> String {
    let n_chars = text.chars().count();
    if n_chars <= max_chars {
        return text.to_string();
    }
    let (head, tail) = (max_chars.div_ceil(2), max_chars / 2);
    let at = |char_idx: usize| text.char_indices().nth(char_idx).map_or(text.len(), |(i, _)| i);
    let (head_end, tail_start) = (at(head), at(n_chars - tail));
    format!("{}\n[... {} characters left out ...]\n{}", &text[..head_end], n_chars - head - tail, &text[tail_start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePython;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_session_is_kept_from_call_to_call() {
        let python = Arc::new(FakePython::counting());
        let mut workers = Workers::new(python.clone(), Limits::default(), [1, 2]);
        assert!(!workers.is_busy());
        for expected in ["call 1 of seed 2", "call 2 of seed 2"] {
            workers.call(1, "x".to_string());
            assert!(workers.is_busy());
            let (slot, outcome) = workers.poll(LONG).expect("a result");
            assert_eq!((slot, outcome.output.as_str()), (1, expected));
        }
        assert_eq!(python.n_sessions(), 1, "no session for a slot that made no call");
        assert!(workers.poll(Duration::ZERO).is_none());
    }

    #[test]
    fn an_interpreter_that_fails_gives_an_outcome_and_then_a_fresh_session() {
        let python = Arc::new(FakePython::new(|code, n| match code {
            "panic" => panic!("boom"),
            _ => FakePython::ok(&format!("call {n}")),
        }));
        let mut workers = Workers::new(python.clone(), Limits::default(), [1]);
        workers.call(0, "a".to_string());
        assert_eq!(workers.poll(LONG).unwrap().1.output, "call 1");
        workers.call(0, "panic".to_string());
        let outcome = workers.poll(LONG).unwrap().1;
        assert_eq!(outcome.status, Status::Crashed { reason: "boom".to_string() });
        assert!(is_error(&outcome.status));
        workers.call(0, "a".to_string());
        assert_eq!(workers.poll(LONG).unwrap().1.output, "call 1");
        assert_eq!(python.n_sessions(), 2);
    }

    #[test]
    fn a_session_that_cannot_start_is_an_outcome() {
        let mut workers = Workers::new(Arc::new(FakePython::broken("no memory")), Limits::default(), [1]);
        workers.call(0, "a".to_string());
        assert_eq!(workers.poll(LONG).unwrap().1.output, "[Python failed: no memory]");
    }

    #[test]
    fn a_call_that_never_comes_back_is_given_up() {
        let (release, held) = channel::<()>();
        let held = std::sync::Mutex::new(held);
        let python = Arc::new(FakePython::new(move |_, _| {
            held.lock().unwrap().recv().ok();
            FakePython::ok("late")
        }));
        let mut workers = Workers::new(python, Limits::default(), [1]);
        workers.call(0, "a".to_string());
        assert!(workers.poll(Duration::ZERO).is_none(), "not overdue yet");
        workers.slots[0].call = workers.slots[0].call.map(|(call, _)| (call, Instant::now()));
        let (_, outcome) = workers.poll(Duration::ZERO).expect("given up");
        assert!(matches!(outcome.status, Status::Crashed { .. }), "{outcome:?}");
        assert!(!workers.is_busy());
        release.send(()).unwrap();
        assert!(workers.poll(Duration::from_millis(50)).is_none(), "the late result is dropped");
    }

    #[test]
    fn long_output_keeps_its_head_and_tail() {
        assert_eq!(cut_middle("abcdef", 6), "abcdef");
        assert_eq!(cut_middle("abcdefg", 6), "abc\n[... 1 characters left out ...]\nefg");
        assert_eq!(cut_middle("éééééé", 3), "éé\n[... 3 characters left out ...]\né");
    }
}
