//! A cell as a notebook user expects it: state, echo, order of output, tracebacks, hints, completeness.

use crate::common::{output, raises, session};
use sandbox::{Completeness, Limits, Status};

#[test]
fn names_persist_from_call_to_call() {
    let mut session = session();
    assert_eq!(output(&mut session, "x = 20\ndef f(n):\n    return n + x"), "");
    assert_eq!(output(&mut session, "f(1)"), "21\n");
    assert_eq!(output(&mut session, "x = 1; f(1)"), "2\n");
    assert_eq!(output(&mut session, "_ + 1"), "3\n");
    assert_eq!(output(&mut session, "__name__"), "'__main__'\n");
}

#[test]
fn names_bound_before_an_exception_persist() {
    let mut session = session();
    raises(&mut session, "a = 5\nb = 1 // 0\nc = 6", "ZeroDivisionError");
    assert_eq!(output(&mut session, "a"), "5\n");
    raises(&mut session, "c", "NameError");
}

#[test]
fn the_last_bare_expression_is_echoed() {
    let cases = [
        ("1 + 1", "2\n"),
        ("'a\\nb'", "'a\\nb'\n"),
        ("x = 3; x", "3\n"),
        ("x = 3\nx\n\n# a comment", "3\n"),
        ("None", ""),
        ("x = 4", ""),
        ("1; 2", "2\n"),
        ("for i in range(3): i", ""),
        ("print(1)", "1\n"),
        ("print(1) or 2", "1\n2\n"),
        ("(1,\n 2,\n)", "(1, 2)\n"),
        ("[i**2\n for i in range(4)]", "[0, 1, 4, 9]\n"),
        ("if True:\n    5", ""),
        ("'é€😀'", "'é€😀'\n"),
        ("", ""),
        ("# nothing", ""),
        ("\r\nx = 1\r\nx\r\n", "1\n"),
        ("lambda_ = lambda: 7\nlambda_()", "7\n"),
        ("(y := 9)", "9\n"),
        ("print('no newline', end='')", "no newline"),
        ("def f(): return 1", ""),
        ("class C: pass", ""),
        ("a: int = 5\nif a:\n    b: int = 6\na + b", "11\n"),
        ("a: int = 5", ""),
        ("def f(n: int) -> int:\n    m: int = n\n    return m\nf(3)", "3\n"),
        ("from __future__ import annotations\ndef f(n: int): pass\nf.__annotations__", "{'n': 'int'}\n"),
    ];
    let mut session = session();
    for (code, expected) in cases {
        assert_eq!(output(&mut session, code), expected, "{code:?}");
    }
}

#[test]
fn stdout_and_stderr_come_in_order() {
    let code = "import sys\nprint('a')\nprint('b', file=sys.stderr)\nsys.stdout.write('c\\n')\nsys.stderr.write('d\\n')\n\
                sys.stdout.buffer.write(b'e\\n')\nprint('f', flush=True)\n'g'";
    assert_eq!(output(&mut session(), code), "a\nb\nc\nd\ne\nf\n'g'\n");
}

#[test]
fn a_replaced_stdout_does_not_outlive_its_cell() {
    let mut session = session();
    assert_eq!(output(&mut session, "import io, sys\nsys.stdout = io.StringIO()\nprint('lost')"), "");
    assert_eq!(output(&mut session, "print('seen')"), "seen\n");
    let captured =
        "from contextlib import redirect_stdout\nwith redirect_stdout(io.StringIO()) as f: print('in')\nf.getvalue()";
    assert_eq!(output(&mut session, captured), "'in\\n'\n");
    output(&mut session, "sys.stdout.close(); sys.stderr.close()");
    assert_eq!(output(&mut session, "print('open')"), "open\n");
}

#[test]
fn a_traceback_shows_the_users_lines_and_nothing_else() {
    let mut session = session();
    output(&mut session, "def g(n):\n    return 10 // n\n");
    let outcome = raises(&mut session, "x = 1\ny = g(x - 1) + 2", "ZeroDivisionError");
    let text = &outcome.output;
    assert!(
        text.starts_with("Traceback (most recent call last):\n  File \"<cell 2>\", line 2, in <module>\n"),
        "{text}"
    );
    assert!(text.contains("    y = g(x - 1) + 2\n        ~^^^^^^^\n"), "{text}");
    assert!(text.contains("  File \"<cell 1>\", line 2, in g\n    return 10 // n\n           ~~~^^~~\n"), "{text}");
    assert!(text.ends_with("ZeroDivisionError: division by zero\n"), "{text}");
    for hidden in ["_cell", "exec", "eval", "compile_cell"] {
        assert!(!text.contains(hidden), "{hidden} in {text}");
    }
}

