//! Sessions in processes of their own: the same answers, confined, and a worker that dies is an outcome.

use crate::common::python;
use sandbox::{Completeness, Limits, Status, WorkerSession, Workers};
use std::{path::PathBuf, time::Duration};

fn workers() -> Workers {
    Workers::new(python().clone(), PathBuf::from(env!("CARGO_BIN_EXE_sandbox-worker")), [])
}

fn session() -> WorkerSession {
    let limits = Limits { time_ms: 60_000, ..Limits::default() };
    workers().session(limits, 7).expect("a worker starts")
}

fn output(session: &mut WorkerSession, code: &str) -> String {
    let outcome = session.run(code);
    assert_eq!(outcome.status, Status::Ok, "{code}\n{}", outcome.output);
    outcome.output
}

#[test]
fn a_worker_answers_as_a_session_in_this_process_does() {
    let mut worker = session();
    let mut here = crate::common::session();
    for code in [
        "from sympy import *\nx = symbols('x')\nfactor(x**4 - 1)",
        "import random; random.random()",
        "print('é'); x",
        "1 // 0",
        "import sys; sys.exit(3)",
        "[k for k in range(10**5)]",
        "import os; os.urandom(4), len(os.environ)",
    ] {
        let (there, here) = (worker.run(code), here.run(code));
        let of =
            |outcome: sandbox::Outcome| (outcome.status, outcome.output, outcome.truncated_bytes, outcome.rolled_back);
        assert_eq!(of(there), of(here), "{code}");
    }
    assert_eq!(worker.is_complete("def f():"), Completeness::Incomplete);
    assert_eq!(output(&mut worker, "6 * 7"), "42\n");
}

#[test]
fn limits_hold_in_a_worker() {
    let limits = Limits { time_ms: 300, grace_ms: 300, memory_bytes: 400 << 20, ..Limits::default() };
    let mut worker = workers().session(limits, 1).unwrap();
    worker.run("kept = 5");
    let outcome = worker
        .run("import time\nwhile True:\n    try:\n        while True: time.sleep(9)\n    except BaseException: pass");
    assert_eq!((outcome.status, outcome.rolled_back), (Status::TimedOut { limit_ms: 300 }, true));
    let outcome = worker.run("x = []\nwhile True: x.append(bytes(10**6))");
    assert!(!matches!(outcome.status, Status::Crashed { .. }), "{outcome:?}");
    assert_eq!(worker.run("kept").output, "5\n");
    let error = workers().session(Limits { memory_bytes: 1, ..limits }, 1).err().expect("too little").to_string();
    assert!(error.contains("memory_bytes = 1"), "{error}");
}

#[test]
fn a_fork_in_another_process_goes_its_own_way() {
    let mut first = session();
    output(&mut first, "import random, time\nx = list(range(1000))\ndef f(): return sum(x)");
    let mut second = first.fork().unwrap();
    assert_ne!(first.process_id(), second.process_id());
    assert_eq!(output(&mut second, "random.random()"), output(&mut first, "random.random()"));
    output(&mut second, "x.append(10**6)");
    assert_eq!(output(&mut first, "f()"), "499500\n");
    assert_eq!(output(&mut second, "f()"), "1499500\n");
    // Both can be rolled back to where they are now.
    let limits = Limits { time_ms: 200, grace_ms: 0, ..Limits::default() };
    let mut third = workers().session(limits, 7).unwrap();
    output(&mut third, "y = [1]");
    let mut fourth = third.fork().unwrap();
    let outcome = fourth.run("y.append(2)\nwhile True: y.append(3)");
    assert!(outcome.rolled_back, "{outcome:?}");
    assert_eq!(output(&mut fourth, "y"), "[1]\n");
}

