//! Starting the program and looking at what it did.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// What a finished process left.
pub struct Done {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn from(output: Output) -> Done {
        Done {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("standard output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("standard error is UTF-8"),
        }
    }

    /// Asserts success and gives standard output.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts success and gives standard output as JSON.
    pub fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }

    /// Asserts one `error:` line, a next step, the exit status 1, and that each of `parts` is named.
    pub fn fails_naming(self, parts: &[&str]) {
        assert_eq!(self.status, 1, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        let errors = self.stderr.lines().filter(|l| l.starts_with("error: ")).count();
        assert_eq!(errors, 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
        self.has_no_trace();
    }

    /// Asserts wrong usage, and that `part` is named.
    pub fn refuses_usage(self, part: &str) {
        assert_eq!(self.status, 2, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        self.has_no_trace();
    }

    /// Asserts that nothing panicked.
    pub fn has_no_trace(&self) {
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.stderr.contains(word), "{}", self.stderr);
        }
    }
}

/// The program, without a terminal, where folders of runs may be made.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aimo-engine"));
    command.stdin(Stdio::null()).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs the program to its end.
pub fn aimo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Done {
    Done::from(command().args(args).output().expect("the program starts"))
}

/// A real model where it is there; says so where it isn't.
pub fn real_model(file: &str) -> Option<PathBuf> {
    let from_env = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = from_env("AIMO_MODELS_DIR")
        .or_else(|| from_env("XDG_CACHE_HOME").map(|d| d.join("aimo-engine/models")))
        .or_else(|| from_env("HOME").map(|d| d.join(".cache/aimo-engine/models")))?;
    let path = dir.join(file);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there (`cargo xtask models` fetches models)", path.display());
    None
}

/// A file of the reference data beside the checkout, where it is there.
pub fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}
