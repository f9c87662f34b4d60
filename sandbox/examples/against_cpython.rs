//! The sandbox beside a native CPython with sympy: the same programs, in turn, in one run; a table of times.
//!
//! `cargo run --release -p sandbox --example against_cpython [-- PYTHON [ROUNDS [RECORD]]]`; PYTHON is `python3` unless
//! given and needs sympy. Medians of ROUNDS (3); every round runs each program once in both; all times go to the file
//! RECORD, as JSON. AIMO_CPYTHON=DIR puts CPython into the sandbox. Nothing here is asserted.

use sandbox::{Limits, Progress, Python, SandboxError, Status};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

/// Name, set-up that is not timed, program.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("loop, 10^7 modular steps", "", "s = 0\nfor i in range(10**7): s = (s * 31 + i) % 1000003"),
    (
        "sieve to 3·10^6, lists",
        "",
        "n = 3 * 10**6\ns = [True] * n\nfor i in range(2, int(n**0.5) + 1):\n    if s[i]:\n        for j in range(i * i, n, i): s[j] = False",
    ),
    (
        "lru_cache and dict DP",
        "import functools",
        "@functools.lru_cache(None)\ndef ways(n, k):\n    if n == 0: return 1\n    if n < 0 or k == 0: return 0\n    \
         return ways(n - k, k) + ways(n, k - 1)\nways(300, 300)\nd = {}\nfor i in range(500):\n    for j in range(500): d[i, j] = d.get((i - 1, j), 1) + d.get((i, j - 1), 1) & 0xffff",
    ),
    ("big integers", "", "x = 3**20000\nfor i in range(200): x = x * x % (7**20000 + i)"),
    ("10^5 digits, str and int", "", "x = int('7' * 10**5)\nfor _ in range(10): x = int(str(x))"),
    ("permutations(9)", "from itertools import permutations", "sum(1 for p in permutations(range(9)) if p[0] < p[-1])"),
    (
        "classes, Fraction",
        "from fractions import Fraction",
        "class P:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return P(self.x + o.x)\np = P(0)\nfor i in range(200000): p = p + P(i)\nf = Fraction(0)\nfor i in range(1, 2000): f += Fraction(1, i)",
    ),
    (
        "sympy: solve, expand, integrate",
        "from sympy import *\nx, y = symbols('x y')",
        "solve(x**4 - 10*x**2 + 1, x); expand((x + y + 1)**20); integrate(x**3*exp(x)*sin(x), x); factor(x**40 - 1)",
    ),
    (
        "sympy: solve, factorint",
        "from sympy import *\nx, y = symbols('x y')",
        "solve(x**4 - 10*x**2 + 1, x); solve([x**2 + y**2 - 25, x*y - 12], [x, y]); solve(2**x - 8, x); \
         factorint(2718281831 * 17320508099); factorint(2**67 - 1)",
    ),
    ("primes below 10^6, listed", "from sympy import *", "list(primerange(10**6))"),
    (
        "factorint of 20-digit semiprimes",
        "from sympy import *",
        // Factors that are far apart and have no smooth neighbours: no short cut finds them.
        "[factorint(p * q) for p, q in ((2718281831, 17320508099), (1618033999, 57721566491), (1414213573, 69314718059))]",
    ),
    ("totients of 1..10^5", "from sympy import *", "sum(totient(n) for n in range(1, 10**5 + 1))"),
    ("isprime of 10^5 numbers", "from sympy import *", "sum(1 for n in range(10**12, 10**12 + 10**5) if isprime(n))"),
    ("prime(10^5), primepi(10^8)", "from sympy import *", "prime(10**5), primepi(10**8)"),
];

/// Runs each program it is sent, by number, in a namespace of its own; prints seconds.
const DRIVER: &str = "import sys, time, json\nsys.set_int_max_str_digits(0)\nprograms = json.loads(sys.argv[1])\nfor line in sys.stdin:\n    \
    setup, program = programs[int(line)]\n    names = {}\n    exec(setup, names)\n    \
    if 'sympy' in setup:\n        from sympy.core.cache import clear_cache; clear_cache()\n        from sympy.ntheory.generate import sieve; sieve._reset()\n        from sympy.ntheory.factor_ import factor_cache; factor_cache.cache_clear()\n    \
    start = time.perf_counter()\n    exec(program, names)\n    print(time.perf_counter() - start, flush=True)\n";

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// RustPython, or the CPython whose folder AIMO_CPYTHON names.
fn load(progress: &mut dyn FnMut(Progress)) -> Result<Python, SandboxError> {
    match std::env::var_os("AIMO_CPYTHON") {
        Some(path) => Python::load_cpython(Path::new(&path), progress),
        None => Python::load(progress),
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments.next().unwrap_or_else(|| "python3".into());
    let n_rounds: usize = arguments.next().map_or(Ok(3), |rounds| rounds.parse())?;
    let record = arguments.next();
    let mut samples = Vec::new();
    let python = load(&mut |progress| eprintln!("{}", progress.stage))?;
    let list: Vec<String> = PROGRAMS.iter().map(|(_, a, b)| format!("[{}, {}]", quoted(a), quoted(b))).collect();
    let mut native = Command::new(&program)
        .args(["-c", DRIVER, &format!("[{}]", list.join(", "))])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = native.stdin.take().expect("piped");
    let mut answers = BufReader::new(native.stdout.take().expect("piped")).lines();
    let limits = Limits { time_ms: 600_000, ..Limits::default() };
    println!("{:<36}{:>12}{:>12}{:>9}", "", "sandbox, ms", "native, ms", "times");
    for (idx, (name, setup, code)) in PROGRAMS.iter().enumerate() {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..n_rounds {
            let mut session = python.session(limits, 1)?;
            session.run(setup);
            let started = std::time::Instant::now();
            let outcome = session.run(code);
            ours.push(started.elapsed().as_secs_f64() * 1e3);
            assert_eq!(outcome.status, Status::Ok, "{name}: {}", outcome.output);
            writeln!(ask, "{idx}")?;
            let seconds = answers.next().ok_or("the native Python ended")??;
            theirs.push(seconds.trim().parse::<f64>()? * 1e3);
        }
        samples.push(format!(
            "    {{\"program\": {}, \"sandbox_ms\": {ours:.1?}, \"native_ms\": {theirs:.1?}}}",
            quoted(name)
        ));
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        println!("{name:<36}{ours:>12.1}{theirs:>12.1}{:>9.2}", ours / theirs);
    }
    drop(ask);
    native.wait()?;
    if let Some(record) = record {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let cpu = quoted(cpu.trim_start_matches([' ', '\t', ':']));
        let n_cores = std::thread::available_parallelism()?;
        let samples = samples.join(",\n");
        std::fs::write(
            record,
            format!("{{\n  \"cpu\": {cpu},\n  \"n_cores\": {n_cores},\n  \"samples\": [\n{samples}\n  ]\n}}\n"),
        )?;
    }
    Ok(())
}
