"""Functions' own attributes, and what an import in a function gives.

`functions.txt` is what CPython prints: `python3 functions.py > functions.txt`.
"""
import builtins
import functools
import sys
import types


def f(x=1, *, y=2):
    "says so"


print(f.__dict__, vars(f), f.__qualname__, f.__doc__, f.__defaults__, f.__kwdefaults__, hasattr(f, 'a'))
f.a = 1
print(f.__dict__, vars(f), f.a)
f.__dict__['b'] = 2
f.__dict__ = {**f.__dict__, 'c': 3}
del f.a
print(f.__dict__, f.b, f.c, hasattr(f, 'a'))
print((lambda: 0).__dict__, (lambda: 0).__qualname__)


@functools.wraps(f)
def g():
    pass


g.d = 4
print(g.__dict__ == {'b': 2, 'c': 3, '__wrapped__': f, 'd': 4}, g.__name__, f.__dict__)
for wrong in "f.nope", "del f.nope", "f.__dict__ = 1":
    try:
        exec(wrong)
    except (AttributeError, TypeError) as error:
        print(wrong, '->', type(error).__name__)


def imports(code):
    scope = {}
    try:
        exec(code, scope)
    except ImportError as error:
        print(code, '->', type(error).__name__, str(error).split(' (')[0])
    else:
        print(code, '->', sorted(name for name in scope if not name.startswith('__')))


imports('from math import gcd, lcm')
imports('from math import gcd, nope')
imports('from collections import abc')
imports('from collections.abc import Mapping as M')
imports('from collections import nope')
imports('import collections.abc')
imports('import collections.abc as abc')
imports('from nowhere import nothing')

made = types.ModuleType('made')
sys.modules['made'] = made
made.here = 1
imports('from made import here')
imports('from made import there')
made.__getattr__ = lambda name: 42
imports('from made import here, there')
made.__path__ = []
imports('from made import here, there')
del made.__getattr__
imports('from made import here, there')
sys.modules['made'] = None
imports('from made import here')
sys.modules['made'] = types.SimpleNamespace(here=1)
imports('from made import here')

seen = []
original = builtins.__import__


def spy(name, *rest):
    seen.append((name, rest[2:]))
    return original(name, *rest)


builtins.__import__ = spy
imports('from math import gcd')
imports('import math')
builtins.__import__ = original
print(seen)


def closures(n):
    def outer(a):
        def inner(b, c=a):
            return a, b, c, n
        inner.made_for = a
        return inner
    return [outer(i)(i + 1) for i in range(n)], outer(7).made_for, outer(8).__closure__[0].cell_contents


print(closures(2))
for _ in range(3):
    print(sum(x > 1 for x in (1, 2, 3)), any(x == 2 for x in [1, 2]), sorted([3, 1, 2], key=lambda x: -x))
