"""The part of numpy that contest code uses, on the native module `_arrays`: arrays of bool, int64, float64 and
complex128, their arithmetic, reductions, indexing, linear algebra, polynomials and seeded random numbers.

Asking for anything else says what there is.
"""

import _arrays as _native
import builtins as _builtins
import math as _math
import operator as _operator

from . import _core, linalg, random
from ._core import (
    AxisError,
    array,
    asarray,
    binary as _binary,
    bool_,
    broadcast_shapes,
    broadcast_to,
    complex128,
    complexfloating,
    dot,
    dtype,
    float64,
    floating,
    fresh as _fresh,
    generic,
    int64,
    integer,
    matmul,
    ndarray,
    newaxis,
    nonzero,
    number,
    reduction as _reduction,
    unary as _unary,
    zeros,
)

__version__ = "2.4.0"
bool = bool_
int_, float_, complex_, double, intp = int64, float64, complex128, float64, int64
pi, e, inf, nan, euler_gamma = _math.pi, _math.e, _math.inf, _math.nan, 0.5772156649015329


class ufunc:
    """A function of one or two arrays, element by element."""

    def __init__(self, name, n_in):
        self.__name__, self.nin, self._call = name, n_in, _unary if n_in == 1 else _binary

    def __call__(self, *args, out=None, where=True, dtype=None):
        if len(args) != self.nin:
            raise TypeError(f"{self.__name__}() takes {self.nin} positional arguments but {len(args)} were given")
        if where is not True:
            raise TypeError("'where' is not available here: use numpy.where")
        value = self._call(self.__name__, *args)
        if value is NotImplemented:
            raise TypeError(f"ufunc '{self.__name__}' not supported for the input types")
        if dtype is not None:
            value = asarray(value).astype(dtype)
        if out is None:
            return value
        out[...] = value
        return out

    def __repr__(self):
        return f"<ufunc '{self.__name__}'>"

    def reduce(self, a, axis=0, keepdims=False):
        a = asarray(a)
        known = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min", "logical_and": "all", "logical_or": "any"}
        if self.__name__ in known:
            return _reduction(known[self.__name__], a, axis, keepdims)
        if axis is None:
            a, axis = a.ravel(), 0
        parts = iter(a.swapaxes(0, axis) if a.ndim > 1 else a)
        total = next(parts)
        for part in parts:
            total = self(total, part)
        return total

    def accumulate(self, a, axis=0):
        a = asarray(a)
        if self.__name__ in ("add", "multiply"):
            return a._cumulate(self.__name__ == "multiply", axis)
        if a.ndim != 1:
            raise ValueError("accumulate is available here along one axis")
        totals = []
        for part in a:
            totals.append(self(totals[-1], part) if totals else part)
        return array(totals)

    def outer(self, a, b):
        a, b = asarray(a), asarray(b)
        return self(a.reshape(a.shape + (1,) * b.ndim), b)


for _name in (
    "negative positive absolute invert logical_not sqrt cbrt exp expm1 log log2 log10 log1p sin cos tan arcsin arccos "
    "arctan sinh cosh tanh floor ceil trunc rint sign isnan isinf isfinite square reciprocal conjugate degrees radians"
).split():
    globals()[_name] = ufunc(_name, 1)
for _name in (
    "add subtract multiply divide floor_divide remainder power maximum minimum less less_equal greater greater_equal "
    "equal not_equal bitwise_and bitwise_or bitwise_xor left_shift right_shift logical_and logical_or logical_xor gcd "
    "lcm arctan2 hypot"
).split():
    globals()[_name] = ufunc(_name, 2)
abs, true_divide, mod, conj, bitwise_not = absolute, divide, remainder, conjugate, invert
fabs, deg2rad, rad2deg, asin, acos, atan, atan2, pow = absolute, radians, degrees, arcsin, arccos, arctan, arctan2, power
float_power = power


def real(a):
    return _unary("real", a)


def imag(a):
    return _unary("imag", a)


def angle(a):
    return _unary("angle", a)


def heaviside(x, at_zero):
    return where(equal(x, 0), at_zero, greater(x, 0) * 1.0)


