//! Prints what the sandbox costs on this machine: preparing, loading, a fresh session, a call.
//!
//! `cargo run --release -p sandbox --example timing [-- --cold]`; `--cold` prepares the interpreter again, in a cache
//! directory of its own. AIMO_CPYTHON=DIR measures CPython. Medians; nothing here is asserted.

use sandbox::{Limits, Progress, Python, SandboxError, Workers};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// RustPython, or the CPython whose folder AIMO_CPYTHON names.
fn load(progress: &mut dyn FnMut(Progress)) -> Result<Python, SandboxError> {
    match std::env::var_os("AIMO_CPYTHON") {
        Some(path) => Python::load_cpython(Path::new(&path), progress),
        None => Python::load(progress),
    }
}

fn median(n_runs: usize, mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..n_runs).map(|_| run()).collect();
    times.sort();
    times[n_runs / 2]
}

fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let value = act();
    (value, started.elapsed())
}

fn side_by_side(python: &Python, limits: Limits) -> Duration {
    let work = |seed| {
        let mut session = python.session(limits, seed).expect("a session starts");
        let outcome = session.run("from sympy import *; factorint(2**64 - 1), sum(1 for n in range(10**5))");
        assert_eq!(outcome.status, sandbox::Status::Ok, "{}", outcome.output);
    };
    timed(|| std::thread::scope(|scope| (0..64).for_each(|seed| drop(scope.spawn(move || work(seed)))))).1
}

/// Anonymous memory that 50 sessions hold between two calls, per session.
fn idle_mib(python: &Python, limits: Limits) -> f64 {
    let anonymous_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).map(str::to_owned).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    let before_kib = anonymous_kib();
    let sessions: Vec<_> = (0..50)
        .map(|seed| {
            let mut session = python.session(limits, seed).expect("a session starts");
            session.run("x = 1");
            session
        })
        .collect();
    (anonymous_kib() - before_kib) / 1024.0 / sessions.len() as f64
}

/// The same, where the session is a process of its own: the program `sandbox-worker` beside this one's directory.
fn in_a_worker(python: &Python, limits: Limits) -> Result<(), SandboxError> {
    let mut program = std::env::current_exe().expect("this program's own path");
    program.pop();
    let program = program.with_file_name("sandbox-worker");
    if !program.is_file() {
        println!("(no {}: build it to measure sessions in processes)", program.display());
        return Ok(());
    }
    let workers = Workers::new(python.clone(), program, []);
    let first = |workers: &Workers| timed(|| workers.session(limits, 1).map(|mut session| session.run("print(1)"))).1;
    println!(
        "new process to first output               {:10.2} ms",
        median(20, || first(&workers)).as_secs_f64() * 1e3
    );
    workers.keep_warm(2);
    let warm = median(20, || {
        std::thread::sleep(Duration::from_millis(300));
        first(&workers)
    });
    println!("… one that was started ahead              {:10.2} ms", warm.as_secs_f64() * 1e3);
    workers.keep_warm(0);
    let mut session = workers.session(limits, 1)?;
    session.run("from sympy import *\nx = symbols('x')");
    let call = median(200, || timed(|| session.run("1 + 1")).1);
    println!("… one more call, 1 + 1                    {:10.3} ms", call.as_secs_f64() * 1e3);
    Ok(())
}

fn main() -> Result<(), SandboxError> {
    let is_cold = std::env::args().any(|argument| argument == "--cold");
    let directory = tempfile::tempdir().expect("a temporary directory");
    if is_cold {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_CACHE_HOME", directory.path()) };
    }
    let mut stages: Vec<(&str, Instant)> = Vec::new();
    let (loaded, prepare) = timed(|| load(&mut |progress| stages.push((progress.stage, Instant::now()))));
    loaded?;
    stages.push(("", Instant::now()));
    for pair in stages.windows(2).filter(|pair| !pair[0].0.is_empty()) {
        println!("  {:<60} {:8.2} s", pair[0].0, (pair[1].1 - pair[0].1).as_secs_f64());
    }
    println!("first load                                {:10.1} ms", prepare.as_secs_f64() * 1e3);
    println!("warm load                                 {:10.1} ms", {
        median(5, || timed(|| load(&mut |_| {})).1).as_secs_f64() * 1e3
    });
    let python = load(&mut |_| {})?;
    let limits = Limits { time_ms: 60_000, ..Limits::default() };
    let fresh = |code: &'static str| {
        let python = &python;
        median(50, move || timed(|| python.session(limits, 1).map(|mut session| session.run(code))).1)
    };
    println!("new session to first output, print(1)     {:10.2} ms", fresh("print(1)").as_secs_f64() * 1e3);
    println!("… from sympy import *; factorint(2024)    {:10.2} ms", {
        fresh("from sympy import *; factorint(2024)").as_secs_f64() * 1e3
    });
    let mut session = python.session(limits, 1)?;
    session.run("from sympy import *\nx = symbols('x')");
    let call = median(200, || timed(|| session.run("1 + 1")).1);
    println!("one more call, 1 + 1                      {:10.3} ms", call.as_secs_f64() * 1e3);
    let calls = timed(|| (0..2000).for_each(|_| drop(session.run("1 + 1")))).1;
    println!("… the mean of 2000 such calls             {:10.3} ms", calls.as_secs_f64() / 2.0);
    in_a_worker(&python, limits)?;
    session.run("table = list(range(3_000_000))");
    let call = median(50, || timed(|| session.run("1 + 1")).1);
    println!("… with 100 MB of the user's own objects   {:10.2} ms", call.as_secs_f64() * 1e3);
    let fork = median(20, || timed(|| session.fork()).1);
    println!("… a fork of that session                  {:10.2} ms", fork.as_secs_f64() * 1e3);
    println!("64 sessions side by side, sympy in each   {:10.1} ms", side_by_side(&python, limits).as_secs_f64() * 1e3);
    println!("memory of its own of an idle session      {:10.2} MiB", idle_mib(&python, limits));
    let stopped = Limits { time_ms: 50, grace_ms: 0, ..limits };
    session.set_limits(stopped)?;
    let stop = median(5, || timed(|| session.run("while True: pass")).1);
    println!("a stop at 50 ms and the roll-back         {:10.2} ms", stop.as_secs_f64() * 1e3);
    for (name, code) in [
        ("loop, 10^6 modular steps", "s = 0\nfor i in range(10**6): s = (s * 31 + i) % 1000003"),
        (
            "sieve to 10^6",
            "n = 10**6\ns = bytearray([1]) * n\nfor i in range(2, 1000):\n    if s[i]: s[i*i::i] = bytes(len(s[i*i::i]))",
        ),
        (
            "permutations(8)",
            "from itertools import permutations\nsum(1 for p in permutations(range(8)) if p[0] < p[-1])",
        ),
        ("factorint(10^18 + 9), solve a quartic", "factorint(10**18 + 9); solve(x**4 - 10*x**2 + 1, x)"),
    ] {
        let mut session = python.session(limits, 1)?;
        session.run("from sympy import *\nx = symbols('x')");
        println!("{name:<42}{:10.1} ms", timed(|| session.run(code)).1.as_secs_f64() * 1e3);
    }
    Ok(())
}
