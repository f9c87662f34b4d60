//! `aimo-engine python`: Python in the sandbox, as a REPL, from a file or from an argument. What is printed is what a
//! notebook cell would show.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use sandbox::{Completeness, Limits, Outcome, Python, Session, Status};

use crate::args::{at_least_one, seconds};
use crate::commands::read_text;
use crate::failure::Failure;

/// Most output that one run prints.
const OUTPUT_BYTES: usize = 16 << 20;

/// Arguments of `python`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with the code; - for standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The code
    #[arg(short = 'c', long = "code", value_name = "CODE", conflicts_with = "file")]
    code: Option<String>,
    /// Time limit of a run, or of each input of the REPL
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f64,
    /// Memory limit in MiB, the interpreter's own included
    #[arg(long, value_name = "MB", default_value_t = 1024, value_parser = at_least_one)]
    memory: usize,
    /// Seed of Python's random numbers
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    let is_repl = args.code.is_none() && args.file.is_none() && std::io::stdin().is_terminal();
    // The code is read before the interpreter is prepared: a wrong path fails at once.
    let code = match (&args.code, &args.file) {
        (Some(code), _) => Some(code.clone()),
        (None, Some(path)) => Some(read_text(path)?),
        (None, None) if is_repl => None,
        (None, None) => Some(read_text(Path::new("-"))?),
    };
    let limits = Limits {
        time_ms: (args.timeout * 1e3).ceil() as u64,
        memory_bytes: (args.memory as u64).saturating_mul(1 << 20),
        output_bytes: OUTPUT_BYTES,
    };
    let python = load_python(quiet)?;
    let mut session = python.session(limits, args.seed).map_err(|e| Failure::plain(e.to_string()))?;
    match code {
        Some(code) => {
            let outcome = session.run(&code);
            print(&outcome, out)?;
            exit_status(&outcome.status)
        }
        None => repl(&mut session, out),
    }
}

/// Prepares the sandbox, with its stages on standard error when there is more than one.
pub fn load_python(quiet: bool) -> Result<Python, Failure> {
    Python::load(&mut |progress| {
        if !quiet && progress.n_steps > 1 {
            eprintln!("{} (step {} of {}, once)", progress.stage, progress.step, progress.n_steps);
        }
    })
    .map_err(|e| Failure::plain(e.to_string()))
}

fn print(outcome: &Outcome, out: &mut impl Write) -> Result<(), Failure> {
    out.write_all(outcome.output.as_bytes())?;
    if !outcome.output.is_empty() && !outcome.output.ends_with('\n') {
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}

/// 0 for code that ran to its end; its own status for `sys.exit`; 1 for an exception or a limit.
fn exit_status(status: &Status) -> Result<(), Failure> {
    match status {
        Status::Ok | Status::Exited { code: 0 } => Ok(()),
        Status::Exited { code } => Err(Failure::Status((code & 0xff) as u8)),
        _ => Err(Failure::Status(1)),
    }
}

fn repl(session: &mut Session, out: &mut impl Write) -> Result<(), Failure> {
    let mut editor = rustyline::DefaultEditor::new().map_err(|e| {
        Failure::new(format!("cannot read from the terminal: {e}"), "give the code with -c or as a file")
    })?;
    writeln!(out, "Python in the sandbox: no files, no network. Ctrl-D ends it.")?;
    let mut code = String::new();
    loop {
        match editor.readline(if code.is_empty() { ">>> " } else { "... " }) {
            Ok(line) => {
                let is_blank = line.trim().is_empty();
                if code.is_empty() && is_blank {
                    continue;
                }
                code.push_str(&line);
                code.push('\n');
                if wants_more(session, &code, is_blank) {
                    continue;
                }
                // The history's only failure is a full or unwritable store, and it is kept in memory.
                let _ = editor.add_history_entry(code.trim_end());
                let outcome = session.run(&code);
                code.clear();
                print(&outcome, out)?;
                if matches!(outcome.status, Status::Exited { .. }) {
                    return exit_status(&outcome.status);
                }
            }
            Err(ReadlineError::Interrupted) => code.clear(),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(Failure::plain(format!("cannot read from the terminal: {e}"))),
        }
    }
}

/// Whether a continuation line is asked for: something is open, or an indented block could go on. An empty line ends
/// a block, as in Python's own REPL.
fn wants_more(session: &mut Session, code: &str, last_is_blank: bool) -> bool {
    match session.is_complete(code) {
        Completeness::Incomplete => true,
        Completeness::Invalid => false,
        Completeness::Complete => {
            let in_block = code.lines().last().is_some_and(|l| l.starts_with([' ', '\t']));
            in_block && !last_is_blank
        }
    }
}
