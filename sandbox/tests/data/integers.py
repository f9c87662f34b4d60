"""Integers: what takes one takes whatever has `__index__` (sympy's Integer has it), the operators, names that hold them.

`integers.txt` is what CPython prints: `python3 integers.py > integers.txt`.
"""
import bisect
import collections
import functools
import itertools
import random
import re
import sys


class Two:
    def __index__(self):
        return 2


two = Two()


class Less:
    def __index__(self):
        return -1


less = Less()

for case in """\
itertools.combinations('abcd', two)
itertools.combinations('abcd', 2.0)
itertools.combinations('abcd', less)
itertools.combinations('abcd', None)
itertools.combinations('abcd', True)
itertools.combinations_with_replacement('abc', two)
itertools.permutations('abc', 2)
itertools.permutations('abc', None)
itertools.permutations('abc', -1)
itertools.product('ab', repeat=two)
itertools.islice('abcdef', two, None, two)
itertools.repeat('a', two)
enumerate('ab', two)
enumerate('ab', start=two)
enumerate('ab', None)
enumerate('ab', 2.0)
range(two)
['aaaa'.find('a', two), 'aaaa'.rfind('a', two, None), 'aaaa'.index('a', less), 'aaaa'.count('a', two)]
['aaaa'.startswith('a', two), 'aaaa'.endswith('a', None, two), b'aaaa'.find(b'a', two)]
['abc'[two], [1, 2, 3][two], (1, 2, 3)[less], 'ab' * two, [0] * two, round(2.345, two), pow(3, 2, 5)]
['a b c'.split(' ', two), 'abab'.replace('a', '', two), '7'.zfill(two), 'a'.center(two), int('11', two)]
sorted([3, 1, 2], reverse=two)
zip('ab', 'cd', strict=two)""""".splitlines():
    try:
        print(case, '->', list(eval(case)))
    except (TypeError, ValueError) as error:
        print(case, '->', type(error).__name__, error)

# What an operator gives is a new number, whoever else holds the operands.
a, b = 1000, 3
kept = [a + b, a - b, a * b, a // b, a % b, a << b, a >> b, a & b, a | b, a ^ b]
sums = [(a + b) + a for _ in range(3)]
print(kept, sums, a, b)
x = y = 10 ** 6
x += 1
x = (x + x) * 2 - (y + y)
print(x, y, (y + 1) - (y + 1), -(y + 1), (y + 1) * 1.5)
f = g = 0.5
f += g * 2.0
print(f, g, (f + g) * (f - g), [(f + i) + (g + i) for i in range(3)])
print(2 ** 62 + 2 ** 62 - 1, -2 ** 63 // -1, -2 ** 63 % 7, 3037000500 * 3037000500, -7 // 2, -7 % 3, 7 % -3, 7 // -2)
print(1 << 62, 1 << 63, -1 << 62, -1 << 63, 5 << 70, -5 >> 1, -5 >> 200, 5 >> 64, 1 << 0, 0 << 80)
print(-6 & 3, -6 | 3, -6 ^ 3, True & 1, True & True, True ^ False, (2 ** 64 + 5) & 0xff, -1 & 2 ** 70)
for case in "1 << -1", "1 >> -1", "1 // 0", "1 % 0", "(1 + 1) // (1 - 1)":
    try:
        print(eval(case))
    except (ValueError, ZeroDivisionError) as error:
        print(case, '->', type(error).__name__)
print(sum([1, 2, 3]), sum([True, True]), sum([2 ** 62] * 4), sum([1, 2.5, 3]), sum([[1], [2]], []), sum([], 5.0), sum([1], True))


# Names of a module that come, go and change places.
n = 0
for i in range(40):
    globals()[f'name_{i}'] = i
    n += globals()[f'name_{i}']
    if i % 3 == 0:
        del globals()[f'name_{i}']
len_before = len('abc')
len = lambda _: 'mine'
print(n, len_before, len('abc'), name_1 + name_38)
del len
print(len('abcd'), sorted(name for name in list(globals()) if name.startswith('name_'))[:4])
try:
    name_0
except NameError as error:
    print(error)


class Long:
    def __len__(self):
        return 5 * 10**9

    def __getitem__(self, index):
        return index


# Sizes and places of 64 bits: `sys.maxsize` is the number that is larger than any other, as programs use it.
print(sys.maxsize, min([sys.maxsize, 5_000_000_000]), len(range(10**12)), len(range(-sys.maxsize, 0, 3)))
for case in """\
list(itertools.islice('abc', sys.maxsize))
list(itertools.islice('abc', 1, sys.maxsize, 10**10))
list(zip('ab', itertools.repeat(1, sys.maxsize)))
list(collections.deque('abc', maxlen=sys.maxsize))
functools.lru_cache(maxsize=sys.maxsize)(abs)(-1)
'a b c'.split(' ', sys.maxsize), 'aa'.replace('a', 'b', sys.maxsize), 'ab'.find('b', -sys.maxsize, sys.maxsize)
[1, 2, 3][:sys.maxsize], [1, 2, 3][-sys.maxsize:], 'abc'[5 * 10**9:], [1, 2].index(2, 0, sys.maxsize)
re.sub('a', 'b', 'aa', count=sys.maxsize), re.compile('a').search('ba', 0, sys.maxsize).span()
bisect.bisect_left(range(10**18), True, key=lambda n: n * n >= 10**30), bisect.bisect(range(10**12), 5, 10**11, 2 * 10**11)
bisect.bisect_left([1, 2, 2, 3], 2), bisect.bisect([1, 2, 2, 3], 2, 0, 3), bisect.bisect([], 1)
bisect.bisect([1, 2], 1, -1)
len(Long()), bool(Long()), bool(range(10**12)), bisect.bisect_left(Long(), 4 * 10**9)
random.choice(range(10**12)) < 10**12, len(random.sample(range(10**10), 3))
[1].pop(sys.maxsize)
[1, 2][sys.maxsize]
range(10**30)[10**29]
len(range(10**19))
collections.deque('a', maxlen=-1)
list(itertools.islice('abc', 2**63))
list(itertools.islice('abc', -1))
'abc'.split('b', 2**63)""".splitlines():
    try:
        print(case, '->', eval(case))
    except (IndexError, OverflowError, ValueError) as error:
        print(case, '->', type(error).__name__)
print({len(range(10**12)) for _ in range(99)}, {len(Long()) for _ in range(99)}, {len('ab') for _ in range(99)})
turned, grown = collections.deque(range(7)), []
turned.rotate(10**18)
grown.insert(10**12, 'a')
grown.insert(-10**12, 'b')
turned.insert(-10**12, 'first')
turned.insert(10**12, 'last')
print(turned, grown)
print(0 / -5, 0 / -(10**30), 0 / 5, -0 / 7, 0.0 ** float('-inf'), (-0.0) ** float('-inf'))


class Octets:
    def __bytes__(self):
        return b'\1\2'


print(int.from_bytes(Octets(), 'big'), int.from_bytes([1, 0]), int.from_bytes(b'\xff', signed=True))