#[test]
fn a_syntax_error_points_at_the_place() {
    let outcome = raises(&mut session(), "x = 1\ny = (2 +\nz = 3", "SyntaxError");
    assert!(outcome.output.contains("File \"<cell 1>\", line 2"), "{}", outcome.output);
    assert!(outcome.output.contains("    y = (2 +\n        ^"), "{}", outcome.output);
    assert!(!outcome.output.contains("Traceback"), "{}", outcome.output);
    assert!(!outcome.output.contains("_cell.py"), "{}", outcome.output);
}

#[test]
fn a_chained_exception_shows_both() {
    let code = "try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('no k') from e";
    let text = raises(&mut session(), code, "ValueError").output;
    assert!(text.contains("KeyError: 'k'\n\nThe above exception was the direct cause"), "{text}");
    assert!(text.ends_with("ValueError: no k\n"), "{text}");
}

#[test]
fn a_deep_traceback_is_short() {
    let text = raises(&mut session(), "def f(n):\n    return f(n + 1)\nf(0)", "RecursionError").output;
    assert!(text.len() < 4000, "{} bytes: {text}", text.len());
    assert!(text.contains("more calls ...]"), "{text}");
}

#[test]
fn library_frames_are_few_and_named_without_host_paths() {
    let text =
        raises(&mut session(), "from sympy import *\nMatrix([[1, 2], [2, 4]]).inv()", "NonInvertibleMatrixError")
            .output;
    assert!(text.contains("<cell 1>\", line 2"), "{text}");
    assert!(text.lines().count() < 10, "{text}");
    assert!(!text.contains("/root") && !text.contains("/home"), "{text}");
}

#[test]
fn a_repr_that_fails_is_the_cells_exception() {
    let code = "class C:\n    def __repr__(self):\n        raise TypeError('no repr')\nC()";
    assert!(raises(&mut session(), code, "TypeError").output.ends_with("TypeError: no repr\n"));
    let outcome = raises(&mut session(), "class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E");
    assert!(matches!(outcome.status, Status::Exception { message, .. } if message.contains("str() of this exception")));
}

#[test]
fn hints_help_where_one_is_known() {
    let mut session = session();
    let text = raises(&mut session, "import scipy.optimize", "ModuleNotFoundError").output;
    assert!(text.contains("No module named 'scipy'"), "{text}");
    assert!(
        text.ends_with(
            "[scipy is not available here: use mpmath (quad, findroot, odefun) or sympy (integrate, nsolve)]\n"
        ),
        "{text}"
    );
    let text = raises(&mut session, "import frobnicate", "ModuleNotFoundError").output;
    assert!(
        text.ends_with(
            "[available here: the standard library, sympy, mpmath, numpy (a part of it) and gmpy2 (its integers)]\n"
        ),
        "{text}"
    );
    let text = raises(&mut session, "import sympy\nsympy.factorin(12)", "AttributeError").output;
    assert!(text.ends_with("[did you mean 'factorint'?]\n"), "{text}");
    let text = raises(&mut session, "sympy.valuation(8, 2)", "AttributeError").output;
    assert!(text.ends_with("[did you mean 'multiplicity'?]\n"), "{text}");
    let text = raises(&mut session, "from sympy import *\nfactorin(12)", "NameError").output;
    assert!(text.ends_with("[did you mean 'factorint'?]\n"), "{text}");
    let text = raises(&mut session, "value = 1\nvalve", "NameError").output;
    assert!(text.contains("id you mean"), "{text}");
    let text = raises(&mut session, "n = input('n? ')", "EOFError").output;
    assert!(text.contains("write the values into the code"), "{text}");
}

#[test]
fn leaving_is_an_outcome_not_an_end() {
    let mut session = session();
    for (code, expected) in [
        ("import sys; sys.exit()", 0),
        ("exit(3)", 3),
        ("quit()", 0),
        ("raise SystemExit('bye')", 1),
        ("try:\n    x = 1\nfinally:\n    raise SystemExit(4)", 4),
    ] {
        assert_eq!(session.run(code).status, Status::Exited { code: expected }, "{code}");
    }
    assert_eq!(output(&mut session, "x"), "1\n");
    let outcome = session.run("import os\nx = 2\nprint('now')\nos._exit(5)");
    assert_eq!(outcome.status, Status::Exited { code: 5 });
    assert!(outcome.output.starts_with("now\n[the code ended the process with status 5; the session was restored"));
    assert_eq!(output(&mut session, "x"), "1\n");
}

