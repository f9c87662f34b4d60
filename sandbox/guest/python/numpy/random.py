"""`numpy.random`: numpy's own generators (MT19937 seeded as `seed` does it, PCG64 behind `default_rng`), so that a seed
gives numpy's numbers. Without one the seed is the session's."""

import math
import random as _random

from ._core import arange_, array, as_shape, asarray, int64, scalar


class _Generator:
    """What both generators share: numbers of any shape out of one."""

    def _shaped(self, size, draw, kind):
        if size is None:
            # numpy gives plain floats here.
            return draw() if kind == "float64" else scalar(draw(), kind)
        shape = as_shape(size)
        return array([draw() for _ in range(math.prod(shape))], kind).reshape(shape)

    def uniform(self, low=0.0, high=1.0, size=None):
        return self._shaped(size, lambda: low + (high - low) * self._double(), "float64")

    def permutation(self, x):
        x = array(x) if hasattr(x, "__len__") else arange_(x)
        self.shuffle(x)
        return x

    def _choose_by_weight(self, pool, size, p):
        sums = asarray(p, float).cumsum()
        if abs(sums[-1] - 1) > 1e-8:
            raise ValueError("Probabilities do not sum to 1")
        bounds = (sums / sums[-1]).tolist()
        from bisect import bisect_right

        at = self._shaped(size, lambda: bisect_right(bounds, self._double()), "int64")
        return pool[at]


class RandomState(_Generator):
    """The generator behind `numpy.random.seed` and its functions."""

    def __init__(self, seed=None):
        self._bits = _random.Random()
        self._gauss = None
        self.seed(seed)

    def seed(self, seed=None):
        self._gauss = None
        if seed is None:
            self._bits.seed(_random.getrandbits(64))
            return
        if not 0 <= seed < 1 << 32:
            raise ValueError("Seed must be between 0 and 2**32 - 1")
        state = [int(seed)]
        for k in range(1, 624):
            state.append((1812433253 * (state[-1] ^ state[-1] >> 30) + k) & 0xFFFFFFFF)
        self._bits.setstate((3, (*state, 624), None))

    def _double(self):
        return self._bits.random()

    def _below(self, limit):
        """An integer of 0..=limit, by masking and rejection."""
        if not limit:
            return 0
        n_bits = limit.bit_length()
        mask = (1 << n_bits) - 1
        while True:
            if n_bits <= 32:
                value = self._bits.getrandbits(32) & mask
            else:
                value = (self._bits.getrandbits(32) << 32 | self._bits.getrandbits(32)) & mask
            if value <= limit:
                return value

    def random_sample(self, size=None):
        return self._shaped(size, self._double, "float64")

    random = random_sample

    def rand(self, *shape):
        return self.random_sample(shape or None)

    def randint(self, low, high=None, size=None, dtype=int):
        if high is None:
            low, high = 0, low
        if low >= high:
            raise ValueError("low >= high" if low else "high <= 0")
        draw = lambda: low + self._below(high - 1 - low)
        return draw() if size is None else self._shaped(size, draw, "int64")

    def _normal(self):
        if self._gauss is not None:
            value, self._gauss = self._gauss, None
            return value
        while True:
            x, y = 2.0 * self._double() - 1.0, 2.0 * self._double() - 1.0
            square = x * x + y * y
            if 0.0 < square < 1.0:
                break
        factor = math.sqrt(-2.0 * math.log(square) / square)
        self._gauss = factor * x
        return factor * y

    def standard_normal(self, size=None):
        return self._shaped(size, self._normal, "float64")

    def randn(self, *shape):
        return self.standard_normal(shape or None)

    def normal(self, loc=0.0, scale=1.0, size=None):
        return self._shaped(size, lambda: loc + scale * self._normal(), "float64")

    def shuffle(self, x):
        for k in range(len(x) - 1, 0, -1):
            j = self._below(k)
            x[k], x[j] = copied(x[j]), copied(x[k])

    def choice(self, a, size=None, replace=True, p=None):
        pool = asarray(a) if hasattr(a, "__len__") else arange_(a)
        if p is not None:
            if not replace:
                raise ValueError("weights without replacement are not available here")
            return self._choose_by_weight(pool, size, p)
        if replace:
            return pool[self.randint(0, len(pool), size=size)]
        n = 1 if size is None else math.prod(as_shape(size))
        if n > len(pool):
            raise ValueError("Cannot take a larger sample than population when 'replace=False'")
        chosen = pool[self.permutation(len(pool))[:n]]
        return chosen[0] if size is None else chosen.reshape(as_shape(size))


