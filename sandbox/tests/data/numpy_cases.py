"""Writes numpy.txt: what the real numpy answers to the expressions below. Run with numpy 2.4 when one is added.

    python3 numpy_cases.py > numpy.txt
"""

import numpy as np

CASES = r"""
np.array([1, 2, 3])
np.array([[1, 2], [3, 4]])
np.array([1.0, 2.5, 3.25])
np.array([True, False])
np.array([1, 2.5])
np.array([1, 2], dtype=float)
np.array([1.7, -1.7]).astype(int)
np.array([])
np.array(5)
np.array([1 + 2j, 3])
np.array([[1, 2], [3]])
np.arange(5)
np.arange(2, 10, 3)
np.arange(5, 0, -2)
np.arange(0, 1, 0.25)
np.linspace(0, 1, 5)
np.linspace(0, 1, 4, endpoint=False)
np.zeros(3)
np.zeros((2, 3), dtype=int)
np.ones((2, 2))
np.full((2, 2), 7)
np.eye(3)
np.identity(2, dtype=int)
np.diag([1, 2, 3])
np.diag(np.array([[1, 2], [3, 4]]))
np.arange(6).reshape(2, 3)
np.arange(6).reshape(3, -1).T
np.arange(24).reshape(2, 3, 4)
np.arange(6).reshape(4, 2)
np.arange(6).shape, np.arange(6.0).dtype, np.zeros((2, 3)).ndim, np.zeros((2, 3)).size
np.arange(5) * 2 + 1
np.arange(5) ** 2
np.arange(1, 5) / 2
np.arange(-3, 4) // 2
np.arange(-3, 4) % 3
2 ** np.arange(5)
1 / np.array([1, 2, 4])
np.array([1, 2]) + np.array([[10], [20]])
np.array([1, 2, 3]) + np.array([1, 2])
np.array([1, 2, 3]) == np.array([1, 5, 3])
np.array([1, 2, 3]) > 1
~np.array([True, False])
-np.array([1, -2])
abs(np.array([-1.5, 2]))
np.array([6, 7]) & 3
np.array([1, 2]) << 3
np.array([2, 3]) ** -1
np.int64(2) ** 62 * 4
np.arange(10)[2:7:2]
np.arange(10)[::-1]
np.arange(10)[-1]
np.arange(10)[10]
np.arange(12).reshape(3, 4)[1]
np.arange(12).reshape(3, 4)[1, 2]
np.arange(12).reshape(3, 4)[:, 1]
np.arange(12).reshape(3, 4)[1:, ::2]
np.arange(12).reshape(3, 4)[..., 0]
np.arange(3)[:, None]
np.arange(3)[None, :].shape
np.arange(10)[[1, 3, 5]]
np.arange(10)[np.array([1, -1])]
np.arange(10)[np.arange(10) % 3 == 0]
np.arange(12).reshape(3, 4)[[0, 2]]
np.arange(12).reshape(3, 4)[[0, 2], [1, 3]]
np.arange(12).reshape(3, 4)[:, [0, 2]]
np.arange(12).reshape(3, 4)[np.array([True, False, True])]
np.arange(12).reshape(3, 4)[np.arange(12).reshape(3, 4) > 6]
np.arange(12).reshape(3, 4)[np.ix_([0, 1], [1, 2])] if hasattr(np, 'nothing') else 0
np.arange(12).reshape(3, 4)[0, 0, 0]
np.arange(3)['a']
np.sum([1, 2, 3])
np.sum([[1, 2], [3, 4]], axis=0)
np.sum([[1, 2], [3, 4]], axis=1, keepdims=True)
np.sum(np.array([0.1] * 10))
np.array([True, True, False]).sum()
np.prod([1, 2, 3, 4])
np.mean([1, 2, 3, 4])
np.mean([[1, 2], [3, 4]], axis=0)
np.std([1, 2, 3, 4])
np.var([1, 2, 3, 4], ddof=1)
np.median([3, 1, 2])
np.median([4, 1, 2, 3])
np.percentile([1, 2, 3, 4], 50)
np.cumsum([1, 2, 3])
np.cumsum([[1, 2], [3, 4]], axis=0)
np.cumprod([1, 2, 3, 4])
np.max([3, 1, 2]), np.min([3, 1, 2]), np.argmax([3, 1, 2]), np.argmin([3, 1, 2])
np.max([])
np.array([[1, 5], [7, 2]]).max(axis=1)
np.array([[1, 5], [7, 2]]).argmax(axis=0)
np.all([True, False]), np.any([True, False])
np.ptp([1, 5, 3])
np.diff([1, 4, 9, 16])
np.diff([1, 4, 9, 16], 2)
np.dot([1, 2, 3], [4, 5, 6])
np.dot([[1, 2], [3, 4]], [[5, 6], [7, 8]])
np.array([[1, 2], [3, 4]]) @ np.array([1, 1])
np.array([[1, 2], [3, 4]]) @ np.array([[1, 2, 3]])
np.dot([1, 2], [1, 2, 3])
np.matmul(np.ones((2, 3)), np.ones((3, 2)))
np.outer([1, 2], [3, 4])
np.inner([1, 2], [3, 4])
np.cross([1, 0, 0], [0, 1, 0])
np.kron([[1, 2]], [[1], [1]])
np.trace([[1, 2], [3, 4]])
np.convolve([1, 2, 3], [1, 1])
np.linalg.det(np.array([[1.0, 2.0], [3.0, 4.0]])).round(6)
np.linalg.det([[2, 0], [0, 3]]).round(6)
np.linalg.inv(np.array([[1.0, 2.0], [3.0, 5.0]])).round(6)
np.linalg.inv([[1, 2], [2, 4]])
np.linalg.solve([[3, 1], [1, 2]], [9, 8]).round(6)
np.linalg.matrix_power(np.array([[1, 1], [1, 0]]), 10)
np.linalg.matrix_power(np.array([[2, 0], [0, 4]]), -1)
np.sort(np.linalg.eigvals([[2, 0], [0, 3]]))
np.sort(np.linalg.eigvals(np.array([[2.0, 1.0], [1.0, 3.0]]))).round(6)
np.linalg.norm([3, 4])
np.linalg.norm([[1, 2], [3, 4]]).round(6)
np.linalg.matrix_rank([[1, 2], [2, 4]])
np.linalg.det([[1, 2, 3], [4, 5, 6]])
np.gcd(12, 18), np.lcm(4, 6)
np.gcd([12, 15], 9)
np.gcd.reduce([12, 18, 30])
np.unique([3, 1, 2, 3, 1])
np.unique([3, 1, 3], return_counts=True)
np.unique([[1, 2], [2, 1]])
np.sort([3, 1, 2])
np.sort([[3, 1], [2, 0]], axis=0)
np.argsort([3, 1, 2])
np.sort([2.5, -1, 0.5])[::-1]
np.roots([1, -6, 11, -6]).round(6)
np.sort(np.roots([1, 0, 1]).imag).round(6)
np.roots([1, -2, 5]).round(6)
np.array([1.26 + 2.34j]).round(1)
np.roots([2, 0])
np.polyfit([0, 1, 2], [1, 3, 5], 1).round(6)
np.polyval([1, 2, 3], 2)
np.polyval([1, 0, -1], [1, 2, 3])
np.poly([1, 2])
np.polymul([1, 1], [1, -1])
np.polyadd([1, 2], [1])
np.where(np.array([1, 5, 3]) > 2)
np.where(np.array([1, 5, 3]) > 2, 1, 0)
np.nonzero([0, 3, 0, 4])
np.argwhere(np.array([[0, 1], [1, 0]]))
np.count_nonzero([0, 1, 2])
np.concatenate([[1, 2], [3]])
np.concatenate([[[1, 2]], [[3, 4]]], axis=1)
np.vstack([[1, 2], [3, 4]])
np.hstack([[1, 2], [3, 4]])
np.stack([[1, 2], [3, 4]], axis=1)
np.column_stack([[1, 2], [3, 4]])
np.concatenate([[[1, 2]], [[3]]])
np.append([1, 2], 3)
np.delete([1, 2, 3], 1)
np.repeat([1, 2], 2)
np.tile([1, 2], 2)
np.tile([[1, 2]], (2, 2))
np.flip([1, 2, 3])
np.roll([1, 2, 3, 4], 1)
np.rot90([[1, 2], [3, 4]])
np.triu([[1, 2], [3, 4]])
np.tril([[1, 2], [3, 4]])
np.meshgrid([1, 2], [3, 4])
np.split(np.arange(6), 3)
np.searchsorted([1, 3, 5], 4)
np.bincount([0, 1, 1, 3])
np.isin([1, 2, 3], [2, 3])
np.intersect1d([1, 2, 3], [2, 3, 4])
np.setdiff1d([1, 2, 3], [2])
np.union1d([1, 2], [2, 3])
np.clip([1, 5, 9], 2, 6)
np.round([1.234, 2.567], 2)
np.floor([1.5, -1.5]), np.ceil([1.5, -1.5])
np.sqrt([1, 4, 9])
np.sqrt(2)
np.exp(0), np.log(1), np.sin(0)
np.log2(8), np.log10(1000)
np.maximum([1, 5], [3, 2]), np.minimum([1, 5], 3)
np.sign([-2, 0, 3])
np.isclose(0.1 + 0.2, 0.3), np.allclose([1, 2], [1, 2.0000000001])
np.array_equal([1, 2], [1, 2])
np.int64(3) < np.int64(4), np.int64(2) + 1.5, 2 - np.int64(5), -np.int64(3), abs(np.int64(-3))
max(np.int64(3), 5), min(np.float64(1.5), 2)
np.int64(10) & 6, np.int64(1) << 3, divmod(np.int64(7), 2)
np.arange(3).sum() == 3 and np.arange(3).max() > 1
round(np.float64(2.567), 2), int(np.arange(3).sum()) * 10**30
[int(v) for v in np.arange(3) if v % 2 == 0]
np.array([[1, 2], [3, 4]])[0][1], np.array([[1, 2], [3, 4]])[1].sum()
np.prod(np.arange(1, 21))
np.pi, np.e, np.inf
np.int64(5), np.float64(0.5), np.bool_(True)
np.int64(7) // 2, np.int64(7) / 2, np.int64(7) % 4, np.int64(3) ** 2
np.int64(7) == 7, np.float64(0.5) < 1
int(np.int64(5)), float(np.float64(0.5)), bool(np.bool_(True))
range(10)[np.int64(3)], [1, 2, 3][np.int64(1)]
{np.int64(1): 'a'}[1]
str(np.int64(5)), f'{np.float64(0.5):.2f}', str(np.array([1, 2]))
print(np.array([[1, 2], [3, 4]]))
print(np.array([1.0, 0.5]), np.int64(3), np.float64(2.0))
print(np.array([[1.5, 2], [3, 4]]))
np.array([1e10, 1.0])
np.array([1e-5, 1.0])
np.array([1/3, 2/3])
np.array([1.0, np.nan, np.inf])
np.array([0.1 + 0.2, 100.0])
np.array([123456.789, 0.001])
np.array([1e-10])
np.arange(30)
np.arange(30.0)
np.arange(2000)
np.arange(3000).reshape(1000, 3)
np.arange(40).reshape(2, 20)
np.arange(8).reshape(2, 2, 2)
np.zeros((0, 3))
np.array([1 + 2j, 3.5 - 1j])
np.array([1 + 2j]) * 2j
abs(np.array([3 + 4j]))
np.array([1, 2, 3]).tolist(), np.array([[1.5]]).tolist()
np.array([[1, 2], [3, 4]]).flatten()
np.array([[1, 2], [3, 4]]).ravel()
len(np.zeros((3, 2))), list(np.arange(3))
2 in np.array([1, 2])
bool(np.array([1, 2]))
np.array([1, 2]).mean(), np.array([1, 2]).dot([3, 4])
sum(np.arange(4)), max(np.arange(4))
sorted(np.array([3, 1, 2]))
np.array([[1, 2], [3, 4]]).sum(axis=(0, 1))
np.add.reduce([1, 2, 3]), np.multiply.reduce([1, 2, 3])
np.add.outer([1, 2], [3, 4])
np.maximum.accumulate([1, 3, 2])
np.vectorize(lambda x: x * x)([1, 2, 3])
np.trapezoid([1, 2, 3])
np.interp(1.5, [1, 2], [10, 20])
np.histogram([1, 2, 1], bins=[0, 1, 2, 3])
np.iinfo(np.int64).max
np.isnan([1, np.nan]), np.isinf(np.inf)
np.array([1, 2]).frobnicate
np.arange(10).reshape(2, 5).mean(axis=1)
np.array([3, 1, 2]).argsort()
np.cov([1, 2, 3, 4])
np.corrcoef([1, 2, 3], [1, 2, 4]).round(6)
np.array([1, 2, 3])[1:][0]
np.true_divide(1, 3)
np.floor_divide(7, 2), np.mod(-7, 3), np.power(2, 10)
np.hypot(3, 4), np.arctan2(1, 1)
np.array([2, 4]).astype(float) / 3
np.eye(2)[0]
np.square([1, 2]), np.cbrt(8), np.abs(-3)
np.array([9, 2]) - np.array([True, False])
np.array([True]) - np.array([False])
np.array([True, False]) + 1
np.array([True, False]) * 2.5
np.array([1.5, 2.5]) // 1, np.array([-1.5]) % 1
np.iscomplex([1, 2j, 0j]), np.iscomplex(3), np.isrealobj(np.arange(3)), np.iscomplexobj([1j])
np.isposinf([1.0, np.inf, -np.inf]), np.isneginf([1.0, np.inf, -np.inf])
isinstance(np.int64(1), np.integer), isinstance(np.float64(1), np.floating)
isinstance(np.bool_(True), np.number), isinstance(np.complex128(1), np.number), isinstance(np.bool_(True), np.generic)
type(np.int64(1)), type(np.arange(3)), type(np.arange(3) > 1), type(np.float64(1)), type((np.arange(3) > 1)[0])
np.finfo(float).nmant, np.finfo(np.float64(1)).eps, np.finfo(float).precision
"""

