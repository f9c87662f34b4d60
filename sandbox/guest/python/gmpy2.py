"""The part of gmpy2 that contest code uses: integers, on Python's own and the native module `_ntheory`.

Results are `mpz`, an int that shows itself as gmpy2's does. Reals (mpfr), rationals beyond `mpq` and contexts are not
here; asking for one says what is.
"""

import _ntheory as native
import math
from fractions import Fraction as mpq

__version__ = "2.2.1"


class mpz(int):
    """An integer; arithmetic with it gives `mpz` again."""

    __slots__ = ()

    def __new__(cls, value=0, base=0):
        if isinstance(value, str):
            return int.__new__(cls, value, base or 10)
        return int.__new__(cls, value)

    def __repr__(self):
        return f"mpz({int(self)})"

    __str__ = int.__repr__

    def __hash__(self):
        return int.__hash__(self)

    def __divmod__(self, other):
        quotient, remainder = divmod(int(self), int(other))
        return mpz(quotient), mpz(remainder)

    def __pow__(self, exponent, modulus=None):
        result = pow(int(self), exponent, modulus)
        return mpz(result) if isinstance(result, int) else result

    def __rpow__(self, base):
        result = int(base) ** int(self)
        return mpz(result) if isinstance(result, int) else result

    def num_digits(self, base=10):
        return num_digits(self, base)

    def is_prime(self, reps=25):
        return is_prime(self, reps)

    def bit_length(self):
        return int.bit_length(self)

    def digits(self, base=10):
        return digits(self, base)


def _closed(name):
    method = getattr(int, name)

    def arithmetic(self, *others):
        result = method(self, *others)
        return mpz(result) if type(result) is int else result

    arithmetic.__name__ = name
    setattr(mpz, name, arithmetic)


for _name in "add sub mul floordiv mod and or xor lshift rshift".split():
    _closed(f"__{_name}__")
    _closed(f"__r{_name}__")
for _name in "neg pos abs invert round".split():
    _closed(f"__{_name}__")


def _integer(value):
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"an integer is required, not {type(value).__name__}")


def is_prime(x, reps=25):
    """Whether x is prime (proven below 3.3e24, Baillie-PSW above)."""
    x = _integer(x)
    answer = native.is_prime(x)
    if answer is None:
        from sympy import isprime

        answer = isprime(x)
    return answer


is_probab_prime = is_prime


def next_prime(x):
    x = _integer(x)
    answer = native.next_prime(max(x, 0))
    if answer is None:
        from sympy import nextprime

        answer = nextprime(x)
    return mpz(answer)


def prev_prime(x):
    x = _integer(x)
    if x < 3:
        raise ValueError("x must be >= 3")
    answer = native.prev_prime(x)
    if answer is None:
        from sympy import prevprime

        answer = prevprime(x)
    return mpz(answer)


def powmod(x, y, m):
    return mpz(pow(_integer(x), _integer(y), _integer(m)))


def invert(x, m):
    """The inverse of x modulo m; ZeroDivisionError where there is none."""
    m = _integer(m)
    try:
        return mpz(pow(_integer(x), -1, abs(m)))
    except ValueError:
        raise ZeroDivisionError("invert() no inverse exists") from None


