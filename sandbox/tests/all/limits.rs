//! Limits hold, say so, and leave the session as it was; hostile code of every known kind ends in a typed outcome.

use crate::common::{output, python, raises, session, session_with};
use sandbox::{Limits, Outcome, SandboxError, Session, Status};

/// A time limit that ends calls by force at once.
fn brief(time_ms: u64) -> Limits {
    Limits { time_ms, grace_ms: 0, ..Limits::default() }
}

/// A time limit with an exception first.
fn soft(time_ms: u64, grace_ms: u64) -> Limits {
    Limits { time_ms, grace_ms, ..Limits::default() }
}

/// Checks that `session` still works and still knows what it knew.
fn assert_remembers(session: &mut Session) {
    assert_eq!(output(session, "known, len(table), table[500]"), "(17, 1000, 250000)\n");
}

fn remembering(limits: Limits) -> Session {
    let mut session = session_with(Limits { time_ms: 60_000, ..limits });
    output(&mut session, "known = 17\ntable = [i * i for i in range(1000)]");
    session.set_limits(limits).expect("the limits can be used");
    session
}

fn assert_timed_out(outcome: &Outcome, limit_ms: u64) {
    assert!(outcome.rolled_back);
    assert_eq!(outcome.status, Status::TimedOut { limit_ms }, "{}", outcome.output);
    assert!(outcome.elapsed_ms >= limit_ms, "{} ms", outcome.elapsed_ms);
    assert!(
        outcome.output.ends_with("the session was restored to its state before this cell]\n"),
        "{}",
        outcome.output
    );
}

#[test]
fn the_time_limit_ends_every_kind_of_loop() {
    for code in [
        "while True: pass",
        "import itertools\nsum(1 for _ in itertools.count())",
        "import time\ntime.sleep(1e9)",
        "x = 10**10**8",
        "import math\nmath.factorial(10**7)",
        "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "def g():\n    while True:\n        yield from g2()\ndef g2():\n    yield 1\nfor _ in g(): pass",
        "import functools\nsorted(range(10**6), key=functools.cmp_to_key(lambda a, b: [0 for _ in iter(int, 1)]))",
        "class H:\n    def __hash__(self): return 1\n    def __eq__(self, o): return False\nd = {}\nwhile True: d[H()] = 1",
    ] {
        let mut session = remembering(brief(300));
        let outcome = session.run(&format!("known = 0; table.clear()\nprint('before')\n{code}"));
        assert_timed_out(&outcome, 300);
        assert!(outcome.output.starts_with("before\n[time limit of 0.3 s reached;"), "{code}: {}", outcome.output);
        session.set_limits(brief(60_000)).unwrap();
        assert_remembers(&mut session);
    }
}

#[test]
fn a_soft_time_limit_is_an_exception_and_keeps_the_names() {
    for (code, line) in [
        ("n = 0\nwhile True:\n    n += 1", 4),
        ("import itertools\nn = 1\nfor n in itertools.count(1): pass", 4),
        ("n = 1\ndef f():\n    while True: sum(i for i in range(1000))\nf()", 5),
        ("import time\nn = 1\nwhile True: time.sleep(1e9)", 4),
        ("from sympy import *\nn = 1\n[factorint(k) for k in itertools.count(2)]", 4),
    ] {
        let mut session = remembering(soft(300, 30_000));
        session.run("import itertools");
        let outcome = session.run(&format!("early = 5\n{code}"));
        assert_eq!(outcome.status, Status::TimedOut { limit_ms: 300 }, "{code}\n{}", outcome.output);
        assert!(!outcome.rolled_back && outcome.elapsed_ms >= 300, "{outcome:?}");
        assert!(outcome.output.contains(&format!("File \"<cell 3>\", line {line}, in <module>")), "{}", outcome.output);
        let end = "TimeoutError: the time limit of this cell is reached\n\
                   [time limit of 0.3 s reached; the names bound so far are kept]\n";
        assert!(outcome.output.ends_with(end), "{}", outcome.output);
        session.set_limits(brief(60_000)).unwrap();
        assert_eq!(output(&mut session, "early, n > 0"), "(5, True)\n", "{code}");
        assert_remembers(&mut session);
    }
}

#[test]
fn a_sleep_that_ends_a_cell_is_cut_short_and_keeps_the_names() {
    let mut session = remembering(soft(300, 30_000));
    let outcome = session.run("import time\nearly = 5\ntime.sleep(1e9)");
    assert_eq!((outcome.status, outcome.rolled_back), (Status::TimedOut { limit_ms: 300 }, false));
    assert!(outcome.output.contains("[time limit of 0.3 s reached"), "{}", outcome.output);
    session.set_limits(brief(60_000)).unwrap();
    assert_eq!(output(&mut session, "early"), "5\n");
    assert_remembers(&mut session);
}

