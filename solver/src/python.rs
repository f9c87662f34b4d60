//! The real sandbox as an [`Interpreter`]: nothing but the translation of names and errors.

use sandbox::{Limits, Outcome, Python, Session};

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
