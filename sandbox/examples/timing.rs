//! Prints what the sandbox costs on this machine: preparing, loading, a fresh session, a call.
//!
//! `cargo run --release -p sandbox --example timing [-- --cold]`; `--cold` prepares the interpreter again, in a cache
//! directory of its own. Medians; nothing here is asserted.

use sandbox::{Limits, Python};
use std::time::{Duration, Instant};

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

fn main() -> Result<(), sandbox::SandboxError> {
    let is_cold = std::env::args().any(|argument| argument == "--cold");
    let directory = tempfile::tempdir().expect("a temporary directory");
    if is_cold {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_CACHE_HOME", directory.path()) };
    }
    let mut stages: Vec<(&str, Instant)> = Vec::new();
    let (loaded, prepare) = timed(|| Python::load(&mut |progress| stages.push((progress.stage, Instant::now()))));
    loaded?;
    stages.push(("", Instant::now()));
    for pair in stages.windows(2).filter(|pair| !pair[0].0.is_empty()) {
        println!("  {:<60} {:8.2} s", pair[0].0, (pair[1].1 - pair[0].1).as_secs_f64());
    }
    println!("first load                                {:10.1} ms", prepare.as_secs_f64() * 1e3);
    println!("warm load                                 {:10.1} ms", {
        median(5, || timed(|| Python::load(&mut |_| {})).1).as_secs_f64() * 1e3
    });
    let python = Python::load(&mut |_| {})?;
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
    println!("one more call, 1 + 1                      {:10.2} ms", call.as_secs_f64() * 1e3);
    session.run("table = list(range(3_000_000))");
    let call = median(50, || timed(|| session.run("1 + 1")).1);
    println!("… with 100 MB of the user's own objects   {:10.2} ms", call.as_secs_f64() * 1e3);
    let stopped = Limits { time_ms: 50, ..limits };
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