#[test]
fn a_time_out_can_be_caught_and_does_not_come_late() {
    let mut session = session_with(soft(300, 30_000));
    let caught =
        "try:\n    while True: pass\nexcept TimeoutError as e:\n    found = str(e)\nfinally:\n    done = True\nfound";
    assert_eq!(output(&mut session, caught), "'the time limit of this cell is reached'\n");
    for _ in 0..20 {
        session.set_limits(soft(1, 30_000)).unwrap();
        session.run("x = sum(range(1000))");
        session.set_limits(soft(60_000, 1_000)).unwrap();
        assert_eq!(output(&mut session, "1 + 1"), "2\n");
    }
}

#[test]
fn code_that_does_not_heed_the_exception_is_ended_and_undone() {
    for code in [
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "x = 10**10**8",
        "import re\nre.match(r'(a+)+$', 'a' * 40 + 'b')",
        // Nearly all of the time is the host's, which copies.
        "x = bytes(10**8)\nwhile True:\n    try:\n        while True: y = x + x\n    except BaseException: pass",
    ] {
        let mut session = remembering(soft(200, 400));
        let outcome = session.run(&format!("known = 0\n{code}"));
        assert_eq!(outcome.status, Status::TimedOut { limit_ms: 200 }, "{code}\n{}", outcome.output);
        assert!(outcome.rolled_back && outcome.elapsed_ms >= 600, "{code} {outcome:?}");
        session.set_limits(brief(60_000)).unwrap();
        assert_remembers(&mut session);
    }
}

#[test]
fn memory_that_runs_short_is_an_exception_first() {
    let mut session = remembering(Limits { memory_bytes: 400 << 20, ..soft(60_000, 1_000) });
    let outcome = session.run("x = []\nwhile True: x.append(bytes(10**5))");
    assert!(matches!(&outcome.status, Status::Exception { kind, .. } if kind == "MemoryError"), "{outcome:?}");
    assert!(outcome.output.contains("line 2, in <module>"), "{}", outcome.output);
    // The memory is still full, and yet there is room for calls that look at it and let go of it.
    assert_eq!(output(&mut session, "sum(map(len, x)) // 10**5 == len(x), list(range(1000))[-1]"), "(True, 999)\n");
    assert_eq!(output(&mut session, "n = len(x); x = None; n > 1000"), "True\n");
    assert_eq!(output(&mut session, "len([bytes(10**5) for _ in range(n // 2)]) == n // 2"), "True\n");
    assert_remembers(&mut session);
}

#[test]
fn a_session_answers_as_many_calls_as_it_may() {
    let mut session = session_with(Limits { n_calls: 2, ..brief(60_000) });
    output(&mut session, "x = 1");
    assert_eq!(output(&mut session, "x"), "1\n");
    let outcome = session.run("x = 2");
    assert_eq!(outcome.status, Status::NoCallsLeft { limit: 2 });
    assert_eq!(outcome.output, "[limit of 2 calls reached; nothing was run]\n");
    session.set_limits(brief(60_000)).unwrap();
    assert_eq!(output(&mut session, "x"), "1\n");
}

#[test]
fn asking_for_too_much_memory_is_an_exception() {
    let mut session = remembering(brief(60_000));
    for (code, kind) in [
        ("[0] * 10**10", "OverflowError|MemoryError"),
        ("x = [0] * (5 * 10**8)", "MemoryError"),
        ("list(range(10**12))", "OverflowError|MemoryError"),
        ("'a' * 10**12", "OverflowError|MemoryError"),
        ("bytes(10**12)", "OverflowError|MemoryError"),
        ("f'{1:1000000000000}'", "ValueError|OverflowError|MemoryError"),
    ] {
        let outcome = session.run(code);
        match &outcome.status {
            Status::Exception { kind: raised, .. } => assert!(kind.contains(raised.as_str()), "{code}: {raised}"),
            Status::OutOfMemory { .. } => {}
            other => panic!("{code}: {other:?} {}", outcome.output),
        }
        assert_remembers(&mut session);
    }
}

#[test]
fn growing_for_ever_ends_and_is_undone() {
    let limits = Limits { memory_bytes: 512 << 20, ..brief(60_000) };
    for code in ["x = []\nwhile True: x.append([0] * 1000)", "s = 'a'\nwhile True: s += s"] {
        let mut session = remembering(limits);
        let outcome = session.run(&format!("known = 0\n{code}"));
        match outcome.status {
            Status::OutOfMemory { limit_bytes } => {
                assert_eq!(limit_bytes, 512 << 20);
                assert!(outcome.output.contains("[memory limit of 512 MiB reached; the session was restored"));
            }
            Status::Exception { kind, .. } if kind == "MemoryError" => {
                // What had grown is still there; the session can go on once it is let go.
                output(&mut session, "x = s = None; known = 17");
            }
            other => panic!("{code}: {other:?} {}", outcome.output),
        }
        assert_remembers(&mut session);
    }
}

