"""`numpy.linalg`: determinants, inverses, systems, eigenvalues and powers of small dense matrices."""

import _arrays as native

from ._core import array, asarray, binary, fresh, matmul, result, scalar, unary
from . import _core as core


class LinAlgError(ValueError):
    """What linear algebra can't do with a matrix."""


def square(a, is_real=True):
    a = asarray(a)
    if a.ndim != 2:
        raise LinAlgError(f"{a.ndim}-dimensional array given. Array must be at least two-dimensional"
                          if a.ndim < 2 else "stacks of matrices are not available here: take them one by one")  # fmt: skip
    if a.shape[0] != a.shape[1]:
        raise LinAlgError("Last 2 dimensions of the array must be square")
    if is_real and a.dtype.kind == "c":
        raise LinAlgError("complex matrices are not available here, except for eigvals, matmul and matrix_power")
    return array(a, float) if is_real else array(a)


def det(a):
    a = square(a)
    return scalar(native.det(a._buffer, len(a)), "float64")


def solve(a, b):
    a, b = square(a), array(b, float)
    if b.ndim not in (1, 2) or len(b) != len(a):
        raise ValueError(
            "solve: Input operand 1 has a mismatch in its core dimension 0, with gufunc signature (m,m),(m,n)->(m,n) "
            f"(size {b.shape[0] if b.ndim else 1} is different from {len(a)})"
        )
    try:
        return fresh(native.solve(a._buffer, b._buffer, len(a)), b.shape)
    except ValueError as error:
        raise LinAlgError(str(error)) from None


def inv(a):
    a = square(a)
    return solve(a, core.fresh(identity(len(a)), a.shape))


def identity(n):
    one = core.zeros((n, n))
    one[core.arange_(n), core.arange_(n)] = 1
    return one._buffer


def eigvals(a):
    a = square(a, is_real=False)
    try:
        values = fresh(native.eigenvalues(a._buffer, len(a)), (len(a),))
    except ValueError as error:
        raise LinAlgError(str(error)) from None
    return array(values.real) if a.dtype.kind != "c" and not values.imag.any() else values


def eigvalsh(a):
    a = square(a)
    values = eigvals((a + a.T) / 2).real
    values.sort()
    return values


def matrix_power(a, n):
    a = asarray(a)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise LinAlgError("Last 2 dimensions of the array must be square")
    if n < 0:
        return matrix_power(inv(a), -n)
    power = array(fresh(identity(len(a)), a.shape), a.dtype)
    while n:
        if n & 1:
            power = matmul(power, a)
        a = matmul(a, a)
        n >>= 1
    return power


def norm(x, ord=None, axis=None):
    x = asarray(x)
    if ord is None or x.ndim == 1 and ord == 2 or ord == "fro":
        squares = unary("square", unary("absolute", x))
        return unary("sqrt", squares.sum(axis=axis) * 1.0)
    if x.ndim == 1 or axis is not None:
        sizes = unary("absolute", x)
        if ord == float("inf"):
            return sizes.max(axis=axis)
        if ord == 1:
            return sizes.sum(axis=axis)
        return binary("power", binary("power", sizes * 1.0, ord).sum(axis=axis), 1 / ord)
    if ord == 1 or ord == float("inf"):
        return unary("absolute", x).sum(axis=0 if ord == 1 else 1).max()
    if ord == 2:
        return unary("sqrt", eigvalsh(matmul(x.T, x * 1.0)).max())
    raise ValueError("Invalid norm order for matrices.")


def matrix_rank(a, tol=None):
    a = asarray(a)
    if a.ndim < 2:
        return int(a.any())
    values = unary("sqrt", eigvalsh(matmul(a.T, a * 1.0)).clip(0))
    if not values.size:
        return 0
    # Half the digits are lost by squaring.
    limit = values.max() * max(a.shape) * 1e-8 if tol is None else tol
    return core.int64((values > limit).sum())


def lstsq(a, b, rcond=None):
    a, b = array(a, float), array(b, float)
    if a.ndim != 2 or b.ndim != 1 or len(a) < a.shape[1]:
        raise LinAlgError("least squares are available here for one right side and at least as many rows as columns")
    try:
        x, rest = native.least_squares(a._buffer, b._buffer, len(a))
    except ValueError as error:
        raise LinAlgError(f"{error}: the columns are not independent") from None
    values = unary("sqrt", eigvalsh(matmul(a.T, a)).clip(0))[::-1]
    rests = array([rest]) if len(a) > a.shape[1] else array([])
    return result(x, (a.shape[1],)), rests, a.shape[1], values


def __getattr__(name):
    have = "det, eigvals, eigvalsh, inv, lstsq, matrix_power, matrix_rank, norm, solve"
    raise AttributeError(f"numpy.linalg.{name} is not available here; available: {have}")
