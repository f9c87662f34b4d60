//! The native number theory against sympy's own code, which every replaced function keeps as `__wrapped__`; gmpy2
//! against values of the real one.

use crate::common::{output, raises, session};

/// Asserts in Python that both give the same, value or exception, for many arguments.
const COMPARE: &str = r#"
import random, sympy
from sympy import *
from sympy.ntheory.modular import crt
random.seed(11)

def result(f, args):
    try:
        value = f(*args)
        return list(value) if hasattr(value, '__next__') else value
    except Exception as error:
        return type(error).__name__, str(error)

def same(f, cases):
    assert hasattr(f, '__wrapped__'), f
    for args in cases:
        args = args if isinstance(args, tuple) else (args,)
        fast, slow = result(f, args), result(f.__wrapped__, args)
        assert fast == slow and type(fast) is type(slow), (f.__name__, args, fast, slow)

def numbers(n, bits):
    return [random.getrandbits(random.randint(1, bits)) for _ in range(n)]
edges = [-7, -1, 0, 1, 2, 3, 4, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 13, Integer(30), True]
"#;

fn compare(cases: &str) {
    let mut session = session();
    output(&mut session, COMPARE);
    assert_eq!(output(&mut session, cases), "", "{cases}");
}

#[test]
fn primes_are_sympys() {
    compare("same(isprime, edges + numbers(300, 90) + [2**89 - 1, 2**127 - 1, 3317044064679887385961981, 2.0])");
    compare("same(nextprime, [n for n in edges] + numbers(60, 70) + [(10, 3), (7, 0), 2.5])");
    compare("same(prevprime, edges + numbers(60, 70))");
    compare(
        "same(primerange, [(2, 100), (100, 2), (0, 1), (89, 98), (89, 97), (-5, 12), (30,), (2.5, 12.5), \
         (10**6, 10**6 + 200), (10**12, 10**12 + 100)])",
    );
    compare("same(prime, [1, 2, 10, 168, 1000, 0, -3, Integer(25), 5000])");
    let mut session = session();
    output(&mut session, COMPARE);
    let sums = "[primepi(n) for n in (-1, 0, 1, 2, 3, 100, 10**6, 10.5)], primepi(oo), sum(primerange(10**6))";
    assert_eq!(output(&mut session, sums), "([0, 0, 0, 1, 2, 25, 78498, 4], oo, 37550402023)\n");
    assert_eq!(
        output(&mut session, "sieve.extend(2000); len(list(sieve.primerange(2000))), sieve[100]"),
        "(303, 541)\n"
    );
    assert_eq!(output(&mut session, "prime(10**6), primepi(10**9), prime(10**7)"), "(15485863, 50847534, 179424673)\n");
}

#[test]
fn factors_are_sympys() {
    compare("same(factorint, edges + numbers(120, 60) + [2**64 * 9, 10**30 + 57, Rational(1, 2), 1009**7])");
    compare("same(divisors, edges + numbers(80, 40) + [(28, True), (28, False, True)])");
    compare("same(divisor_count, [0, 1, 28, 10**6, -12, (12, 3), Integer(60)] + numbers(60, 40))");
    compare(
        "same(multiplicity, [(2, 96), (3, 3**50), (10, 10**20 * 7), (2, 0), (1, 5), (6, 36), (2, -8), \
         (5, Rational(25, 3)), (Integer(2), Integer(12)), (0, 7)])",
    );
    let mut session = session();
    output(&mut session, COMPARE);
    // What the classes answer, beside their own way over symbols.
    let classes = "
n = Symbol('n', integer=True, positive=True)
for value in [1, 2, 12, 97, 360, 10**12, 2**61 - 1, 30030] + [v + 1 for v in numbers(50, 40)]:
    for f in (totient, mobius, divisor_sigma):
        fast, slow = f(value), f(n).subs(n, Integer(value))
        slow = f.eval(Integer(value)) if f is not divisor_sigma else f.eval(Integer(value), S(1))
        assert fast == slow and type(fast) is type(slow), (f, value, fast, slow)
totient(n), totient(10), mobius(30), divisor_sigma(28), divisor_sigma(6, 2), sympy.ntheory.factor_.totient.__name__";
    let text = output(&mut session, classes);
    assert_eq!(text.trim_end(), "(totient(n), 4, -1, 56, 50, 'totient')");
    raises(&mut session, "totient(0)", "ValueError");
    raises(&mut session, "totient(S(1)/2)", "TypeError");
    assert_eq!(
        output(&mut session, "factorint(9999999967 * 9999999943), factorint(360, multiple=True), factorint(-6)"),
        "({9999999943: 1, 9999999967: 1}, [2, 2, 2, 3, 3, 5], {2: 1, 3: 1, -1: 1})\n"
    );
    assert_eq!(output(&mut session, "sum(totient(k) for k in range(1, 10001))"), "30397486\n");
}

