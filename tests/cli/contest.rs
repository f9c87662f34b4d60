//! The contest's notebook cell: its logic with Python's standard library, against the program. The gateway itself is
//! `cargo xtask contest`'s business.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::tiny::Tiny;

#[test]
fn the_notebook_cell_hands_problems_over() {
    let has_python = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !has_python.is_ok_and(|s| s.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let model = Tiny::default().write(dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contest/test_cell.py");
    let done = Command::new("python3")
        .args(["-W", "ignore::ResourceWarning"])
        .arg(script)
        .env("AIMO_ENGINE", env!("CARGO_BIN_EXE_aimo-engine"))
        .env("AIMO_MODEL", model)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && text.contains("OK"), "{text}");
}