PROGRAMS = r"""
a = np.arange(5); a[1:3] = 9; a
a = np.arange(5); a[a > 2] = 0; a
a = np.arange(5); a[[0, 1]] = [7, 8]; a
a = np.zeros((2, 2)); a[0] = [1, 2]; a
a = np.zeros((2, 2), int); a[0][1] = 5; a
a = np.arange(6).reshape(2, 3); b = a[:, 1]; b[0] = 99; a
a = np.arange(6).reshape(2, 3); a.T[0] = 7; a
a = np.arange(4); b = a.copy(); b[0] = 9; a
a = np.arange(3); a += 5; a
a = np.arange(3); a += 0.5
a = np.arange(3.0); a /= 2; a
a = np.arange(4); a[1] = 2.9; a
a = np.arange(4); a[5] = 1
a = np.arange(4); a[:2] = [1, 2, 3]
a = np.zeros((2, 3)); a[:, 0] = 1; a[:, 1:] = np.array([5, 6]); a
a = np.zeros((3, 3), int); a[np.arange(3), np.arange(3)] = [1, 2, 3]; a
a = np.array([3, 1, 2]); a.sort(); a
s = np.ones(30, dtype=bool); s[:2] = False; [s.__setitem__(slice(i * i, None, i), False) for i in range(2, 6)]; np.nonzero(s)[0]
np.random.seed(0); np.random.rand(3)
np.random.seed(42); np.random.randint(0, 10, 5)
np.random.seed(1); np.random.randint(5), np.random.random()
np.random.seed(3); np.random.randn(2, 2)
np.random.seed(7); np.random.permutation(6)
np.random.seed(7); np.random.choice([1, 2, 3], 4)
np.random.seed(7); np.random.choice(5, 3, replace=False)
np.random.seed(7); np.random.uniform(1, 2, 2)
np.random.seed(7); np.random.normal(0, 1, 3)
np.random.seed(7); x = np.arange(5); np.random.shuffle(x); x
np.random.seed(5); np.random.randint(0, 10**12, 2)
np.random.seed(5); np.random.choice(3, 4, p=[0.2, 0.3, 0.5])
rng = np.random.default_rng(0); rng.random(2)
rng = np.random.default_rng(42); rng.integers(0, 10, 5)
rng = np.random.default_rng(123456789012345); rng.integers(0, 2**40, 2)
a = np.array([[2, 1], [1, 3]]); x = np.linalg.solve(a, [1, 2]); np.allclose(a @ x, [1, 2])
total = 0\nfor x in np.arange(4): total += x\ntotal
for row in np.eye(2): print(row)
"""


def answer(code, names):
    import contextlib
    import io

    out = io.StringIO()
    *body, last = code.replace("\\n", "\n").replace("; ", "\n").split("\n") if "; " in code or "\\n" in code else [code]
    try:
        with contextlib.redirect_stdout(out):
            if last.startswith(("for ", "a[", "a +=", "np.nothing")) and "=" in last.replace("==", "") or last.startswith("for "):
                body, last = [*body, last], "None"
            exec("\n".join(body), names)
            value = eval(last, names)
        if value is not None:
            out.write(repr(value) + "\n")
        return out.getvalue()
    except Exception as error:
        return f"{type(error).__name__}: {error}\n"


if __name__ == "__main__":
    for case in (CASES + PROGRAMS).strip().split("\n"):
        if case:
            print(f">>> {case}\n{answer(case, {'np': np})}")