#[test]
fn residues_are_sympys() {
    compare("same(n_order, [(a, n) for n in range(1, 40) for a in range(0, n + 2)] + [(2, 10**12 + 39), (3, 2**70)])");
    compare("same(primitive_root, list(range(1, 120)) + [10**9 + 7, 2 * 41**3, (41, False)])");
    compare(
        "same(sqrt_mod, [(a, p, r) for p in (2, 3, 7, 8, 13, 15, 41, 49, 97) for a in range(-3, p + 2) for r in \
         (False, True)] + [(5, 10**9 + 9), (3, 10**12 + 39)])",
    );
    compare(
        "same(discrete_log, [(n, a, b) for n in (2, 7, 9, 11, 15, 16, 41) for b in range(1, n) for a in range(n) if \
         gcd(b, n) == 1] + [(10**9 + 7, 123456, 5), (41, 15, 7)])",
    );
    compare(
        "same(crt, [([3, 5, 7], [2, 3, 2]), ([4, 6], [1, 3]), ([4, 6], [1, 2]), ([2**70 + 1, 3], [5, 1]), \
         ([12, 6, 17], [3, 4, 2]), ([5], [-1]), ([99, 97, 95], [49, 76, 65], True)])",
    );
}

#[test]
fn long_native_work_ends_by_the_time_limit() {
    let limits = sandbox::Limits { time_ms: 500, grace_ms: 5000, ..sandbox::Limits::default() };
    let mut session = crate::common::session_with(limits);
    let outcome = session.run("from sympy import *\nkept = 1\nprimepi(10**13)");
    assert_eq!(outcome.status, sandbox::Status::TimedOut { limit_ms: 500 }, "{}", outcome.output);
    assert!(!outcome.rolled_back, "{}", outcome.output);
    assert_eq!(session.run("kept").output, "1\n");
}

#[test]
fn gmpy2_does_its_integers() {
    let mut session = session();
    output(&mut session, "import gmpy2\nfrom gmpy2 import mpz");
    // gmpy2 2.3's answers.
    for (code, expected) in [
        ("mpz(5), mpz('123'), mpz('ff', 16), str(mpz(7))", "(mpz(5), mpz(123), mpz(255), '7')"),
        ("mpz(7) * 3 + 1, 2 ** mpz(10), mpz(7) // 2, mpz(-7) % 3", "(mpz(22), mpz(1024), mpz(3), mpz(2))"),
        ("gmpy2.is_prime(97), gmpy2.is_prime(2**127 - 1), gmpy2.is_prime(91)", "(True, True, False)"),
        (
            "gmpy2.next_prime(100), gmpy2.next_prime(2**64), gmpy2.prev_prime(100)",
            "(mpz(101), mpz(18446744073709551629), mpz(97))",
        ),
        ("gmpy2.powmod(2, 100, 101), gmpy2.invert(3, 7), gmpy2.divm(1, 3, 7)", "(mpz(1), mpz(5), mpz(5))"),
        (
            "gmpy2.isqrt(10**20), gmpy2.iroot(27, 3), gmpy2.iroot(28, 3)",
            "(mpz(10000000000), (mpz(3), True), (mpz(3), False))",
        ),
        ("gmpy2.isqrt_rem(10), gmpy2.iroot_rem(100, 3)", "((mpz(3), mpz(1)), (mpz(4), mpz(36)))"),
        ("gmpy2.gcd(12, 18), gmpy2.lcm(4, 6), gmpy2.gcdext(240, 46)", "(mpz(6), mpz(12), (mpz(2), mpz(-9), mpz(47)))"),
        (
            "gmpy2.fac(20), gmpy2.bincoef(10, 3), gmpy2.comb(5, 2), gmpy2.primorial(10)",
            "(mpz(2432902008176640000), mpz(120), mpz(10), mpz(210))",
        ),
        (
            "gmpy2.fib(100), gmpy2.fib2(10), gmpy2.lucas(10)",
            "(mpz(354224848179261915075), (mpz(55), mpz(34)), mpz(123))",
        ),
        ("gmpy2.jacobi(2, 15), gmpy2.legendre(2, 7), gmpy2.kronecker(3, 8)", "(1, 1, -1)"),
        ("gmpy2.is_square(49), gmpy2.is_power(27), gmpy2.is_power(12), gmpy2.is_even(4)", "(True, True, False, True)"),
        (
            "gmpy2.remove(96, 2), gmpy2.popcount(255), gmpy2.bit_length(255), gmpy2.num_digits(12345)",
            "((mpz(3), 5), 8, 8, 5)",
        ),
        (
            "gmpy2.t_div(-7, 2), gmpy2.f_div(-7, 2), gmpy2.c_div(7, 2), gmpy2.t_mod(-7, 2)",
            "(mpz(-3), mpz(-4), mpz(4), mpz(-1))",
        ),
        ("gmpy2.digits(255, 16), mpz(3) == 3, {mpz(3): 1}[3], [1, 2][mpz(1)]", "('ff', True, 1, 2)"),
        ("from sympy import *; sqrt(mpz(8)), factorint(int(mpz(12)))", "(2*sqrt(2), {2: 2, 3: 1})"),
    ] {
        assert_eq!(output(&mut session, code).trim_end(), expected, "{code}");
    }
    raises(&mut session, "gmpy2.invert(2, 4)", "ZeroDivisionError");
    let text = raises(&mut session, "gmpy2.mpfr(2)", "AttributeError").output;
    assert!(text.contains("gmpy2.mpfr is not available here; available: ") && text.contains("powmod"), "{text}");
}