def divmod(a, b):
    return floor_divide(a, b), remainder(a, b)


def exp2(x):
    return power(2.0, x)


# Making arrays


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def full(shape, fill_value, dtype=None):
    value = array(fill_value, dtype)
    filled = zeros(shape, value.dtype)
    filled[...] = value
    return filled


def empty(shape, dtype=float):
    return zeros(shape, dtype)


def zeros_like(a, dtype=None):
    a = asarray(a)
    return zeros(a.shape, dtype or a.dtype)


def ones_like(a, dtype=None):
    a = asarray(a)
    return full(a.shape, 1, dtype or a.dtype)


def full_like(a, fill_value, dtype=None):
    a = asarray(a)
    return full(a.shape, fill_value, dtype or a.dtype)


empty_like = zeros_like


def arange(start, stop=None, step=1, dtype=None):
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ZeroDivisionError("division by zero")
    if all_ints(start, stop, step):
        start, stop, step = int(start), int(stop), int(step)
        n = len(range(start, stop, step))
        made = _fresh(_native.count(start, step, n), (n,))
    else:
        n = _builtins.max(0, _math.ceil((stop - start) / step))
        made = _core.arange_(n) * float((start + step) - start) + float(start)
    return made if dtype is None else made.astype(dtype)


def all_ints(*values):
    return _builtins.all(hasattr(value, "__index__") for value in values)


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None):
    n_steps = num - 1 if endpoint else num
    step = (stop - start) / n_steps if n_steps > 0 else nan
    made = _core.arange_(num) * 1.0 * step + start if n_steps > 0 else _core.arange_(num) * 1.0 + start
    if endpoint and num > 1:
        made[-1] = stop
    if dtype is not None:
        made = floor(made).astype(dtype) if _core.as_dtype(dtype).kind == "i" else made.astype(dtype)
    return (made, float64(step)) if retstep else made


def logspace(start, stop, num=50, base=10.0):
    return power(base, linspace(start, stop, num))


def geomspace(start, stop, num=50):
    made = logspace(_math.log10(start), _math.log10(stop), num)
    made[0], made[-1] = start, stop
    return made


def eye(N, M=None, k=0, dtype=float):
    made = zeros((N, N if M is None else M), dtype)
    if -made.shape[0] < k < made.shape[1]:
        made.diagonal(k)[...] = 1
    return made


def identity(n, dtype=float):
    return eye(n, dtype=dtype)


def diag(v, k=0):
    v = asarray(v)
    if v.ndim == 2:
        return v.diagonal(k).copy()
    made = zeros((len(v) + _builtins.abs(k),) * 2, v.dtype)
    made.diagonal(k)[...] = v
    return made


def tri(N, M=None, k=0, dtype=float):
    columns = _core.arange_(N if M is None else M)
    return (columns <= _core.arange_(N)[:, None] + k).astype(dtype)


def tril(m, k=0):
    m = asarray(m)
    return where(tri(*m.shape[-2:], k=k, dtype=_builtins.bool), m, zeros_like(m))


def triu(m, k=0):
    m = asarray(m)
    return where(tri(*m.shape[-2:], k=k - 1, dtype=_builtins.bool), zeros_like(m), m)


def meshgrid(*axes, indexing="xy"):
    axes = [asarray(axis).ravel() for axis in axes]
    swap = indexing == "xy" and len(axes) > 1
    order = [1, 0, *range(2, len(axes))] if swap else range(len(axes))
    shape = [len(axes[k]) for k in order]
    grids = []
    for k, axis in enumerate(axes):
        position = list(order).index(k)
        lengths = [1] * len(axes)
        lengths[position] = len(axis)
        grids.append(broadcast_to(axis.reshape(lengths), shape).copy())
    return tuple(grids)


def indices(dimensions):
    grids = meshgrid(*[_core.arange_(n) for n in dimensions], indexing="ij")
    return stack(grids)


def fromiter(iterable, dtype, count=-1):
    return array([item for k, item in zip(range(count) if count >= 0 else iter(int, 1), iterable)], dtype)


def fromfunction(function, shape, dtype=float):
    return function(*[grid.astype(dtype) for grid in indices(shape)])


