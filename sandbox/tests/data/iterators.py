"""What is left of each iterator of itertools after some steps: of it, of its copies and of what was pickled.

`iterators.txt` is what CPython 3.11 prints: `python3 iterators.py > iterators.txt`. From 3.14 on, CPython copies none.
"""
import copy
import itertools
import operator
import pickle

MAKERS = """\
itertools.accumulate([3, 1, 4, 1, 5])
itertools.accumulate([3, 1, 4], operator.mul, initial=2)
itertools.accumulate([None, None, None], operator.is_)
itertools.chain('ab', [], 'cd')
itertools.chain.from_iterable(['ab', 'cd'])
itertools.combinations('abcd', 2)
itertools.combinations('ab', 3)
itertools.combinations_with_replacement('abc', 2)
itertools.compress('abcdef', [1, 0, 1, 1, 0, 1])
itertools.count(5, 3)
itertools.count(0.5)
itertools.cycle('abc')
itertools.cycle('')
itertools.dropwhile(operator.not_, [0, 0, 1, 0, 2])
itertools.filterfalse(None, [0, 1, 0, 2, 0])
itertools.islice('abcdefgh', 1, 7, 2)
itertools.islice('abc', None)
itertools.permutations('abc')
itertools.permutations(range(4), 2)
itertools.product('ab', [1, 2], repeat=1)
itertools.product([1, 2], [], 'a')
itertools.product()
itertools.repeat('a', 4)
itertools.repeat('a')
itertools.starmap(pow, [(2, 3), (3, 2), (5, 1)])
itertools.takewhile(operator.truth, [1, 2, 0, 3])
itertools.zip_longest('abc', [1], fillvalue='-')
itertools.groupby([1, 1, 2, 2, 2, 1], operator.index)
itertools.groupby([None, None, 0])"""

# No shallow copies here: they share the iterator below, so that what one takes is missing in the other.
COPIES = copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), lambda it: pickle.loads(pickle.dumps(it, 0))


def rest(iterator):
    part = itertools.islice(iterator, 9)
    return [(key, list(group)) for key, group in part] if isinstance(iterator, itertools.groupby) else list(part)


for maker in MAKERS.splitlines():
    shown = []
    for n_steps in range(7):
        iterator = eval(maker)
        for _ in itertools.islice(iterator, n_steps):
            pass
        copies = [rest(duplicate(iterator)) for duplicate in COPIES]
        left = rest(iterator)
        shown.append(left if copies == [left] * 3 else ('differs', left, copies))
    print(maker, '->', *shown)

for case in """\
itertools.chain().__setstate__(())
itertools.chain().__setstate__(([],))
itertools.cycle('a').__setstate__([['a'], 0])
itertools.cycle('a').__setstate__((('a',), 0))
itertools.cycle('a').__setstate__((['a'], 'x'))
itertools.product('ab', 'cd').__setstate__((0,))
itertools.combinations('abc', 2).__setstate__((0, 1, 2))
itertools.permutations('abc').__setstate__((0, 1))
itertools.permutations('abc').__setstate__(((0, 1, 2), (1,)))
list(itertools.combinations('abc', 2)) if (it := itertools.combinations('abc', 2)).__setstate__((0, 99)) else list(it)
list(it) if (it := itertools.product('ab', 'cd')).__setstate__((0, 99)) is None else 0
copy.copy(itertools.count(3)), copy.copy(itertools.repeat('a', 2)), list(copy.copy(itertools.islice('abc', 1, 2)))
list(pickle.loads(pickle.dumps(next(itertools.groupby('aab'))[1])))""".splitlines():
    try:
        print(case, '->', eval(case))
    except Exception as error:
        print(case, '->', type(error).__name__)