#[test]
fn warm_workers_are_as_good_as_fresh_ones() {
    let workers = workers();
    workers.keep_warm(2);
    let limits = Limits { time_ms: 60_000, ..Limits::default() };
    let cold = output(&mut session(), "import random\nrandom.random(), id(random) % 4096");
    for _ in 0..6 {
        let mut worker = workers.session(limits, 7).unwrap();
        assert_eq!(output(&mut worker, "import random\nrandom.random(), id(random) % 4096"), cold);
    }
    let python = python().clone();
    python.keep_warm(2);
    for _ in 0..6 {
        let mut here = python.session(limits, 7).unwrap();
        assert_eq!(here.run("import random\nrandom.random(), id(random) % 4096").output, cold);
    }
    python.keep_warm(0);
}

#[cfg(target_os = "linux")]
#[test]
fn a_worker_is_confined_and_holds_few_descriptors() {
    let worker = session();
    let confinement = worker.confinement().unwrap();
    assert!(confinement.has_limits && confinement.has_seccomp, "{confinement:?}");
    let id = worker.process_id().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    let n_open = std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count();
    assert!(n_open < 10, "{n_open} descriptors");
}

#[cfg(target_os = "linux")]
fn send(signal: &str, id: u32) {
    let done = std::process::Command::new("kill").args([signal, &id.to_string()]).status().expect("kill");
    assert!(done.success());
}

#[cfg(target_os = "linux")]
#[test]
fn a_worker_that_hangs_is_given_up() {
    let mut worker = workers().session(Limits { time_ms: 100, grace_ms: 0, ..Limits::default() }, 1).unwrap();
    let id = worker.process_id().unwrap();
    send("-STOP", id);
    // Its threads stop one after the other.
    let runs = |task: &std::path::Path| std::fs::read_to_string(task.join("stat")).unwrap().contains(") S ");
    while std::fs::read_dir(format!("/proc/{id}/task")).unwrap().any(|task| runs(&task.unwrap().path())) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let outcome = worker.run("1");
    assert!(matches!(&outcome.status, Status::Crashed { reason } if reason.contains("did not answer")), "{outcome:?}");
    assert_eq!(worker.run("1 + 1").output, "2\n");
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_worker_is_an_outcome_and_the_next_call_works() {
    let mut worker = session();
    output(&mut worker, "x = 5");
    let kill = |id: u32| send("-KILL", id);
    // Between two calls.
    kill(worker.process_id().unwrap());
    std::thread::sleep(Duration::from_millis(100));
    let outcome = worker.run("x");
    assert!(matches!(&outcome.status, Status::Crashed { reason } if reason.contains("signal: 9")), "{outcome:?}");
    assert!(outcome.output.contains("its names are lost"), "{outcome:?}");
    assert!(matches!(worker.run("x").status, Status::Exception { kind, .. } if kind == "NameError"));
    assert_eq!(output(&mut worker, "x = 6; x"), "6\n");
    // In the middle of one.
    let id = worker.process_id().unwrap();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        kill(id);
    });
    let outcome = worker.run("while True: pass");
    killer.join().unwrap();
    assert!(matches!(&outcome.status, Status::Crashed { reason } if reason.contains("signal: 9")), "{outcome:?}");
    assert_eq!(output(&mut worker, "1 + 1"), "2\n");
}

#[test]
fn a_program_that_is_no_worker_is_an_error() {
    let limits = Limits::default();
    for (program, expected) in
        [("/nowhere/worker", "/nowhere/worker"), ("/bin/true", "ended"), ("/bin/echo", "its worker")]
    {
        let arguments = [std::ffi::OsString::from("zzzzzzzz")];
        let error = Workers::new(python().clone(), PathBuf::from(program), arguments).session(limits, 1);
        let error = error.err().expect("no session").to_string();
        assert!(error.contains(expected), "{program}: {error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn no_process_is_left_behind() {
    let ids: Vec<u32> = (0..4).map(|_| session().process_id().unwrap()).collect();
    for id in ids {
        let command = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        assert!(!command.contains("sandbox-worker"), "{id} still runs");
    }
}
