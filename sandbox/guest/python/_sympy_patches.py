"""sympy's number theory on the native module `_ntheory`, under sympy's own names; its assumptions on `_facts`.

Called once, before the snapshot, by `_cell.start`. A replacement takes plain integers; for everything else (symbols,
rationals, options, numbers beyond the native code) it calls the function that it replaces, so that results and errors
stay sympy's.
"""

import _facts
import _ntheory as native
import functools
import itertools
import operator
import sys

from sympy.core.assumptions import StdFactKB
from sympy.core.expr import Expr
from sympy.core.facts import FactKB, InconsistentAssumptions
from sympy.core.numbers import Integer
from sympy.core.singleton import S
from sympy.functions.combinatorial import numbers
from sympy.ntheory import factor_, generate, modular, primetest, residue_ntheory

# Primes of a range are listed piece by piece, so that a loop that ends early does not pay for the rest.
PIECE = 1 << 20

new_expr = Expr.__new__
ONE, ZERO, MINUS_ONE, HALF = S.One, S.Zero, S.NegativeOne, S.Half


def integer(value):
    """`Integer(value)` without its cache."""
    if -1 <= value <= 1:
        return (ZERO, ONE, MINUS_ONE)[value]
    number = new_expr(Integer)
    number.p = value
    return number


def plain(value):
    """An int or sympy Integer as an int; None for anything else."""
    kind = type(value)
    if kind is int:
        return value
    return value.p if issubclass(kind, Integer) else None


def replaces(module, name=None):
    """Puts the decorated function in the place of `module.name`, wherever sympy has imported it to."""

    def put(make):
        original_name = name or make.__name__
        original = vars(module)[original_name]
        function = functools.wraps(original)(make(original))
        for path, where in list(sys.modules.items()):
            if path == "sympy" or path.startswith("sympy."):
                for key, value in list(vars(where).items()):
                    if value is original:
                        setattr(where, key, function)
        return make

    return put


def answers(module, name=None):
    """Replaces a function of numbers by one that asks `fast` first."""

    def put(fast):
        n_args = fast.__code__.co_argcount

        @replaces(module, name or fast.__name__)
        def make(original):
            def function(*args, **options):
                if not options and len(args) == n_args:
                    numbers = [plain(arg) for arg in args]
                    if None not in numbers:
                        answer = fast(*numbers)
                        if answer is not None:
                            return answer
                return original(*args, **options)

            return function

        return fast

    return put


def constructs(kind):
    """Lets a class of sympy that stands for a function answer plain integers before it builds an expression."""

    def put(fast):
        original = kind.__new__

        def new(cls, *args, **options):
            if len(args) == 1 and not options:
                n = plain(args[0])
                if n is not None:
                    answer = fast(n)
                    if answer is not None:
                        return integer(answer)
            return original(cls, *args, **options)

        kind.__new__ = staticmethod(new)
        return fast

    return put


original_deduction = FactKB.deduce_all_facts


@functools.wraps(original_deduction)
def deduce_all_facts(self, facts):
    if type(self) is not StdFactKB:
        return original_deduction(self, facts)
    rules = self.rules
    facts = list(facts.items() if isinstance(facts, dict) else facts)
    wrong = _facts.deduce(self, facts, rules.full_implications, rules.beta_triggers, rules.beta_rules)
    if wrong:
        raise InconsistentAssumptions(self, *wrong)


FactKB.deduce_all_facts = deduce_all_facts


@replaces(primetest)
def isprime(original):
    is_prime = native.is_prime

    def isprime(n):
        answer = is_prime(n)
        if answer is None:
            n = primetest.as_int(n)
            answer = is_prime(n)
            if answer is None:
                return original(n)
        return answer

    return isprime


@replaces(factor_)
def factorint(original):
    def factorint(n, *args, **options):
        value = plain(n)
        if value is None or args or options and options != {"multiple": True}:
            return original(n, *args, **options)
        found = native.factor(abs(value))
        if found is None:
            return original(n, **options)
        factors, rest = found
        if rest != 1:
            for prime, exponent in original(rest).items():
                factors[prime] = factors.get(prime, 0) + exponent
        if value < 0:
            factors[-1] = 1
        if options:
            return list(itertools.chain.from_iterable([p] * factors[p] for p in sorted(factors)))
        return factors

    return factorint


