"""`random.shuffle` on the native module `_draws`: the same numbers are drawn, and the same list comes out.

Imported before whatever keeps a bound method of it.
"""

import _draws
import functools
import random

original = random.Random.shuffle
draws_bits = random.Random._randbelow_with_getrandbits


@functools.wraps(original)
def shuffle(self, x):
    if type(x) is list and type(self)._randbelow is draws_bits:
        return _draws.shuffle(x, self.getrandbits)
    return original(self, x)


random.Random.shuffle = shuffle
random.shuffle = random._inst.shuffle
