//! CPython's own tests, and sympy's, inside the sandbox; checked against the list of expected failures.
//!
//! `cargo xtask suites [cpython|sympy] [--python PYTHON] [--tests DIR] [--record] [MODULE…]`. PYTHON (`python3`) has the
//! tests: its test package, sympy. DIR is a library folder `…/pythonX.Y` with a test package, where no such Python is
//! installed. For CPython's tests the failures must be exactly those of `tests/data/cpython_failures_X.Y.txt` (`--record`
//! writes the lines of the modules that ran); sympy's are counted, beside PYTHON's own results with `--native`.

#[path = "../tests/all/suite.rs"]
mod suite;

use sandbox::{Limits, Python};
use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};
use suite::{Report, Verdict};

/// The parts of CPython's test package that the sandbox is held to.
const CPYTHON: &[&str] = &[
    "test_int",
    "test_long",
    "test_float",
    "test_math",
    "test_cmath",
    "test_fractions",
    "test_decimal",
    "test_itertools",
    "test_functools",
    "test_collections",
    "test_statistics",
    "test_random",
    "test_heapq",
    "test_bisect",
    "test_re",
    "test_string",
    "test_json",
    "test_dataclasses",
    "test_enum",
    "test_generators",
    "test_genexps",
    "test_listcomps",
    "test_setcomps",
    "test_dictcomps",
    "test_fstring",
    "test_patma",
];
/// The parts of sympy whose tests are run.
const SYMPY: &[&str] = &["core", "ntheory", "polys", "solvers", "combinatorics", "matrices", "series", "concrete"];

/// Of `sympy.physics` only units and a few formulas are there (`docs/sandbox.md`).
const LEFT_OUT: &str = "No module named 'sympy.physics.";

/// Tests that compare times, which say more of the machine than of the interpreter: they count as skipped.
const TIMED: &[&str] = &[
    "test_re ReTests.test_search_anchor_at_beginning",
    "test_int IntStrDigitLimitsTests.test_denial_of_service_prevented_int_to_str",
    "test_int IntStrDigitLimitsTests.test_denial_of_service_prevented_str_to_int",
    "test_int IntSubclassStrDigitLimitsTests.test_denial_of_service_prevented_int_to_str",
    "test_int IntSubclassStrDigitLimitsTests.test_denial_of_service_prevented_str_to_int",
];

/// The longest test takes half a minute where nothing else runs; the limit is for one that hangs.
const CPYTHON_TEST_MS: u64 = 300_000;
/// Natively, too, a test of sympy's gets this long.
const SYMPY_TEST_MS: u64 = 120_000;

#[derive(Default)]
struct Count {
    n_passed: usize,
    n_skipped: usize,
    n_failed: usize,
    /// Tests of sympy that want a part of it which the sandbox leaves out; they count as skipped, too.
    n_left_out: usize,
    /// What went wrong, by module and test.
    failures: BTreeMap<String, String>,
}

impl Count {
    fn add(&mut self, module: &str, report: &Report) {
        match report {
            Err(reason) => {
                self.n_failed += 1;
                self.failures.insert(format!("{module} can't be loaded"), reason.clone());
            }
            Ok(verdicts) => {
                for (test, verdict) in verdicts {
                    match verdict {
                        Verdict::Passed => self.n_passed += 1,
                        Verdict::Skipped => self.n_skipped += 1,
                        Verdict::Failed(reason) if reason.contains(LEFT_OUT) => {
                            self.n_skipped += 1;
                            self.n_left_out += 1;
                        }
                        Verdict::Failed(reason) => {
                            self.n_failed += 1;
                            self.failures.insert(format!("{module} {test}"), reason.clone());
                        }
                    }
                }
            }
        }
    }

