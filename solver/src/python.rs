//! The real sandbox as an [`Interpreter`], in this process or in worker processes: nothing but the translation of names
//! and errors.

use sandbox::{Limits, Outcome, Python, Session, WorkerSession, Workers};

use crate::tool::{Interpreter, PythonSession};

impl Interpreter for Python {
    fn session(&self, limits: &Limits, seed: u64) -> Result<Box<dyn PythonSession>, String> {
        match Python::session(self, *limits, seed) {
            Ok(session) => Ok(Box::new(session)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl PythonSession for Session {
    fn run(&mut self, code: &str) -> Outcome {
        Session::run(self, code)
    }
}

impl Interpreter for Workers {
    fn session(&self, limits: &Limits, seed: u64) -> Result<Box<dyn PythonSession>, String> {
        match Workers::session(self, *limits, seed) {
            Ok(session) => Ok(Box::new(session)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl PythonSession for WorkerSession {
    fn run(&mut self, code: &str) -> Outcome {
        WorkerSession::run(self, code)
    }
}