def copy(a):
    return array(a)


asanyarray = ascontiguousarray = asarray


# Shapes


def shape(a):
    return asarray(a).shape


def ndim(a):
    return asarray(a).ndim


def size(a, axis=None):
    a = asarray(a)
    return a.size if axis is None else a.shape[axis]


def reshape(a, shape, order="C"):
    return asarray(a).reshape(shape, order=order)


def ravel(a):
    return asarray(a).ravel()


def transpose(a, axes=None):
    return asarray(a).transpose(*(axes or ()))


permute_dims = transpose


def swapaxes(a, axis1, axis2):
    return asarray(a).swapaxes(axis1, axis2)


def moveaxis(a, source, destination):
    a = asarray(a)
    order = [k for k in range(a.ndim) if k != source % a.ndim]
    order.insert(destination % a.ndim, source % a.ndim)
    return a.transpose(*order)


def squeeze(a, axis=None):
    return asarray(a).squeeze(axis)


def expand_dims(a, axis):
    a = asarray(a)
    axis %= a.ndim + 1
    return a.reshape(a.shape[:axis] + (1,) + a.shape[axis:])


def atleast_1d(a):
    a = asarray(a)
    return a if a.ndim else a.reshape(1)


def atleast_2d(a):
    a = atleast_1d(a)
    return a if a.ndim > 1 else a[None]


def concatenate(arrays, axis=0):
    arrays = [asarray(a) for a in arrays]
    if not arrays:
        raise ValueError("need at least one array to concatenate")
    if axis is None:
        arrays, axis = [a.ravel() for a in arrays], 0
    if _builtins.any(a.ndim == 0 for a in arrays):
        raise ValueError("zero-dimensional arrays cannot be concatenated")
    first = arrays[0]
    axis = _core.as_axis(axis, first.ndim)
    for position, a in enumerate(arrays):
        if a.ndim != first.ndim:
            raise ValueError(
                "all the input array dimensions except for the concatenation axis must match exactly, but along "
                f"dimension 0, the array at index 0 has {first.ndim} dimension(s) and the array at index {position} has "
                f"{a.ndim} dimension(s)"
            )
        for k, (n, m) in enumerate(zip(first.shape, a.shape)):
            if n != m and k != axis:
                raise ValueError(
                    "all the input array dimensions except for the concatenation axis must match exactly, but along "
                    f"dimension {k}, the array at index 0 has size {n} and the array at index {position} has size {m}"
                )
    kind = _core.KINDS[_builtins.max(_core.KINDS.index(a.dtype.name) for a in arrays)]
    lengths = list(first.shape)
    lengths[axis] = _builtins.sum(a.shape[axis] for a in arrays)
    joined, start = zeros(lengths, kind), 0
    for a in arrays:
        joined[(slice(None),) * axis + (slice(start, start + a.shape[axis]),)] = a
        start += a.shape[axis]
    return joined


def stack(arrays, axis=0):
    arrays = [asarray(a) for a in arrays]
    if len({a.shape for a in arrays}) > 1:
        raise ValueError("all input arrays must have the same shape")
    return concatenate([expand_dims(a, axis) for a in arrays], axis)


def vstack(arrays):
    return concatenate([atleast_2d(a) for a in arrays], 0)


def hstack(arrays):
    arrays = [atleast_1d(a) for a in arrays]
    return concatenate(arrays, 0 if arrays[0].ndim == 1 else 1)


def column_stack(arrays):
    return concatenate([a if a.ndim > 1 else a[:, None] for a in map(asarray, arrays)], 1)


def append(a, values, axis=None):
    if axis is None:
        a, values = ravel(a), ravel(values)
    return concatenate((a, values), axis or 0)


def delete(a, index, axis=None):
    a = asarray(a)
    if axis is None:
        a, axis = a.ravel(), 0
    dropped = {_core.in_bounds(int(k), a.shape[axis], axis) for k in ravel(asarray(index))}
    kept = [k for k in range(a.shape[axis]) if k not in dropped]
    return a[(slice(None),) * axis + (array(kept, int),)]


