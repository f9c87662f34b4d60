//! A small part of CPython's own tests, to show that the way works: the whole is `cargo xtask suites`.

use crate::{
    common::python,
    suite::{Verdict, failures_file, library, listed_test, run},
};
use sandbox::Limits;

#[test]
fn a_module_of_cpythons_own_tests_passes_but_for_what_is_listed() {
    let Some(root) = library("python3", "stdlib").filter(|root| root.join("test/test_dictcomps.py").is_file()) else {
        eprintln!("skipped: python3 has no test package (on Debian: apt-get install libpython3.11-testsuite)");
        return;
    };
    // Written by `cargo xtask suites cpython --record`.
    let Ok(expected) = std::fs::read_to_string(failures_file(&root)) else {
        eprintln!("skipped: there is no list of failures for {}", root.display());
        return;
    };
    let limits = Limits { time_ms: 120_000, ..Limits::default() };
    let report = run(python(), &root, "test.test_dictcomps", limits).unwrap();
    assert!(report.len() > 5, "{report:?}");
    let failed = report.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Failed(_)));
    let failed: Vec<_> = failed.map(|(test, _)| format!("test_dictcomps {test}")).collect();
    let listed = expected.lines().filter(|line| line.starts_with("test_dictcomps ")).map(listed_test);
    let listed: Vec<_> = listed.collect();
    assert_eq!(failed, listed, "{report:?}");
}

#[test]
fn a_module_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { time_ms: 120_000, ..Limits::default() };
    let error = run(python(), directory.path(), "nowhere", limits).unwrap_err();
    assert_eq!(error, "no module nowhere");
    std::fs::write(directory.path().join("test_here.py"), "def test_a(): pass\ndef test_b(): 1/0\n").unwrap();
    let report = run(python(), directory.path(), "test_here", limits).unwrap();
    assert_eq!(report[0], ("test_a".into(), Verdict::Passed));
    assert!(matches!(&report[1].1, Verdict::Failed(reason) if reason.contains("ZeroDivisionError")), "{report:?}");
}