#[test]
fn output_keeps_head_and_tail() {
    let limits = Limits { output_bytes: 1000, time_ms: 60_000, ..Limits::default() };
    let outcome = crate::common::session_with(limits).run("for i in range(100000): print(i)");
    assert_eq!(outcome.status, Status::Ok);
    assert!(outcome.output.starts_with("0\n1\n2\n"), "{}", outcome.output);
    assert!(outcome.output.ends_with("99998\n99999\n"), "{}", outcome.output);
    assert!(outcome.output.contains(&format!("[... {} bytes of output dropped ...]", outcome.truncated_bytes)));
    assert!(outcome.output.len() < 1100 && outcome.truncated_bytes > 580_000, "{outcome:?}");
}

#[test]
fn completeness_is_the_interactive_interpreters() {
    use Completeness::{Complete, Incomplete, Invalid};
    let mut session = session();
    for (code, expected) in [
        ("1 + 1", Complete),
        ("", Complete),
        ("# only a comment", Complete),
        ("x = 1\ny = 2", Complete),
        ("def f():", Incomplete),
        ("def f():\n    return 1", Incomplete),
        ("def f():\n    return 1\n", Complete),
        ("for i in range(3): print(i)", Complete),
        ("x = (1,", Incomplete),
        ("'''abc", Incomplete),
        ("x = 1 +", Invalid),
        ("x = )", Invalid),
        ("1 = x", Invalid),
    ] {
        assert_eq!(session.is_complete(code), expected, "{code:?}");
    }
    assert_eq!(output(&mut session, "len([n for n in dir() if not n.startswith('_')])"), "0\n");
}

#[test]
fn what_a_cell_defines_can_be_looked_into() {
    let mut session = session();
    assert_eq!(
        output(&mut session, "import inspect\ndef f(x):\n    return x\ninspect.getsource(f)"),
        "'def f(x):\\n    return x\\n'\n"
    );
    let dataclass = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 2\nP(1)";
    assert_eq!(output(&mut session, dataclass), "P(x=1, y=2)\n");
    assert_eq!(output(&mut session, "import pickle\npickle.loads(pickle.dumps(P(3)))"), "P(x=3, y=2)\n");
}

#[test]
fn a_huge_value_is_shown_by_its_ends() {
    let mut session =
        crate::common::session_with(Limits { output_bytes: 4 << 20, time_ms: 60_000, ..Limits::default() });
    for (setup, starts, ends) in [
        ("list(range(4 * 10**6))", "[0, 1, 2, ", ", 3999998, 3999999]\n"),
        ("[[k] * 3000 for k in range(3000)]", "[[0, 0, 0, ", ", 2999, 2999]]\n"),
        ("'ab' * 10**7", "'abab", "abab'\n"),
        ("{k: -k for k in range(10**6)}", "{0: 0, 1: -1, ", "more ...]}\n"),
        ("7**(15 * 10**5)", "1148", "0001\n"),
        ("-10**(12 * 10**5)", "-1000", "0000\n"),
    ] {
        let outcome = session.run(setup);
        let text = &outcome.output;
        assert_eq!(outcome.status, Status::Ok, "{setup}");
        assert!(
            text.starts_with(starts) && text.ends_with(ends),
            "{setup}: {} {}",
            &text[..60],
            &text[text.len() - 60..]
        );
        assert!(
            text.len() < 2 << 20 && text.contains("[... ") && outcome.truncated_bytes == 0,
            "{setup}: {}",
            text.len()
        );
    }
    let check = "import _cell\n_cell.SHOWN_CHARS = 4000\ndef ends(n):\n    s, shown = str(n), _cell.ends(n)\n    \
                 head, tail = shown.split('[... ')[0], shown.split('...]')[1]\n    \
                 return s.startswith(head) and s.endswith(tail) and int(shown.split('[... ')[1].split()[0]) == len(s) - len(head) - len(tail)\n\
                 all(ends(n) for n in (10**6000, 10**6000 - 1, -7**7001, 2**20001))";
    assert_eq!(output(&mut session, check), "True\n");
    // Below the bound nothing changes.
    assert_eq!(
        output(&mut session, "len(repr(list(range(1000)))), list(range(3)), 10**30"),
        "(4890, [0, 1, 2], 1000000000000000000000000000000)\n"
    );
}
