//! Runs CPython's and sympy's own tests inside the sandbox, method by method, from an installed CPython.
//!
//! The sources are read on this side and handed in as text: the sandbox has no files. Each test is a call of its own
//! with the limits of any call, so that one that hangs or breaks the interpreter is one failure. Used by
//! `suites` and by `examples/suites.rs`, which runs everything. Surprising fact: a module that a test imports is found out by
//! the import failing, handed in, and tried again.

use sandbox::{Limits, Python, Session, Status};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const DRIVER: &str = include_str!("../data/suite_driver.py");
/// More imports than any test module needs.
const MAX_IMPORTS: usize = 40;
/// How the names of test data end.
const DATA: &[&str] = &[".txt", ".pck", ".decTest"];

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Skipped,
    Failed(String),
}

/// The tests of one module by name, or why it can't be loaded.
pub type Report = Result<Vec<(String, Verdict)>, String>;

/// Where an installed Python keeps its library (`stdlib`) and its packages (`purelib`).
pub fn library(python: &str, which: &str) -> Option<PathBuf> {
    let code = format!("import sysconfig; print(sysconfig.get_path('{which}'))");
    let output = Command::new(python).args(["-c", &code]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_dir().then_some(path)
}

/// The list of expected failures for the tests below a library folder `…/pythonX.Y`.
pub fn failures_file(root: &Path) -> PathBuf {
    let version = root.file_name().unwrap_or_default().to_string_lossy().replace("python", "");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/cpython_failures_{version}.txt"))
}

/// A line of that list is a module and a test, and then what goes wrong, for the reader.
pub fn listed_test(line: &str) -> String {
    line.split_once(": ").map_or(line, |(test, _)| test).to_owned()
}

/// Runs all tests of the module `name`, whose sources lie below `root`.
pub fn run(python: &Python, root: &Path, name: &str, limits: Limits) -> Report {
    let mut session = python.session(limits, 1).map_err(|error| error.to_string())?;
    load(&mut session, root, name)?;
    let listed = ask(&mut session, &format!("' '.join(tests({name:?}))"))?;
    let tests: Vec<&str> = listed.split_whitespace().collect();
    let verdicts = tests.iter().map(|test| {
        let verdict = match run_one(&mut session, root, name, test).as_deref() {
            Ok("ok") => Verdict::Passed,
            Ok("skip") => Verdict::Skipped,
            Ok(reason) => Verdict::Failed(reason.trim_start_matches("failed: ").to_owned()),
            Err(reason) => Verdict::Failed(reason.to_owned()),
        };
        ((*test).to_owned(), verdict)
    });
    Ok(verdicts.collect())
}

/// What the driver says of a test, once it has every module that it asks for.
fn run_one(session: &mut Session, root: &Path, name: &str, test: &str) -> Result<String, String> {
    for _ in 0..MAX_IMPORTS {
        let said = ask(session, &format!("run({name:?}, {test:?})"))?;
        match said.strip_prefix("missing: ") {
            Some(missing) => {
                if hand_in(session, root, missing).is_err() {
                    tell(session, &format!("GIVEN_UP.add({missing:?})"))?;
                }
            }
            None => return Ok(said),
        }
    }
    Err(format!("{test} imports more than {MAX_IMPORTS} modules"))
}

fn load(session: &mut Session, root: &Path, name: &str) -> Result<(), String> {
    // Prints nothing and may import a good part of the library.
    tell(session, DRIVER)?;
    tell(session, "prepare()")?;
    let mut wanted = name.to_owned();
    for _ in 0..MAX_IMPORTS {
        let mut prefix = String::new();
        for part in wanted.split('.') {
            prefix = if prefix.is_empty() { part.to_owned() } else { format!("{prefix}.{part}") };
            hand_in(session, root, &prefix)?;
        }
        let missing = ask(session, &format!("load({name:?})"))?;
        match missing.strip_prefix('!') {
            None if missing.is_empty() => return Ok(()),
            None if missing == wanted => return Err(format!("no module {missing}")),
            None => wanted = missing,
            Some(reason) => return Err(reason.to_owned()),
        }
    }
    Err(format!("{name} imports more than {MAX_IMPORTS} modules"))
}

/// Gives the session a module's source, unless the session has the module itself.
fn hand_in(session: &mut Session, root: &Path, name: &str) -> Result<(), String> {
    if ask(session, &format!("has({name:?})"))? == "True" {
        return Ok(());
    }
    let path = root.join(name.replace('.', "/"));
    let package = path.join("__init__.py");
    let file = if package.is_file() { package.clone() } else { path.with_extension("py") };
    let source = std::fs::read(&file).map_err(|_| format!("no module {name}"))?;
    let is_package = if package.is_file() { "True" } else { "False" };
    let source = String::from_utf8_lossy(&source);
    tell(session, &format!("add({name:?}, {is_package}, {})", literal(&source)))?;
    hand_in_data(session, file.parent().unwrap_or(root), &source)
}

/// Gives the session the files of data that a module's source names: beside the module, or in a folder there that the
/// source names.
fn hand_in_data(session: &mut Session, directory: &Path, source: &str) -> Result<(), String> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.path()));
    let is_named = |path: &Path| source.contains(&*path.file_name().unwrap_or_default().to_string_lossy());
    let is_data = |path: &Path| DATA.iter().any(|ending| path.to_string_lossy().ends_with(ending)) && path.is_file();
    for path in entries(directory).filter(|path| is_named(path)) {
        let files: Vec<PathBuf> = if path.is_dir() { entries(&path).collect() } else { vec![path] };
        for file in files.iter().filter(|file| is_data(file)) {
            let bytes = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let shown = file.strip_prefix(directory).unwrap_or(file).to_string_lossy();
            let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
            tell(session, &format!("add_file({shown:?}, {})", literal(&text)))?;
        }
    }
    Ok(())
}

/// Runs a line of the driver that answers nothing.
fn tell(session: &mut Session, code: &str) -> Result<(), String> {
    let outcome = session.run(code);
    if outcome.status == Status::Ok { Ok(()) } else { Err(outcome.output) }
}

/// A Python string literal.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            '\n' => literal.push_str("\\n"),
            '\r' => literal.push_str("\\r"),
            '\0' => literal.push_str("\\0"),
            c => literal.push(c),
        }
    }
    literal + "\""
}

/// The value of an expression as `said` prints it; else one line that says why there is none.
fn ask(session: &mut Session, expression: &str) -> Result<String, String> {
    let outcome = session.run(&format!("said({expression})"));
    let answer = outcome.output.rsplit_once('\u{2}').and_then(|(_, rest)| rest.split_once('\u{3}'));
    match (&outcome.status, answer) {
        (Status::Ok, Some((answer, _))) => Ok(answer.to_owned()),
        (Status::Exception { kind, message }, _) => Err(format!("{kind}: {message}")),
        (Status::TimedOut { limit_ms }, _) => Err(format!("longer than {} s", *limit_ms as f64 / 1e3)),
        (status, _) => Err(format!("{status:?}")),
    }
}
