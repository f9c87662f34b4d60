//! Nothing of the host can be reached, nothing leaks from one session into another, and runs repeat exactly.

use crate::common::{output, python, raises, session, session_with};
use sandbox::{Limits, Session, Status};

#[test]
fn there_are_no_files_processes_or_sockets() {
    let mut session = session();
    for (code, kinds) in [
        ("open('/etc/passwd')", "OSError FileNotFoundError PermissionError"),
        ("open('../secret')", "OSError FileNotFoundError PermissionError"),
        ("open('x.txt', 'w')", "OSError FileNotFoundError PermissionError"),
        ("import os; os.listdir('/')", "OSError FileNotFoundError PermissionError NotADirectoryError"),
        ("import os; os.system('id')", "OSError AttributeError"),
        ("import os; os.mkdir('d')", "OSError FileNotFoundError PermissionError"),
        ("import subprocess; subprocess.run(['id'])", "OSError ModuleNotFoundError ImportError AttributeError"),
        ("import os; os.fork()", "OSError AttributeError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "OSError AttributeError ImportError"),
        (
            "import urllib.request; urllib.request.urlopen('http://example.org')",
            "OSError AttributeError ImportError ModuleNotFoundError URLError",
        ),
        ("import ctypes; ctypes.CDLL(None)", "AttributeError"),
        ("import pathlib; pathlib.Path('/proc/self/maps').read_text()", "OSError FileNotFoundError PermissionError"),
        ("import tempfile; tempfile.TemporaryFile()", "OSError FileNotFoundError PermissionError ImportError"),
    ] {
        let outcome = session.run(code);
        match &outcome.status {
            Status::Exception { kind, .. } => {
                assert!(kinds.split(' ').any(|k| k == kind), "{code}: {}", outcome.output)
            }
            other => panic!("{code}: {other:?}\n{}", outcome.output),
        }
    }
    let text = raises(&mut session, "open('data.csv')", "FileNotFoundError").output;
    assert!(text.contains("keep data in variables"), "{text}");
}

#[test]
fn nothing_of_the_host_is_visible() {
    let mut session = session();
    assert_eq!(output(&mut session, "import os, sys, sympy\nlen(os.environ), sys.argv, sys.path"), "(0, [''], [])\n");
    let text = output(&mut session, "print(sys.version, sys.executable, sys.path, sys.flags, sympy.__name__)");
    for hidden in ["/root", "/home", "cargo"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[test]
fn sessions_do_not_see_each_other() {
    let mut first = session();
    output(
        &mut first,
        "import builtins, sys, math, decimal, sympy\nbuiltins.len = lambda x: -1\nmath.pi = 3\nsys.modules['json'] = None\n\
         decimal.getcontext().prec = 3\nsympy.secret = 42\nsympy.core.cache.clear_cache()\nprint = None",
    );
    assert_eq!(output(&mut first, "len([1]), math.pi"), "(-1, 3)\n");
    let mut second = session();
    let check = "import json, math, decimal, sympy\nprint(len([1]), math.pi > 3.1, decimal.getcontext().prec, hasattr(sympy, 'secret'))";
    assert_eq!(output(&mut second, check), "1 True 28 False\n");
}

#[test]
fn randomness_is_the_seeds() {
    let code = "import random, os, secrets, sympy.core.random as r, uuid\n\
                print(random.random(), random.randint(1, 10**9), r.rng.random(), os.urandom(4), secrets.token_hex(4), uuid.uuid4())";
    let of = |seed| output(&mut python().session(Limits { time_ms: 60_000, ..Limits::default() }, seed).unwrap(), code);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    let hashes = "print(hash('abc'), list({'a', 'b', 'c', 'd'}))";
    assert_eq!(output(&mut session(), hashes), output(&mut session(), hashes));
}

#[test]
fn a_rolled_back_call_gives_its_random_numbers_back() {
    let limits = Limits { time_ms: 200, grace_ms: 0, ..Limits::default() };
    let mut plain = python().session(limits, 3).unwrap();
    let mut stopped = python().session(limits, 3).unwrap();
    for session in [&mut plain, &mut stopped] {
        session.set_limits(Limits { time_ms: 60_000, ..limits }).unwrap();
        output(session, "import random, os\na = random.random()");
        session.set_limits(limits).unwrap();
    }
    stopped.run("random.random(); os.urandom(16)\nwhile True: pass");
    for session in [&mut plain, &mut stopped] {
        session.set_limits(Limits { time_ms: 60_000, ..limits }).unwrap();
    }
    let code = "random.random(), os.urandom(8)";
    assert_eq!(output(&mut plain, code), output(&mut stopped, code));
}

#[test]
fn the_clock_is_coarse_and_starts_at_a_fixed_date() {
    let mut session = session();
    assert_eq!(output(&mut session, "import datetime\nprint(datetime.date.today())"), "2026-01-01\n");
    assert_eq!(output(&mut session, "import time\nt = time.time(); time.time_ns() % 10**6"), "0\n");
    assert_eq!(
        output(&mut session, "t0 = time.perf_counter(); time.sleep(0.05); 0.04 < time.perf_counter() - t0 < 30"),
        "True\n"
    );
    assert_eq!(output(&mut session, "time.process_time() >= 0"), "True\n");
}

#[test]
fn the_machines_clock_is_shown_where_it_is_allowed() {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let limits = Limits { time_ms: 2_000, grace_ms: 500, allow_clock: true, ..Limits::default() };
    let mut session = session_with(limits);
    let shown = |session: &mut Session| output(session, "import time; time.time()").trim().parse::<f64>().unwrap();
    let is_now = |before: f64, shown: f64| (before - 0.002..=now()).contains(&shown);
    let before = now();
    assert!(is_now(before, shown(&mut session)));
    // Random numbers stay a matter of the seed, and the way back after a stop keeps the clock.
    let mut other = session_with(Limits { allow_clock: false, ..limits });
    let random = "import random, os; random.random(), os.urandom(8)";
    assert_eq!(output(&mut session, random), output(&mut other, random));
    let endless = "while True:\n    try:\n        while True: pass\n    except BaseException: pass";
    assert!(session.run(endless).rolled_back);
    let before = now();
    assert!(is_now(before, shown(&mut session)));
    let mut fork = session.fork().unwrap();
    let before = now();
    assert!(is_now(before, shown(&mut fork)));
    assert!(shown(&mut other) < 1_767_225_600.0 + 60.0, "the other one's begins in 2026");
}

#[test]
fn breaking_the_cell_runner_from_inside_breaks_one_session_only() {
    let mut broken = session();
    broken.run("import _cell\n_cell.run = None");
    let outcome = broken.run("1 + 1");
    assert_ne!(outcome.status, Status::Ok, "{}", outcome.output);
    assert_eq!(output(&mut session(), "1 + 1"), "2\n");
    let mut other = session();
    other.run("import builtins\nbuiltins.exec = builtins.eval = builtins.repr = builtins.isinstance = None");
    assert_eq!(output(&mut other, "6 * 7"), "42\n");
}
