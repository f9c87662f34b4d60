//! Running other programs: every command is shown before it runs, and a failure names the command.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Shows a step of a task.
pub fn step(text: &str) {
    eprintln!("==> {text}");
}

/// Runs `command` with its output on the terminal; its exit status must be 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    eprintln!("  $ {line}");
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// Standard output of `command` where it ends with status 0; `None` where it fails or isn't installed.
pub fn capture(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command that runs as root: directly, or through sudo.
pub fn as_root(program: &str) -> Result<Command> {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata("/proc/self").context("cannot tell which user this is")?.uid() == 0 {
        return Ok(Command::new(program));
    }
    if capture(Command::new("sudo").arg("--version")).is_none() {
        bail!("`{program}` has to run as root and there is no sudo: run this task once as root");
    }
    let mut command = Command::new("sudo");
    if !std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        command.arg("-n");
    }
    command.arg(program);
    Ok(command)
}

/// Writes a file that belongs to root.
pub fn write_as_root(path: &str, text: &str) -> Result<()> {
    let mut child = as_root("tee")?
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot write {path}"))?;
    child.stdin.take().expect("stdin is piped").write_all(text.as_bytes())?;
    let status = child.wait()?;
    if !status.success() {
        bail!("cannot write {path} ({status})");
    }
    Ok(())
}

fn display(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|a| a.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
