//! What every test file shares: one loaded interpreter per process.

use sandbox::{Limits, Outcome, Python, Session, Status};
use std::sync::OnceLock;

/// The interpreter, compiled on the first run on a machine.
pub fn python() -> &'static Python {
    static PYTHON: OnceLock<Python> = OnceLock::new();
    PYTHON.get_or_init(|| {
        Python::load(&mut |progress| eprintln!("[{}/{}] {}", progress.step, progress.n_steps, progress.stage))
            .expect("the interpreter loads")
    })
}

/// A session with time enough for a busy machine.
pub fn session() -> Session {
    session_with(Limits { time_ms: 60_000, ..Limits::default() })
}

pub fn session_with(limits: Limits) -> Session {
    python().session(limits, 7).expect("a session starts")
}

/// Runs code that must end by itself without an exception; returns its output.
pub fn output(session: &mut Session, code: &str) -> String {
    let outcome = session.run(code);
    assert_eq!(outcome.status, Status::Ok, "{code}\n{}", outcome.output);
    outcome.output
}

/// Runs code that must raise `kind`; returns the outcome.
pub fn raises(session: &mut Session, code: &str, kind: &str) -> Outcome {
    let outcome = session.run(code);
    match &outcome.status {
        Status::Exception { kind: raised, .. } => assert_eq!(raised, kind, "{code}\n{}", outcome.output),
        other => panic!("{code}: {other:?}\n{}", outcome.output),
    }
    outcome
}