def divm(a, b, m):
    """The x with b·x = a modulo m."""
    a, b, m = _integer(a), _integer(b), _integer(m)
    common = math.gcd(a, b, m)
    return mpz(a // common * invert(b // common, m // common) % (m // common))


def isqrt(x):
    return mpz(math.isqrt(_integer(x)))


def isqrt_rem(x):
    root = math.isqrt(_integer(x))
    return mpz(root), mpz(x - root * root)


def iroot(x, n):
    """The n-th root, rounded towards zero, and whether it is exact."""
    root, rest = iroot_rem(x, n)
    return root, rest == 0


def iroot_rem(x, n):
    x, n = _integer(x), _integer(n)
    if n <= 0:
        raise ValueError("n must be > 0")
    if x < 0:
        raise ValueError("iroot() of negative number")
    if x < 2:
        return mpz(x), mpz(0)
    # Newton's iteration from above.
    root = 1 << -(-x.bit_length() // n)
    while True:
        better = ((n - 1) * root + x // root ** (n - 1)) // n
        if better >= root:
            return mpz(root), mpz(x - root**n)
        root = better


def gcd(*numbers):
    return mpz(math.gcd(*map(_integer, numbers)))


def lcm(*numbers):
    return mpz(math.lcm(*map(_integer, numbers)))


def gcdext(a, b):
    """(g, s, t) with g = a·s + b·t."""
    a, b = _integer(a), _integer(b)
    s, next_s, r, next_r = 1, 0, a, b
    while next_r:
        quotient = r // next_r
        r, next_r = next_r, r - quotient * next_r
        s, next_s = next_s, s - quotient * next_s
    if r < 0:
        r, s = -r, -s
    if b:
        # The coefficient of smallest size, as gmp chooses it.
        step = abs(b) // r if r else 1
        s %= step
        if 2 * s > step:
            s -= step
    return mpz(r), mpz(s), mpz((r - a * s) // b if b else 0)


def fac(n):
    return mpz(math.factorial(_integer(n)))


factorial = fac


def double_fac(n):
    return mpz(math.prod(range(_integer(n), 0, -2)))


def primorial(n):
    return mpz(math.prod(native.primes(2, _integer(n) + 1)))


def bincoef(n, k):
    n, k = _integer(n), _integer(k)
    if k < 0:
        raise ValueError("binomial coefficient with negative k")
    if n < 0:
        return mpz((-1) ** k * math.comb(k - n - 1, k))
    return mpz(math.comb(n, k))


comb = bincoef


def fib(n):
    return fib2(n)[0]


def fib2(n):
    """(F(n), F(n - 1))."""
    a, b = 0, 1
    for bit in bin(_integer(n))[2:]:
        a, b = a * (2 * b - a), a * a + b * b
        if bit == "1":
            a, b = b, a + b
    return mpz(a), mpz(b - a)


def lucas(n):
    number, before = fib2(n)
    return mpz(number + 2 * before)


def legendre(x, y):
    if y <= 0 or not y & 1 or not is_prime(y):
        raise ValueError("y must be an odd prime")
    return jacobi(x, y)


def jacobi(x, y):
    x, y = _integer(x), _integer(y)
    if y <= 0 or not y & 1:
        raise ValueError("y must be odd and >0")
    x, sign = x % y, 1
    while x:
        while not x & 1:
            x >>= 1
            if y & 7 in (3, 5):
                sign = -sign
        x, y = y, x
        if x & 3 == 3 and y & 3 == 3:
            sign = -sign
        x %= y
    return sign if y == 1 else 0


def kronecker(x, y):
    x, y = _integer(x), _integer(y)
    if not y:
        return int(abs(x) == 1)
    sign = -1 if y < 0 and x < 0 else 1
    y = abs(y)
    while not y & 1:
        y >>= 1
        if not x & 1:
            return 0
        if x & 7 in (3, 5):
            sign = -sign
    return sign * jacobi(x, y)


def is_square(x):
    x = _integer(x)
    return x >= 0 and math.isqrt(x) ** 2 == x


def is_power(x):
    x = _integer(x)
    if abs(x) < 2:
        return True
    exponents = range(2, abs(x).bit_length() + 1)
    return any(iroot(abs(x), n)[1] for n in exponents if is_prime(n) and (x > 0 or n & 1))


def is_even(x):
    return not _integer(x) & 1


def is_odd(x):
    return bool(_integer(x) & 1)


def is_divisible(x, d):
    return x == 0 if d == 0 else _integer(x) % d == 0


def is_congruent(x, y, m):
    return is_divisible(x - y, m)


def remove(x, f):
    """x without its factors f, and how many there were."""
    x, f, count = _integer(x), _integer(f), 0
    if f < 2:
        raise ValueError("factor must be > 1")
    while x and x % f == 0:
        x, count = x // f, count + 1
    return mpz(x), count


def sign(x):
    return (x > 0) - (x < 0)


def bit_length(x):
    return _integer(x).bit_length()


def popcount(x):
    return _integer(x).bit_count() if x >= 0 else -1


def hamdist(x, y):
    return popcount(x ^ y)


def bit_test(x, n):
    return bool(_integer(x) >> n & 1)


def bit_set(x, n):
    return mpz(_integer(x) | 1 << n)


def bit_clear(x, n):
    return mpz(_integer(x) & ~(1 << n))


def bit_flip(x, n):
    return mpz(_integer(x) ^ 1 << n)


def digits(x, base=10):
    x = _integer(x)
    if not 2 <= base <= 36:
        raise ValueError("base must be in the interval [2, 36]")
    if base == 10:
        return str(x)
    text, rest = "", abs(x)
    while rest:
        rest, digit = divmod(rest, base)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
    return ("-" if x < 0 else "") + (text or "0")


def num_digits(x, base=10):
    return len(digits(abs(x), base))


def f_div(x, y):
    return mpz(_integer(x) // _integer(y))


def f_mod(x, y):
    return mpz(_integer(x) % _integer(y))


def f_divmod(x, y):
    return divmod(mpz(x), mpz(y))


def t_div(x, y):
    quotient = abs(_integer(x)) // abs(_integer(y))
    return mpz(quotient if (x < 0) == (y < 0) else -quotient)


def t_mod(x, y):
    return mpz(x - y * t_div(x, y))


def t_divmod(x, y):
    return t_div(x, y), t_mod(x, y)


def c_div(x, y):
    return mpz(-(-_integer(x) // _integer(y)))


def c_mod(x, y):
    return mpz(x - y * c_div(x, y))


divexact = f_div


def add(x, y):
    return mpz(x + y)


def sub(x, y):
    return mpz(x - y)


def mul(x, y):
    return mpz(x * y)


def square(x):
    return mpz(x * x)


def version():
    return __version__


def __getattr__(name):
    available = ", ".join(sorted(n for n, v in globals().items() if callable(v) and not n.startswith("_")))
    raise AttributeError(f"gmpy2.{name} is not available here; available: {available}")