def insert(a, index, values):
    parts = ravel(a).tolist()
    parts[index:index] = ravel(values).tolist()
    return array(parts)


def split(a, sections, axis=0):
    a = asarray(a)
    n = a.shape[axis]
    if hasattr(sections, "__index__"):
        if n % sections:
            raise ValueError("array split does not result in an equal division")
        return array_split(a, sections, axis)
    ends = [0, *sections, n]
    return [a[(slice(None),) * axis + (slice(x, y),)] for x, y in zip(ends, ends[1:])]


def array_split(a, sections, axis=0):
    a = asarray(a)
    each, extra = _builtins.divmod(a.shape[axis], sections)
    ends = [0]
    for k in range(sections):
        ends.append(ends[-1] + each + (k < extra))
    return [a[(slice(None),) * axis + (slice(x, y),)] for x, y in zip(ends, ends[1:])]


def repeat(a, repeats, axis=None):
    return asarray(a).repeat(repeats, axis)


def tile(a, reps):
    a = asarray(a)
    reps = (reps,) if hasattr(reps, "__index__") else tuple(reps)
    a = a.reshape((1,) * (len(reps) - a.ndim) + a.shape)
    reps = (1,) * (a.ndim - len(reps)) + reps
    for axis, n in enumerate(reps):
        a = concatenate([a] * n, axis) if n else a[(slice(None),) * axis + (slice(0, 0),)]
    return a.copy()


def flip(a, axis=None):
    a = asarray(a)
    axes = range(a.ndim) if axis is None else [_core.as_axis(axis, a.ndim)]
    return a[tuple(slice(None, None, -1) if k in axes else slice(None) for k in range(a.ndim))]


def flipud(a):
    return flip(a, 0)


def fliplr(a):
    return flip(a, 1)


def rot90(a, k=1):
    a = asarray(a)
    for _ in range(k % 4):
        a = a.T[::-1]
    return a


def roll(a, shift, axis=None):
    a = asarray(a)
    if axis is None:
        return roll(a.ravel(), shift, 0).reshape(a.shape)
    n = a.shape[axis]
    return a[(slice(None),) * axis + ((_core.arange_(n) - shift) % n,)] if n else a.copy()


# Reductions


def _method(name):
    def function(a, *args, **options):
        return getattr(asarray(a), name)(*args, **options)

    function.__name__ = name
    return function


sum, prod, mean, std, var, cumsum, cumprod = map(_method, "sum prod mean std var cumsum cumprod".split())
argmin, argmax, argsort, all, any, trace = map(_method, "argmin argmax argsort all any trace".split())
amin, amax, take, clip, diagonal, round = map(_method, "min max take clip diagonal round".split())
min, max, around = amin, amax, round


def ptp(a, axis=None):
    return amax(a, axis) - amin(a, axis)


def average(a, axis=None, weights=None):
    if weights is None:
        return mean(a, axis)
    return sum(multiply(a, weights), axis) / sum(weights)


def median(a, axis=None):
    a = asarray(a)
    if axis is not None and a.ndim > 1:
        return array([median(line).item() for line in a.swapaxes(axis, -1).reshape((-1, a.shape[axis]))]).reshape(
            a.shape[:axis] + a.shape[axis + 1 :]
        )
    ordered = sort(a.ravel())
    if not ordered.size:
        return float64(nan)
    middle = ordered.size // 2
    return ordered[middle] * 1.0 if ordered.size % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(a, q):
    return quantile(a, divide(q, 100))


def quantile(a, q):
    ordered = sort(ravel(a)).tolist()

    def at(q):
        position = q * (len(ordered) - 1)
        low = int(position)
        high = _builtins.min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    q = asarray(q)
    return array([at(x) for x in q.ravel().tolist()]).reshape(q.shape)[()]


def count_nonzero(a, axis=None):
    return _reduction("sum", not_equal(a, 0), axis)


def diff(a, n=1, axis=-1):
    a = asarray(a)
    for _ in range(n):
        if a.dtype.kind == "b":
            a = logical_xor(a.swapaxes(axis, 0)[1:], a.swapaxes(axis, 0)[:-1]).swapaxes(axis, 0)
        else:
            a = (a.swapaxes(axis, 0)[1:] - a.swapaxes(axis, 0)[:-1]).swapaxes(axis, 0)
    return a


