//! Snapshots and forks of a live session: copies that go on by themselves.

use crate::common::{output, raises, session, session_with};
use sandbox::{Limits, Status};

#[test]
fn a_fork_knows_what_the_session_knew_and_goes_its_own_way() {
    let mut first = session();
    output(&mut first, "from sympy import *\nx = symbols('x')\ndata = {'a': [1, 2]}\ndef f(n): return n + len(data)");
    let mut second = first.fork().unwrap();
    output(&mut first, "data['a'].append(3); data['b'] = 0");
    output(&mut second, "data['a'].clear()");
    assert_eq!(output(&mut first, "data, f(1), factor(x**2 - 1)"), "({'a': [1, 2, 3], 'b': 0}, 3, (x - 1)*(x + 1))\n");
    assert_eq!(output(&mut second, "data, f(1), factor(x**2 - 1)"), "({'a': []}, 2, (x - 1)*(x + 1))\n");
    drop(first);
    assert_eq!(output(&mut second, "data"), "{'a': []}\n");
}

#[test]
fn forks_have_the_same_future() {
    let mut first = session();
    output(&mut first, "import random, os, time\nrandom.random(); os.urandom(3)");
    let snapshot = first.snapshot();
    let code = "random.random(), os.urandom(4), random.getrandbits(100)";
    let expected = output(&mut first, code);
    for _ in 0..3 {
        assert_eq!(output(&mut snapshot.session().unwrap(), code), expected);
    }
    assert_eq!(output(&mut first, "then = time.monotonic(); then >= 0"), "True\n");
    assert_eq!(output(&mut first.fork().unwrap(), "0 <= time.monotonic() - then < 60"), "True\n");
}

#[test]
fn a_fork_of_a_fresh_session_and_of_a_fork() {
    let fresh = session();
    let mut one = fresh.fork().unwrap();
    output(&mut one, "n = 1");
    let mut two = one.fork().unwrap();
    output(&mut two, "n += 1");
    let mut three = two.fork().unwrap();
    output(&mut three, "n += 1");
    assert_eq!(
        (output(&mut one, "n"), output(&mut two, "n"), output(&mut three, "n")),
        ("1\n".into(), "2\n".into(), "3\n".into())
    );
}

#[test]
fn a_stopped_call_of_a_fork_is_undone_as_well() {
    let mut first = session();
    output(&mut first, "table = list(range(10**5))");
    let mut fork = first.fork().unwrap();
    fork.set_limits(Limits { time_ms: 300, grace_ms: 0, ..Limits::default() }).unwrap();
    let outcome = fork.run("table.clear()\nwhile True: pass");
    assert_eq!((outcome.status, outcome.rolled_back), (Status::TimedOut { limit_ms: 300 }, true));
    fork.set_limits(Limits { time_ms: 60_000, ..Limits::default() }).unwrap();
    assert_eq!(output(&mut fork, "len(table), sum(table)"), "(100000, 4999950000)\n");
    raises(&mut fork, "undefined", "NameError");
}

#[test]
fn forks_of_a_grown_memory_and_their_count_of_calls() {
    let mut first = session_with(Limits { time_ms: 60_000, n_calls: 3, ..Limits::default() });
    output(&mut first, "big = bytearray(200 << 20); big[-1] = 7");
    let snapshot = first.snapshot();
    assert!(snapshot.n_bytes() < 300 << 20, "{}", snapshot.n_bytes());
    let mut fork = snapshot.session().unwrap();
    assert_eq!(output(&mut fork, "len(big), big[-1]"), "(209715200, 7)\n");
    output(&mut fork, "1");
    assert_eq!(fork.run("1").status, Status::NoCallsLeft { limit: 3 });
    assert_eq!(output(&mut first, "big[0]"), "0\n");
}

#[test]
fn a_verifier_can_run_the_same_cell_many_times() {
    let mut first = session();
    output(&mut first, "seen = []");
    let snapshot = first.snapshot();
    let results: Vec<String> = std::thread::scope(|scope| {
        let run = |k: usize| output(&mut snapshot.session().unwrap(), &format!("seen.append({k}); seen"));
        let threads: Vec<_> = (0..16).map(|k| scope.spawn(move || run(k))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (k, result) in results.iter().enumerate() {
        assert_eq!(result, &format!("[{k}]\n"));
    }
}