    fn line(&self) -> String {
        let n_run = self.n_passed + self.n_failed;
        let percent = 100.0 * self.n_passed as f64 / n_run.max(1) as f64;
        let left_out = match self.n_left_out {
            0 => String::new(),
            n => format!(" ({n} want sympy.physics)"),
        };
        format!("{} of {n_run} passed ({percent:.2} %), {} skipped{left_out}", self.n_passed, self.n_skipped)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let which = arguments.next_if(|a| !a.starts_with('-')).unwrap_or_else(|| "cpython".into());
    let (mut program, mut is_recorded, mut is_native, mut modules) = ("python3".to_owned(), false, false, Vec::new());
    let mut tests = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--python" => program = arguments.next().ok_or("--python needs a program")?,
            "--tests" => tests = Some(PathBuf::from(arguments.next().ok_or("--tests needs a folder")?)),
            "--record" => is_recorded = true,
            "--native" => is_native = true,
            module => modules.push(module.to_owned()),
        }
    }
    let python = Python::load(&mut |progress| eprintln!("{}", progress.stage))?;
    match which.as_str() {
        "cpython" => {
            let root = tests.or_else(|| suite::library(&program, "stdlib"));
            cpython(&python, root.as_deref(), &modules, is_recorded)
        }
        "sympy" => sympy(&python, &program, &modules, is_native),
        other => Err(format!("{other}: must be cpython or sympy").into()),
    }
}

fn cpython(python: &Python, root: Option<&Path>, chosen: &[String], is_recorded: bool) -> Result<(), Box<dyn Error>> {
    let root = root.filter(|root| root.join("test/test_int.py").is_file());
    let root = root.ok_or("no test package (on Debian: apt-get install libpython3.11-testsuite)")?;
    let limits = Limits { time_ms: CPYTHON_TEST_MS, ..Limits::default() };
    let mut all = Count::default();
    let is_chosen = |name: &str| {
        chosen.is_empty()
            || chosen
                .iter()
                .any(|c| name == c || name.strip_prefix(c.as_str()).is_some_and(|rest| rest.starts_with('.')))
    };
    let modules: Vec<String> =
        CPYTHON.iter().flat_map(|name| parts(root, name)).filter(|name| is_chosen(name)).collect();
    if modules.is_empty() {
        return Err(format!("{chosen:?}: none of {CPYTHON:?}").into());
    }
    for name in &modules {
        let started = Instant::now();
        let mut report = suite::run(python, root, &format!("test.{name}"), limits);
        for (test, verdict) in report.iter_mut().flatten() {
            if TIMED.contains(&format!("{name} {test}").as_str()) {
                *verdict = Verdict::Skipped;
            }
        }
        let mut count = Count::default();
        count.add(name, &report);
        all.add(name, &report);
        if count.n_passed + count.n_skipped + count.n_failed == 0 {
            // A package without tests of its own.
            continue;
        }
        println!("{name:<32} {}  [{:.0} s]", count.line(), started.elapsed().as_secs_f64());
        for (test, reason) in &count.failures {
            println!("    {test}: {reason}");
        }
    }
    println!("all: {}", all.line());
    let file = suite::failures_file(root);
    let said = if file.is_file() { fs::read_to_string(&file)? } else { String::new() };
    let (here, elsewhere): (Vec<&str>, Vec<&str>) =
        said.lines().partition(|line| modules.iter().any(|m| line.split(' ').next() == Some(m)));
    if is_recorded {
        let mut lines: Vec<String> = elsewhere.iter().map(|line| (*line).to_owned()).collect();
        lines.extend(all.failures.iter().map(|(test, reason)| format!("{test}: {}", printable(reason))));
        lines.sort();
        return Ok(fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>())?);
    }
    let expected: BTreeSet<String> = here.into_iter().map(suite::listed_test).collect();
    let found: BTreeSet<String> = all.failures.into_keys().collect();
    let new: Vec<_> = found.difference(&expected).collect();
    let gone: Vec<_> = expected.difference(&found).collect();
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    Err(format!("failures that are not expected: {new:?}; expected failures that pass: {gone:?}").into())
}