def ediff1d(a):
    return diff(ravel(a))


def cov(m):
    m = atleast_2d(m) * 1.0
    spread = m - m.mean(axis=1, keepdims=True)
    return (matmul(spread, spread.T) / (m.shape[1] - 1)).squeeze()


def corrcoef(x, y=None):
    rows = atleast_2d(x) if y is None else vstack((x, y))
    c = atleast_2d(cov(rows))
    scale = sqrt(diag(c))
    return c / scale[:, None] / scale


# Products


def inner(a, b):
    return dot(a, asarray(b).T)


def outer(a, b):
    return multiply(ravel(a)[:, None], ravel(b)[None])


def vdot(a, b):
    return dot(conjugate(ravel(a)), ravel(b))


def cross(a, b):
    a, b = asarray(a), asarray(b)
    if a.shape != (3,) or b.shape != (3,):
        raise ValueError("cross products are available here for vectors of length 3")
    (x, y, z), (u, v, w) = a.tolist(), b.tolist()
    return array([y * w - z * v, z * u - x * w, x * v - y * u])


def kron(a, b):
    a, b = atleast_2d(a), atleast_2d(b)
    product = a[:, None, :, None] * b[None, :, None, :]
    return product.reshape((a.shape[0] * b.shape[0], a.shape[1] * b.shape[1]))


def tensordot(a, b, axes=2):
    a, b = asarray(a), asarray(b)
    if not hasattr(axes, "__index__"):
        raise ValueError("tensordot is available here with a number of axes")
    inner_size = _math.prod(b.shape[:axes])
    product = matmul(a.reshape((-1, inner_size)), b.reshape((inner_size, -1)))
    return product.reshape(a.shape[: a.ndim - axes] + b.shape[axes:])[()]


def convolve(a, v, mode="full"):
    a, v = ravel(a), ravel(v)
    if not a.size or not v.size:
        raise ValueError("a cannot be empty" if not a.size else "v cannot be empty")
    if len(v) > len(a):
        a, v = v, a
    full_length = zeros(len(a) + len(v) - 1, multiply(a[:1], v[:1]).dtype)
    for k, factor in enumerate(v.tolist()):
        full_length[k : k + len(a)] += a * factor
    if mode == "full":
        return full_length
    n = len(a) if mode == "same" else len(a) - len(v) + 1
    start = (len(full_length) - n) // 2
    return full_length[start : start + n]


# Choosing, order, sets


def where(condition, x=None, y=None):
    condition = asarray(condition)
    if x is None and y is None:
        return nonzero(condition)
    x, y = asarray(x), asarray(y)
    lengths = broadcast_shapes(condition.shape, x.shape, y.shape)
    kind = _core.KINDS[_builtins.max(_core.KINDS.index(a.dtype.name) for a in (x, y))]
    chosen = broadcast_to(y, lengths).astype(kind)
    truth = broadcast_to(condition, lengths).astype(_builtins.bool)
    if not lengths:
        return (x if truth else chosen).astype(kind)[()]
    chosen[truth] = broadcast_to(x, lengths)[truth]
    return chosen


def flatnonzero(a):
    return nonzero(ravel(a))[0]


def argwhere(a):
    return stack(nonzero(a), 1)


def extract(condition, a):
    return ravel(a)[ravel(condition).astype(_builtins.bool)]


def select(conditions, choices, default=0):
    chosen = default
    for condition, choice in reversed(list(zip(conditions, choices))):
        chosen = where(condition, choice, chosen)
    return chosen


def sort(a, axis=-1):
    return asarray(a)._along(axis, False)


def lexsort(keys):
    order = _core.arange_(len(keys[0]))
    for key in keys:
        order = order[argsort(asarray(key)[order])]
    return order


def searchsorted(a, v, side="left"):
    from bisect import bisect_left, bisect_right

    find, ordered, v = bisect_left if side == "left" else bisect_right, asarray(a).tolist(), asarray(v)
    return array([find(ordered, x) for x in v.ravel().tolist()], int).reshape(v.shape)[()]