@replaces(factor_)
def divisors(original):
    def divisors(n, generator=False, proper=False):
        value = plain(n)
        # A generator yields them in an order of its own.
        found = None if value is None or generator else native.divisors(abs(value))
        if found is None:
            return original(n, generator, proper)
        if proper:
            found.pop()
        return found

    return divisors


@answers(factor_)
def divisor_count(n):
    count = native.divisor_count(n)
    return None if count is None else integer(count)


@answers(factor_)
def multiplicity(p, n):
    if p < 2 or not n:
        return None
    # Squares of p first: the power is found in logarithmically many divisions.
    power, count, found = p, 1, 0
    powers = []
    while n % power == 0:
        powers.append((power, count))
        n //= power
        found += count
        power, count = power * power, 2 * count
    for power, count in reversed(powers):
        while n % power == 0:
            n //= power
            found += count
    return found


constructs(numbers.totient)(native.totient)
constructs(numbers.mobius)(native.mobius)
constructs(numbers.primepi)(lambda n: native.prime_pi(n) if n >= 0 else 0)


@constructs(numbers.divisor_sigma)
def divisor_sigma(n):
    found = native.divisors(n)
    return None if found is None else sum(found)


@answers(generate)
def _primepi(n):
    return native.prime_pi(n)


@answers(generate)
def prime(nth):
    return native.nth_prime(nth)


@replaces(generate)
def nextprime(original):
    def nextprime(n, ith=1):
        answer = native.next_prime(n) if ith == 1 else None
        return original(n, ith) if answer is None else answer

    return nextprime


@replaces(generate)
def prevprime(original):
    def prevprime(n):
        answer = native.prev_prime(n)
        return original(n) if answer is None else answer

    return prevprime


def pieces(start, end):
    step = 1 << 16
    while start < end:
        yield native.primes(start, min(start + step, end))
        start += step
        step = min(step * 2, PIECE)


@replaces(generate)
def primerange(original):
    def primerange(a, b=None):
        start, end = (2, plain(a)) if b is None else (plain(a), plain(b))
        if start is None or end is None or native.primes(0, max(end, 0) and 1) is None or end > 1 << 48:
            return original(a, b)
        return itertools.chain.from_iterable(pieces(max(start, 2), end))

    return primerange


def sieved(self, a, b):
    # The caller's conditions hold; primes of the open range.
    return itertools.chain.from_iterable(pieces(a + 1, b))


generate.Sieve._primerange = sieved


@answers(residue_ntheory)
def n_order(a, n):
    return native.n_order(a % n, n) if n > 1 else None


@replaces(residue_ntheory)
def primitive_root(original):
    def primitive_root(p, smallest=True):
        answer = native.primitive_root(p) if smallest else None
        return original(p, smallest) if answer is None else answer

    return primitive_root


@replaces(residue_ntheory)
def sqrt_mod(original):
    def sqrt_mod(a, p, all_roots=False):
        value, prime = plain(a), plain(p)
        roots = None
        if value is not None and prime is not None and prime > 2:
            roots = native.sqrt_mod_prime(value % prime, prime)
        if roots is None:
            return original(a, p, all_roots)
        if all_roots:
            return sorted({root for r in roots for root in (r, -r % prime)})
        return roots[0] if roots else None

    return sqrt_mod


@replaces(residue_ntheory)
def discrete_log(original):
    def discrete_log(n, a, b, order=None, prime_order=None):
        numbers = [plain(value) for value in (n, a, b)]
        found = None
        if order is None and prime_order is None and None not in numbers and numbers[0] > 1:
            modulus, target, base = numbers
            found = native.discrete_log(modulus, target % modulus, base % modulus)
        if found is None:
            return original(n, a, b, order, prime_order)
        if not found:
            raise ValueError("Log does not exist")
        return found[0]

    return discrete_log


@replaces(modular)
def crt(original):
    def crt(m, v, symmetric=False, check=True):
        m, v = list(m), list(v)
        if not symmetric:
            moduli, residues = [plain(x) for x in m], [plain(x) for x in v]
            if None not in moduli and None not in residues and all(x > 0 for x in moduli):
                found = native.crt(moduli, map(operator.mod, residues, moduli))
                if found is not None:
                    return found
        return original(m, v, symmetric, check)

    return crt