/// A module of CPython's test package; of a package, itself and its modules.
fn parts(root: &Path, name: &str) -> Vec<String> {
    let directory = root.join("test").join(name);
    let Ok(entries) = fs::read_dir(&directory) else { return vec![name.to_owned()] };
    let stems = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".py").map(str::to_owned));
    let modules = stems.filter(|stem| stem.starts_with("test_")).map(|stem| format!("{name}.{stem}"));
    let mut names: Vec<String> = modules.chain([name.to_owned()]).collect();
    names.sort();
    names
}

/// One line of a list that is kept.
fn printable(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(100).collect()
}

fn sympy(python: &Python, program: &str, chosen: &[String], is_native: bool) -> Result<(), Box<dyn Error>> {
    let root = suite::library(program, "purelib").filter(|root| root.join("sympy").is_dir());
    let root = root.ok_or_else(|| format!("{program} has no sympy"))?;
    let limits = Limits { time_ms: SYMPY_TEST_MS, ..Limits::default() };
    let (mut ours, mut theirs) = (Count::default(), Count::default());
    for package in SYMPY.iter().copied().filter(|name| chosen.is_empty() || chosen.iter().any(|c| c == name)) {
        let started = Instant::now();
        let mut count = Count::default();
        let mut native = Count::default();
        for name in test_modules(&root, package)? {
            let report = suite::run(python, &root, &name, limits);
            count.add(&name, &report);
            ours.add(&name, &report);
            if is_native {
                let report = run_natively(program, &name);
                native.add(&name, &report);
                theirs.add(&name, &report);
            }
        }
        println!("{package:<16} {}  [{:.0} s]", count.line(), started.elapsed().as_secs_f64());
        if is_native {
            println!("{:<16} {}  natively", "", native.line());
        }
        for (test, reason) in &count.failures {
            println!("    {test}: {reason}");
        }
    }
    println!("all: {}", ours.line());
    if is_native {
        println!("natively: {}", theirs.line());
    }
    Ok(())
}

fn test_modules(root: &Path, package: &str) -> Result<Vec<String>, Box<dyn Error>> {
    let mut names = Vec::new();
    let mut directories = vec![(root.join("sympy").join(package), format!("sympy.{package}"))];
    while let Some((directory, prefix)) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                directories.push((path, format!("{prefix}.{stem}")));
            } else if prefix.ends_with(".tests") && stem.starts_with("test_") && stem != "test_hypothesis" {
                // `test_hypothesis` wants a package of that name.
                names.push(format!("{prefix}.{stem}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The same functions of the same module in the program that they come from.
fn run_natively(program: &str, name: &str) -> Report {
    const EACH: &str = "
import sys, signal
def late(*_): raise TimeoutError('the time limit is reached')
signal.signal(signal.SIGALRM, late)
problem = load(sys.argv[1])
if problem: print('!' + problem)
else:
    for test in tests(sys.argv[1]):
        signal.alarm(int(sys.argv[2]))
        said(test + '=' + run(sys.argv[1], test))
        signal.alarm(0)
";
    let code = format!("{}{EACH}", include_str!("../tests/data/suite_driver.py"));
    let seconds = (SYMPY_TEST_MS / 1000).to_string();
    let output =
        Command::new(program).args(["-c", &code, name, &seconds]).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(problem) = text.lines().find_map(|line| line.strip_prefix('!')) {
        return Err(problem.to_owned());
    }
    let answers = text.split('\u{2}').skip(1).filter_map(|rest| rest.split_once('\u{3}'));
    let verdict = |said: &str| match said {
        "ok" => Verdict::Passed,
        "skip" => Verdict::Skipped,
        reason => Verdict::Failed(reason.to_owned()),
    };
    Ok(answers.filter_map(|(said, _)| said.split_once('=')).map(|(t, said)| (t.to_owned(), verdict(said))).collect())
}