def digitize(x, bins):
    return searchsorted(bins, x, "right")


def unique(a, return_index=False, return_inverse=False, return_counts=False):
    a = ravel(a)
    order = a.argsort()
    ordered = a[order]
    is_new = full(ordered.shape, True)
    is_new[1:] = ordered[1:] != ordered[:-1]
    answers = [ordered[is_new]]
    if return_index:
        answers.append(order[is_new])
    if return_inverse:
        inverse = zeros(a.shape, int)
        inverse[order] = cumsum(is_new) - 1
        answers.append(inverse)
    if return_counts:
        answers.append(diff(append(nonzero(is_new)[0], a.size)))
    return tuple(answers) if len(answers) > 1 else answers[0]


def isin(element, test_elements):
    element, known = asarray(element), set(ravel(test_elements).tolist())
    return array([x in known for x in element.ravel().tolist()], _builtins.bool).reshape(element.shape)[()]


def intersect1d(a, b):
    return array(sorted(set(ravel(a).tolist()) & set(ravel(b).tolist())), concatenate((ravel(a)[:0], ravel(b)[:0])).dtype)


def union1d(a, b):
    return unique(concatenate((ravel(a), ravel(b))))


def setdiff1d(a, b):
    a = unique(a)
    return a[~isin(a, b)] if a.size else a


def bincount(x, weights=None, minlength=0):
    x = asarray(x)
    n = _builtins.max(int(x.max()) + 1 if x.size else 0, minlength)
    counts = [0] * n
    for k, weight in zip(x.tolist(), [1] * x.size if weights is None else asarray(weights, float).tolist()):
        if k < 0:
            raise ValueError("'list' argument must have no negative elements")
        counts[k] += weight
    return array(counts, int if weights is None else float)


def histogram(a, bins=10):
    a = ravel(a)
    edges = linspace(a.min(), a.max(), bins + 1) if hasattr(bins, "__index__") else asarray(bins)
    places = searchsorted(edges, a, "right") - 1
    places = where(a == edges[-1], len(edges) - 2, places)
    inside = (places >= 0) & (places < len(edges) - 1)
    return bincount(places[inside], minlength=len(edges) - 1), edges


def isclose(a, b, rtol=1e-05, atol=1e-08):
    return equal(a, b) | (isfinite(b) & less_equal(absolute(subtract(a, b)), atol + rtol * absolute(b)))


def allclose(a, b, rtol=1e-05, atol=1e-08):
    return _builtins.bool(all(isclose(a, b, rtol, atol)))


def array_equal(a, b):
    a, b = asarray(a), asarray(b)
    return a.shape == b.shape and _builtins.bool((a == b).all())


def isreal(a):
    return equal(imag(a), 0)


def iscomplex(a):
    return not_equal(imag(a), 0)


def isrealobj(a):
    return not iscomplexobj(a)


def iscomplexobj(a):
    return asarray(a).dtype.kind == "c"


def isposinf(a):
    return equal(a, inf)


def isneginf(a):
    return equal(a, -inf)


def isscalar(a):
    return isinstance(a, (int, float, complex, str, generic))


def fill_diagonal(a, value):
    a.diagonal()[...] = value


def vectorize(function, otypes=None):
    def mapped(*args):
        args = [asarray(arg) for arg in args]
        lengths = broadcast_shapes(*[arg.shape for arg in args])
        columns = [broadcast_to(arg, lengths).ravel().tolist() for arg in args]
        return array([function(*row) for row in zip(*columns)]).reshape(lengths)[()]

    return mapped


def apply_along_axis(function, axis, a):
    a = asarray(a)
    moved = a.swapaxes(axis, -1)
    lines = moved.reshape((-1, a.shape[axis]))
    return array([function(line) for line in lines]).reshape(moved.shape[:-1])


# Polynomials, highest power first


def polyval(p, x):
    if isinstance(x, (list, tuple)):
        x = array(x)
    value = multiply(x, 0)
    for coefficient in asarray(p).tolist():
        value = value * x + coefficient
    return value


