//! CPython's own tests, and sympy's, inside the sandbox; checked against the list of expected failures.
//!
//! `cargo xtask suites [cpython|sympy] [--python PYTHON] [--record] [MODULE…]`. PYTHON (`python3`) has the tests: its
//! test package, sympy. For CPython's tests the failures must be exactly those of `tests/data/cpython_failures.txt`
//! (`--record` writes it); sympy's are counted, beside PYTHON's own results on the same functions with `--native`.

#[path = "../tests/all/suite.rs"]
mod suite;

use sandbox::{Limits, Python};
use std::{
    collections::BTreeSet,
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
    "test_json.test_decode",
    "test_json.test_default",
    "test_json.test_dump",
    "test_json.test_encode_basestring_ascii",
    "test_json.test_enum",
    "test_json.test_fail",
    "test_json.test_float",
    "test_json.test_indent",
    "test_json.test_pass1",
    "test_json.test_pass2",
    "test_json.test_pass3",
    "test_json.test_recursion",
    "test_json.test_scanstring",
    "test_json.test_separators",
    "test_json.test_speedups",
    "test_json.test_unicode",
    "test_dataclasses",
    "test_enum",
    "test_generators",
    "test_listcomps",
    "test_setcomps",
    "test_dictcomps",
    "test_fstring",
    "test_patma",
];
/// The parts of sympy whose tests are run.
const SYMPY: &[&str] = &["core", "ntheory", "polys", "solvers", "combinatorics", "matrices", "series", "concrete"];

fn failures_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cpython_failures.txt")
}

#[derive(Default)]
struct Count {
    n_passed: usize,
    n_skipped: usize,
    n_failed: usize,
    failures: BTreeSet<String>,
}

impl Count {
    fn add(&mut self, module: &str, report: &Report) {
        match report {
            Err(reason) => {
                self.n_failed += 1;
                self.failures.insert(format!("{module} can't be loaded: {reason}"));
            }
            Ok(verdicts) => {
                for (test, verdict) in verdicts {
                    match verdict {
                        Verdict::Passed => self.n_passed += 1,
                        Verdict::Skipped => self.n_skipped += 1,
                        Verdict::Failed(_) => {
                            self.n_failed += 1;
                            self.failures.insert(format!("{module} {test}"));
                        }
                    }
                }
            }
        }
    }

    fn line(&self) -> String {
        let n_run = self.n_passed + self.n_failed;
        let percent = 100.0 * self.n_passed as f64 / n_run.max(1) as f64;
        format!("{} of {n_run} passed ({percent:.2} %), {} skipped", self.n_passed, self.n_skipped)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let which = arguments.next_if(|a| !a.starts_with('-')).unwrap_or_else(|| "cpython".into());
    let (mut program, mut is_recorded, mut is_native, mut modules) = ("python3".to_owned(), false, false, Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--python" => program = arguments.next().ok_or("--python needs a program")?,
            "--record" => is_recorded = true,
            "--native" => is_native = true,
            module => modules.push(module.to_owned()),
        }
    }
    let python = Python::load(&mut |progress| eprintln!("{}", progress.stage))?;
    match which.as_str() {
        "cpython" => cpython(&python, &program, &modules, is_recorded),
        "sympy" => sympy(&python, &program, &modules, is_native),
        other => Err(format!("{other}: must be cpython or sympy").into()),
    }
}

fn cpython(python: &Python, program: &str, chosen: &[String], is_recorded: bool) -> Result<(), Box<dyn Error>> {
    let root = suite::library(program, "stdlib").filter(|root| root.join("test/test_int.py").is_file());
    let root = root.ok_or("no test package (on Debian: apt-get install libpython3.11-testsuite)")?;
    let limits = Limits { time_ms: 60_000, ..Limits::default() };
    let mut all = Count::default();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|c| c == name);
    for name in CPYTHON.iter().copied().filter(|name| is_chosen(name)) {
        let started = Instant::now();
        let report = suite::run(python, &root, &format!("test.{name}"), limits);
        let mut count = Count::default();
        count.add(name, &report);
        all.add(name, &report);
        println!("{name:<32} {}  [{:.0} s]", count.line(), started.elapsed().as_secs_f64());
        for (test, verdict) in report.iter().flatten() {
            if let Verdict::Failed(reason) = verdict {
                println!("    {test}: {reason}");
            }
        }
        if let Err(reason) = report {
            println!("    {reason}");
        }
    }
    println!("all: {}", all.line());
    if is_recorded {
        let text: String = all.failures.iter().map(|line| format!("{line}\n")).collect();
        return Ok(fs::write(failures_file(), text)?);
    }
    let text = fs::read_to_string(failures_file())?;
    let is_of_chosen = |line: &&str| is_chosen(line.split(' ').next().unwrap_or_default());
    let expected: BTreeSet<String> = text.lines().filter(is_of_chosen).map(str::to_owned).collect();
    let new: Vec<_> = all.failures.difference(&expected).collect();
    let gone: Vec<_> = expected.difference(&all.failures).collect();
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    Err(format!("failures that are not expected: {new:?}; expected failures that pass: {gone:?}").into())
}

fn sympy(python: &Python, program: &str, chosen: &[String], is_native: bool) -> Result<(), Box<dyn Error>> {
    let root = suite::library(program, "purelib").filter(|root| root.join("sympy").is_dir());
    let root = root.ok_or_else(|| format!("{program} has no sympy"))?;
    let limits = Limits { time_ms: 60_000, ..Limits::default() };
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
        for failure in &count.failures {
            println!("    {failure}");
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
            } else if prefix.ends_with(".tests") && stem.starts_with("test_") {
                names.push(format!("{prefix}.{stem}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The same functions of the same module in the program that they come from.
fn run_natively(program: &str, name: &str) -> Report {
    const EACH: &str = "\nimport sys, signal\ndef late(*_): raise TimeoutError('longer than 60 s')\n\
        signal.signal(signal.SIGALRM, late)\nproblem = load(sys.argv[1])\nif problem: print('!' + problem)\nelse:\n    \
        for test in tests(sys.argv[1]):\n        signal.alarm(60)\n        said(test + '=' + run(sys.argv[1], test))\n        \
        signal.alarm(0)\n";
    let code = format!("{}{EACH}", include_str!("../tests/data/suite_driver.py"));
    let output = Command::new(program).args(["-c", &code, name]).output().map_err(|error| error.to_string())?;
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
