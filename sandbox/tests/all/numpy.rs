//! numpy's part against the real one: `data/numpy.txt` holds what numpy 2.4 answered (`data/numpy_cases.py`).

use crate::common::{output, raises, session};

/// `>>> code` and the lines of its output.
fn cases() -> impl Iterator<Item = (String, String)> {
    include_str!("../data/numpy.txt").split(">>> ").skip(1).map(|case| {
        let (code, expected) = case.split_once('\n').expect("code and output");
        (code.to_owned(), expected.trim_end_matches('\n').to_owned())
    })
}

/// Names of what this numpy says otherwise on purpose: its message lists what there is.
const OTHER_MESSAGES: &[&str] = &["np.array([1, 2]).frobnicate"];

#[test]
fn expressions_give_numpys_results_and_errors() {
    let mut session = session();
    output(&mut session, "import numpy as np\nnames = dict(globals())");
    let mut wrong = Vec::new();
    let mut n_cases = 0;
    for (code, expected) in cases().filter(|(code, _)| !OTHER_MESSAGES.contains(&code.as_str())) {
        n_cases += 1;
        let outcome = session.run(&code.replace("\\n", "\n"));
        let shown = match &outcome.status {
            sandbox::Status::Exception { kind, message } => format!("{kind}: {message}"),
            _ => outcome.output.clone(),
        };
        // The real one's class is private, and a kind of TypeError.
        let expected = expected.replace("UFuncTypeError: ", "TypeError: ");
        if shown.trim_end() != expected.trim_end() {
            wrong.push(format!("{code}\n  expected: {expected}\n  got:      {}", shown.trim_end()));
        }
    }
    assert!(n_cases > 250, "{n_cases} cases");
    assert!(wrong.is_empty(), "{} of {n_cases}\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_is_not_there_says_what_is() {
    let mut session = session();
    output(&mut session, "import numpy as np");
    let text = raises(&mut session, "np.fft.fft([1, 2])", "AttributeError").output;
    assert!(text.contains("numpy.fft is not available here; available: ") && text.contains("linspace"), "{text}");
    let text = raises(&mut session, "np.linalg.svd(np.eye(2))", "AttributeError").output;
    assert!(text.contains("numpy.linalg.svd is not available here; available: det"), "{text}");
    let text = raises(&mut session, "np.array([1, 2]).frobnicate", "AttributeError").output;
    assert!(text.contains("arrays have no 'frobnicate' here; available: ") && text.contains("cumsum"), "{text}");
    let text = raises(&mut session, "np.zeros(3, dtype=np.float32)", "AttributeError").output;
    assert!(text.contains("numpy.float32 is not available here"), "{text}");
    let text = raises(&mut session, "np.zeros(3, dtype='int8')", "TypeError").output;
    assert!(text.contains("available: bool, int64, float64, complex128"), "{text}");
    let text = raises(&mut session, "np.array([10**30])", "OverflowError").output;
    assert!(text.contains("keep larger ones in lists"), "{text}");
    raises(&mut session, "np.zeros(10**10)", "MemoryError");
    raises(&mut session, "np.zeros((10**5, 1)) + np.zeros(10**5)", "MemoryError");
    raises(&mut session, "np.array(['a'])", "TypeError");
}

#[test]
fn numpy_and_sympy_live_together() {
    let mut session = session();
    output(&mut session, "import numpy as np\nfrom sympy import *\nx = symbols('x')");
    for (code, expected) in [
        ("lambdify(x, x**2 + sin(x))(0)", "np.float64(0.0)"),
        ("lambdify(x, x**2 + 1, 'numpy')(np.arange(3))", "array([1, 2, 5])"),
        ("lambdify(x, exp(x), 'math')(0)", "1.0"),
        ("Integer(np.int64(5)), sympify(np.float64(0.5)), isprime(np.int64(7))", "(5, 0.500000000000000, True)"),
        ("factorint(int(np.prod([2, 3, 5])))", "{2: 1, 3: 1, 5: 1}"),
        ("Matrix(np.array([[1, 2], [3, 4]])).det()", "-2"),
        ("from math import gcd, sqrt as r; gcd(np.int64(12), 18), r(np.float64(4))", "(6, 2.0)"),
        ("import json; json.dumps([int(k) for k in np.arange(3)])", "'[0, 1, 2]'"),
    ] {
        assert_eq!(output(&mut session, code).trim_end(), expected, "{code}");
    }
}

#[test]
fn sympy_takes_scalars_and_arrays() {
    let mut session = session();
    output(&mut session, "import numpy as np\nfrom sympy import *");
    for (code, expected) in [
        ("sympify(np.bool_(True)), sympify(np.int64(3)), sympify(np.complex128(2j))", "(True, 3, 2.0*I)"),
        ("sympify(np.float64(0.5)), sympify(np.float64('inf')), Integer(np.int64(7))", "(0.500000000000000, oo, 7)"),
        ("sympify(np.array([[1, 2], [3, 4]])), sympify(np.array([True]))", "([[1, 2], [3, 4]], [True])"),
        ("Matrix(np.eye(2, dtype=int)) == eye(2), Matrix(np.array([[1, 2], [3, 4]])).det()", "(True, -2)"),
        ("sympify(np.arange(3) > 1), sum(np.arange(4)) + Symbol('x')", "([False, False, True], x + 6)"),
    ] {
        assert_eq!(output(&mut session, code).trim_end(), expected, "{code}");
    }
}