def copied(value):
    return value.copy() if hasattr(value, "copy") and getattr(value, "shape", ()) else value


class Generator(_Generator):
    """`default_rng`: PCG64 (O'Neill 2014), seeded by numpy's SeedSequence."""

    MASK = (1 << 128) - 1

    def __init__(self, seed=None):
        words = seed_words(_random.getrandbits(64) if seed is None else int(seed))
        low = lambda k: words[2 * k] | words[2 * k + 1] << 32
        state, increment = low(0) << 64 | low(1), low(2) << 64 | low(3)
        self._increment = (increment << 1 | 1) & self.MASK
        self._state = self._increment
        self._state = self._state + state & self.MASK
        self._step()
        self._half = None

    def _step(self):
        self._state = self._state * 0x2360ED051FC65DA44385DF649FCCF645 + self._increment & self.MASK

    def _word(self):
        self._step()
        value, turn = (self._state >> 64 ^ self._state) & 0xFFFFFFFFFFFFFFFF, self._state >> 122
        return (value >> turn | value << (-turn & 63)) & 0xFFFFFFFFFFFFFFFF

    def _half_word(self):
        if self._half is not None:
            value, self._half = self._half, None
            return value
        word = self._word()
        self._half = word >> 32
        return word & 0xFFFFFFFF

    def _double(self):
        return (self._word() >> 11) * 2.0**-53

    def _below(self, limit):
        """An integer of 0..=limit, by Lemire's multiplication."""
        if not limit:
            return 0
        draw, n_bits = (self._half_word, 32) if limit < 0xFFFFFFFF else (self._word, 64)
        n = limit + 1
        if limit == (1 << 32) - 1:
            return self._half_word()
        product = draw() * n
        mask = (1 << n_bits) - 1
        if product & mask < n:
            threshold = (mask - limit) % n
            while product & mask < threshold:
                product = draw() * n
        return product >> n_bits

    def random(self, size=None):
        return self._shaped(size, self._double, "float64")

    def integers(self, low, high=None, size=None, endpoint=False):
        if high is None:
            low, high = 0, low
        high -= not endpoint
        if low > high:
            raise ValueError("low >= high" if not endpoint else "low > high")
        draw = lambda: low + self._below(high - low)
        return int64(draw()) if size is None else self._shaped(size, draw, "int64")

    def __getattr__(self, name):
        raise AttributeError(f"Generator.{name} is not available here; available: integers, random, uniform")

    def shuffle(self, x):
        raise AttributeError("Generator.shuffle is not available here; use numpy.random.shuffle")


def seed_words(entropy):
    """`SeedSequence(entropy).generate_state(8)`."""
    mask = 0xFFFFFFFF
    parts = []
    while entropy:
        parts.append(entropy & mask)
        entropy >>= 32
    parts = parts or [0]
    constant = 0x43B0D7E5

    def scramble(value):
        nonlocal constant
        value ^= constant
        constant = constant * 0x931E8875 & mask
        value = value * constant & mask
        return value ^ value >> 16

    def mix(x, y):
        value = (0xCA01F9DD * x - 0x4973F715 * y) & mask
        return value ^ value >> 16

    pool = [scramble(parts[k] if k < len(parts) else 0) for k in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = mix(pool[target], scramble(pool[source]))
    for part in parts[4:]:
        for target in range(4):
            pool[target] = mix(pool[target], scramble(part))
    words, constant = [], 0x8B51F9DD
    for k in range(8):
        value = pool[k % 4] ^ constant
        constant = constant * 0x58F38DED & mask
        value = value * constant & mask
        words.append(value ^ value >> 16)
    return words


def default_rng(seed=None):
    return Generator(seed)


_state = RandomState()
seed, rand, randn, randint = _state.seed, _state.rand, _state.randn, _state.randint
random, random_sample, uniform, normal = _state.random, _state.random_sample, _state.uniform, _state.normal
standard_normal, choice, shuffle, permutation = _state.standard_normal, _state.choice, _state.shuffle, _state.permutation


def __getattr__(name):
    have = (
        "choice, default_rng, normal, permutation, rand, randint, randn, random, random_sample, seed, shuffle, "
        "standard_normal, uniform"
    )
    raise AttributeError(f"numpy.random.{name} is not available here; available: {have}")