#[test]
fn memory_can_be_used_up_to_the_limit_again_and_again() {
    let mut session = session_with(Limits { memory_bytes: 512 << 20, ..brief(60_000) });
    for _ in 0..5 {
        assert_eq!(output(&mut session, "x = bytearray(150 << 20); n = len(x); del x; n"), "157286400\n");
    }
}

#[test]
fn recursion_ends_in_recursion_error() {
    let mut session = remembering(brief(60_000));
    for code in [
        "def f(n): return f(n + 1)\nf(0)",
        "class C:\n    def __repr__(self): return repr(self)\nC()",
        "class C:\n    def __eq__(self, other): return self == other\nC() == C()",
        "class C:\n    def __hash__(self): return hash(self)\nhash(C())",
        "class C:\n    def __getattr__(self, name): return getattr(self, name + 'x')\nC().a",
        "import json\nx = []\nfor _ in range(10**5): x = [x]\njson.dumps(x)",
        "x = []\nfor _ in range(10**5): x = [x]\nrepr(x)",
    ] {
        let outcome = session.run(code);
        match &outcome.status {
            Status::Exception { kind, .. } => assert_eq!(kind, "RecursionError", "{code}\n{}", outcome.output),
            Status::Crashed { .. } => assert!(outcome.output.contains("restored to its state"), "{}", outcome.output),
            // Nested data is walked with a stack large enough for this depth.
            Status::Ok if code.contains("x = [x]") => {}
            other => panic!("{code}: {other:?}"),
        }
        assert_remembers(&mut session);
    }
    assert_eq!(output(&mut session, "x = []; x.append(x); x"), "[[...]]\n");
    assert_eq!(output(&mut session, "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nf(15000)"), "15000\n");
}

#[test]
fn deeply_nested_source_never_breaks_the_session() {
    let mut session = remembering(brief(60_000));
    let sources = [
        "(".repeat(5000),
        format!("{}1{}", "(".repeat(5000), ")".repeat(5000)),
        format!("x = {}", vec!["1"; 10_000].join(" + ")),
        format!("x = {}1", "-".repeat(200_000)),
        format!("x = {}1", "not ".repeat(100_000)),
        format!("x = 1{}", " + 1".repeat(200_000)),
        format!("x = a{}", ".b".repeat(100_000)),
        format!("x = {}0{}", "[".repeat(90), "]".repeat(90)),
        (0..150).map(|depth| format!("{}if 1:\n", " ".repeat(depth))).collect::<String>() + &" ".repeat(150) + "x = 1",
        "exec('exec(' * 100 + '1' + ')' * 100)".to_owned(),
        format!("eval('{}1{}')", "(".repeat(3000), ")".repeat(3000)),
    ];
    for source in &sources {
        let outcome = session.run(source);
        let shown = &source[..source.len().min(60)];
        assert!(!matches!(outcome.status, Status::TimedOut { .. }), "{shown}: {outcome:?}");
        session.is_complete(source);
        assert_remembers(&mut session);
    }
}

#[test]
fn a_flood_of_output_is_bounded() {
    let mut session = remembering(brief(60_000));
    let outcome = session.run("for _ in range(100): print('x' * 10**6)");
    assert_eq!(outcome.status, Status::Ok);
    assert!(outcome.output.len() < (64 << 10) + 100);
    assert_eq!(outcome.truncated_bytes, 100_000_100 - (64 << 10));
    let outcome = session.run("print('\\x1b[31mred', end='')\nprint('\\ud800 lone', end='')");
    assert_eq!(outcome.output, "\u{1b}[31mred\u{fffd} lone");
    session.set_limits(brief(400)).unwrap();
    let outcome = session.run("while True: print('no newline', end='')");
    assert_timed_out(&outcome, 400);
    assert!(outcome.output.starts_with("no newlineno newline"), "{}", &outcome.output[..100]);
    session.set_limits(brief(60_000)).unwrap();
    assert_remembers(&mut session);
}