def polyfit(x, y, deg):
    x, y = asarray(x) * 1.0, asarray(y) * 1.0
    if len(x) != len(y):
        raise TypeError("expected x and y to have same length")
    if not len(x):
        raise TypeError("expected non-empty vector for x")
    columns = stack([x**k for k in range(deg, -1, -1)], 1)
    scale = sqrt((columns * columns).sum(axis=0))
    return linalg.lstsq(columns / scale, y)[0] / scale


def roots(p):
    p = atleast_1d(p)
    kept = nonzero(p)[0]
    if not len(kept):
        return array([])
    n_zeros = len(p) - int(kept[-1]) - 1
    p = p[int(kept[0]) : int(kept[-1]) + 1]
    p = p if p.dtype.kind == "c" else p * 1.0
    n = len(p) - 1
    found = array([])
    if n > 0:
        companion = diag(ones(n - 1, p.dtype), -1)
        companion[0] = -p[1:] / p[0]
        found = linalg.eigvals(companion)
    return concatenate((found, zeros(n_zeros, found.dtype)))


def poly(zeros_or_matrix):
    of = asarray(zeros_or_matrix)
    of = linalg.eigvals(of) if of.ndim == 2 else of
    p = array([1.0])
    for root in of.tolist():
        p = convolve(p, array([1.0, -root]))
    if p.dtype.kind == "c" and absolute(p.imag).max() < 1e-12 * absolute(p).max():
        p = p.real
    return p


def polyadd(a, b):
    a, b = atleast_1d(a), atleast_1d(b)
    n = _builtins.max(len(a), len(b))
    return concatenate((zeros(n - len(a), a.dtype), a)) + concatenate((zeros(n - len(b), b.dtype), b))


def polysub(a, b):
    return polyadd(a, negative(atleast_1d(b)))


def polymul(a, b):
    return convolve(a, b)


def polyder(p, m=1):
    p = atleast_1d(p)
    for _ in range(m):
        p = p[:-1] * _core.arange_(len(p))[:0:-1]
    return p


def polyint(p):
    p = atleast_1d(p)
    return concatenate((p / _core.arange_(len(p) + 1)[:0:-1], [0.0]))


def interp(x, xp, fp):
    x, xp, fp = asarray(x) * 1.0, asarray(xp).tolist(), asarray(fp).tolist()
    from bisect import bisect_right

    def at(value):
        k = bisect_right(xp, value)
        if k == 0 or k == len(xp):
            return fp[0] if k == 0 else fp[-1]
        return fp[k - 1] + (fp[k] - fp[k - 1]) * (value - xp[k - 1]) / (xp[k] - xp[k - 1])

    return array([at(value) for value in x.ravel().tolist()]).reshape(x.shape)[()]


def trapezoid(y, x=None, dx=1.0):
    y = asarray(y)
    steps = dx if x is None else diff(x)
    return ((y[1:] + y[:-1]) * steps / 2.0).sum()


def array_repr(a):
    return repr(a)


def array2string(a, **options):
    return str(a)


def set_printoptions(**options):
    """Accepted and without effect: arrays are shown with numpy's defaults."""


def seterr(**options):
    return {"divide": "ignore", "over": "ignore", "under": "ignore", "invalid": "ignore"}


class errstate:
    """Warnings of floating point are never given here."""

    def __init__(self, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


class iinfo:
    def __init__(self, kind):
        if _core.as_dtype(kind).kind != "i":
            raise ValueError(f"Invalid integer data type {_core.as_dtype(kind).kind!r}.")
        self.min, self.max, self.bits = -(1 << 63), (1 << 63) - 1, 64


class finfo:
    def __init__(self, kind=float):
        self.eps, self.tiny = float64(2.220446049250313e-16), float64(2.2250738585072014e-308)
        self.max, self.min = float64(1.7976931348623157e308), float64(-1.7976931348623157e308)
        self.bits, self.nmant, self.precision = 64, 52, 15


def _public():
    return sorted(name for name in globals() if not name.startswith("_") and name != "all_ints")


__all__ = _public()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module 'numpy' has no attribute '{name}'")
    raise AttributeError(f"numpy.{name} is not available here; available: {', '.join(__all__)}")