#[test]
fn bombs_of_other_kinds_end() {
    for code in [
        "import zlib\nb = zlib.compress(bytes(10**7))\nzlib.decompress(b, bufsize=2**31 - 1)\nx = [zlib.decompress(b) for _ in range(10**4)]",
        "from decimal import *\ngetcontext().prec = 10**9\nDecimal(1) / 3",
        "import marshal\nmarshal.loads(b'c' + b'\\xff' * 100)",
        "import pickle\npickle.loads(b'\\x80\\x04\\x95' + b'\\xff' * 8 + b'.')",
        "f = lambda: 0\nf.__code__ = f.__code__.replace(co_code=b'\\xff' * 64, co_stacksize=1)\nf()",
        "import atexit\natexit.register(lambda: [0 for _ in iter(int, 1)])",
        "class C:\n    def __del__(self): raise SystemExit\nfor _ in range(10): C()",
        "import gc\ngc.get_objects()\ngc.collect()",
        "int('9' * 10**6) % 7",
        "str(7**(10**6))[:3]",
    ] {
        let mut session = remembering(Limits { memory_bytes: 512 << 20, ..brief(1000) });
        session.run(code);
        session.set_limits(brief(60_000)).unwrap();
        assert_remembers(&mut session);
    }
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let error = python().session(Limits { memory_bytes: 1 << 20, ..Limits::default() }, 0).err().expect("too small");
    assert!(matches!(error, SandboxError::LimitTooSmall { name: "memory_bytes", actual: 0x10_0000, .. }), "{error}");
    assert!(python().session(Limits { time_ms: 0, ..Limits::default() }, 0).is_err());
    let outcome = session_with(Limits { output_bytes: 0, ..brief(60_000) }).run("print('hidden')");
    assert_eq!((outcome.status, outcome.truncated_bytes), (Status::Ok, 7));
}

#[test]
fn a_hard_stop_in_the_first_call_is_undone_as_well() {
    let mut session = session_with(brief(300));
    assert_timed_out(&session.run("x = 1\nwhile True: pass"), 300);
    session.set_limits(brief(60_000)).unwrap();
    raises(&mut session, "x", "NameError");
}

#[test]
fn many_stops_in_a_row_leave_the_session_whole() {
    let mut session = remembering(brief(100));
    for _ in 0..10 {
        assert_timed_out(&session.run("table.append(1)\nwhile True: table.append(2)"), 100);
    }
    session.set_limits(brief(60_000)).unwrap();
    assert_remembers(&mut session);
}

#[test]
fn sixty_four_sessions_run_side_by_side() {
    let results: Vec<String> = std::thread::scope(|scope| {
        let run = |i: u64| {
            let mut session = python().session(brief(120_000), i).expect("a session starts");
            output(&mut session, &format!("from sympy import *\nn = {i}"));
            output(&mut session, "prime(n + 1)")
        };
        let threads: Vec<_> = (0..64).map(|i| scope.spawn(move || run(i))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(results[0], "2\n");
    assert_eq!(results[63], "311\n");
}

#[cfg(target_os = "linux")]
#[test]
fn two_hundred_sessions_in_turn_leave_no_memory_behind() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon").to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<i64>().ok()).expect("a number")
    };
    let one = |i: u64| {
        let mut session = python().session(brief(60_000), i).expect("a session starts");
        assert_eq!(output(&mut session, "x = [0] * 10**5; len(x)"), "100000\n");
        assert_eq!(output(&mut session, "len(x) + 1"), "100001\n");
    };
    (0..20).for_each(one);
    let before_kib = resident_kib();
    (0..200).for_each(one);
    let grown_kib = resident_kib() - before_kib;
    // Each session touches more than 1 MiB: a leak of whole sessions would show as 200 MiB. Other tests of this
    // process run at the same time, so the bound is far above noise and far below that.
    assert!(grown_kib < 150 << 10, "{grown_kib} KiB");
}

#[test]
fn a_session_may_move_between_threads() {
    let mut session = session();
    output(&mut session, "x = 5");
    let mut session = std::thread::spawn(move || {
        assert_eq!(output(&mut session, "x"), "5\n");
        session
    })
    .join()
    .expect("no panic");
    assert_eq!(output(&mut session, "x + 1"), "6\n");
}

#[test]
fn what_many_calls_wrote_is_all_there_after_a_forced_stop() {
    let mut session = session_with(Limits { time_ms: 60_000, grace_ms: 0, ..Limits::default() });
    output(&mut session, "data = [[i] for i in range(60_000)]\nlog = []");
    for round in 0..12 {
        // A few old pages and some new ones, and more memory.
        let code = format!("for i in range({round}, 60_000, 97): data[i].append({round})\nlog.append(bytes(10**6))");
        output(&mut session, &code);
        if round % 4 == 3 {
            let check = "hash(tuple(map(tuple, data))), len(log)";
            let before = output(&mut session, check);
            let limits = Limits { time_ms: 1500, grace_ms: 0, ..Limits::default() };
            session.set_limits(limits).unwrap();
            let outcome = session.run("for part in data: part.clear()\nlog.clear()\nwhile True: data.append(0)");
            assert!(outcome.rolled_back, "{:?}", outcome.status);
            session.set_limits(Limits { time_ms: 60_000, grace_ms: 0, ..Limits::default() }).unwrap();
            assert_eq!(output(&mut session, check), before, "round {round}");
        }
    }
}
