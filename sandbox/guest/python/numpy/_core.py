"""`ndarray` and its scalars: a view of a native buffer, indexed, combined and shown as numpy does.

The arithmetic is in the native module `_arrays` (Rust). Element types are bool, int64, float64 and complex128; there
are no others, and no arrays of objects.
"""

import _arrays as native
import math
import operator

newaxis = None
KINDS = ("bool", "int64", "float64", "complex128")


class dtype:
    """An element type."""

    __slots__ = ("name", "type", "kind", "itemsize")

    def __new__(cls, spec):
        return as_dtype(spec)

    def __repr__(self):
        return f"dtype('{self.name}')"

    def __str__(self):
        return self.name

    def __eq__(self, other):
        try:
            return as_dtype(other) is self
        except TypeError:
            return False

    def __hash__(self):
        return hash(self.name)


class generic:
    """What every scalar is."""

    __slots__ = ()
    shape, ndim, size = (), 0, 1

    @property
    def dtype(self):
        return DTYPES[self._name]

    @property
    def T(self):
        return self

    def astype(self, kind):
        return asarray(self).astype(kind)[()]

    def tolist(self):
        return self.item()

    def __getattr__(self, name):
        # The methods of arrays work on scalars.
        if name.startswith("_"):
            raise AttributeError(f"'numpy.{self._name}' object has no attribute '{name}'")
        return getattr(asarray(self), name)


class number(generic):
    """A scalar that is no truth value."""

    __slots__ = ()


class integer(number):
    """What integers are."""

    __slots__ = ()


class floating(number):
    """What real numbers are."""

    __slots__ = ()


class complexfloating(number):
    """What complex numbers are."""

    __slots__ = ()


class int64(integer, int):
    """A 64-bit integer."""

    __slots__ = ()
    _name = "int64"

    def __new__(cls, value=0):
        value = int(value)
        if not -(1 << 63) <= value < 1 << 63:
            raise OverflowError("Python int too large to convert to C long")
        return int.__new__(cls, value)

    def __repr__(self):
        return f"np.int64({int(self)})"

    def __str__(self):
        return int.__repr__(self)

    def __format__(self, spec):
        return format(int(self), spec)

    __hash__ = int.__hash__

    def item(self):
        return int(self)


class float64(floating, float):
    """A double."""

    __slots__ = ()
    _name = "float64"

    def __repr__(self):
        return f"np.float64({float(self)!r})"

    def __str__(self):
        return float.__repr__(self)

    def __round__(self, ndigits=None):
        rounded = round(float(self), ndigits)
        return rounded if ndigits is None else float64(rounded)

    __hash__ = float.__hash__

    def item(self):
        return float(self)


class complex128(complexfloating, complex):
    """A pair of doubles."""

    __slots__ = ()
    _name = "complex128"

    def __repr__(self):
        return f"np.complex128({complex(self)!r})"

    def __str__(self):
        return complex.__repr__(self)

    __hash__ = complex.__hash__

    def item(self):
        return complex(self)


class bool_(generic):
    """A truth value."""

    __slots__ = ("_value",)
    _name = "bool"

    def __new__(cls, value=False):
        return TRUE if value else FALSE

    def __bool__(self):
        return self._value

    def __repr__(self):
        return f"np.{self._value}_"

    def __str__(self):
        return str(self._value)

    def __hash__(self):
        return hash(self._value)

    def __index__(self):
        raise TypeError("only integer scalar arrays can be converted to a scalar index")

    def __int__(self):
        return int(self._value)

    def __float__(self):
        return float(self._value)

    def item(self):
        return self._value


TRUE, FALSE = object.__new__(bool_), object.__new__(bool_)
TRUE._value, FALSE._value = True, False


SCALARS = {"bool": bool_, "int64": int64, "float64": float64, "complex128": complex128}
DTYPES = {}
for _name, _kind, _bytes in (("bool", "b", 1), ("int64", "i", 8), ("float64", "f", 8), ("complex128", "c", 16)):
    _dtype = object.__new__(dtype)
    _dtype.name, _dtype.type, _dtype.kind, _dtype.itemsize = _name, SCALARS[_name], _kind, _bytes
    DTYPES[_name] = _dtype

SPELLINGS = {
    bool: "bool", int: "int64", float: "float64", complex: "complex128",
    bool_: "bool", int64: "int64", float64: "float64", complex128: "complex128",
    "?": "bool", "bool_": "bool", "int": "int64", "i8": "int64", "int_": "int64", "float": "float64", "f8": "float64",
    "d": "float64", "double": "float64", "complex": "complex128", "c16": "complex128", "i": "int64", "f": "float64",
}  # fmt: skip


def as_dtype(spec):
    if type(spec) is dtype:
        return spec
    try:
        return DTYPES[SPELLINGS.get(spec, spec)]
    except (KeyError, TypeError):
        name = getattr(spec, "__name__", spec)
        raise TypeError(f"data type {name!r} is not available here; available: {', '.join(KINDS)}") from None


def strides_of(shape):
    strides, stride = [], 1
    for length in reversed(shape):
        strides.append(stride)
        stride *= length
    return tuple(reversed(strides))


def scalar(value, name):
    if name == "int64":
        return int.__new__(int64, value)
    if name == "float64":
        return float.__new__(float64, value)
    if name == "bool":
        return TRUE if value else FALSE
    return complex.__new__(complex128, value)


def fresh(buffer, shape):
    """The array of a new contiguous buffer."""
    array = object.__new__(ndarray)
    array._buffer, array._view = buffer, (shape, strides_of(shape), 0)
    return array


def result(buffer, shape):
    """What an operation answers: a scalar where there are no axes."""
    return fresh(buffer, shape) if shape else scalar(native.get(buffer, 0), buffer.kind)


def flatten(value, shape, depth, flat):
    if depth == len(shape):
        if isinstance(value, (list, tuple, ndarray)) and not (isinstance(value, ndarray) and value.ndim == 0):
            ragged(shape)
        flat.append(value.item() if isinstance(value, (generic, ndarray)) else value)
        return
    if not isinstance(value, (list, tuple, range, ndarray)) or len(value) != shape[depth]:
        ragged(shape[:depth])
    if depth + 1 == len(shape) and isinstance(value, (list, tuple, range)):
        for item in value:
            if isinstance(item, (list, tuple, ndarray)):
                ragged(shape)
        flat.extend(item.item() if isinstance(item, (generic, ndarray)) else item for item in value)
        return
    for part in value:
        flatten(part, shape, depth + 1, flat)


def ragged(shape):
    raise ValueError(
        f"setting an array element with a sequence. The requested array has an inhomogeneous shape after {len(shape)} "
        f"dimensions. The detected shape was {shape} + inhomogeneous part."
    )


def array(object, dtype=None, copy=True, ndmin=0):
    """An array of nested sequences of numbers."""
    if isinstance(object, ndarray):
        kind = object._buffer.kind if dtype is None else as_dtype(dtype).name
        made = fresh(native.gather(object._buffer, object._view, kind), object.shape)
    else:
        if isinstance(object, (map, filter, zip, set, frozenset, dict)) or hasattr(object, "__next__"):
            raise TypeError(f"an array is made of a list, not of {type(object).__name__}: write list(...)")
        shape, inner = [], object
        while isinstance(inner, (list, tuple, range)) or isinstance(inner, ndarray) and inner.ndim:
            shape.append(len(inner))
            if not len(inner):
                break
            inner = inner[0]
        flat, shape = [], tuple(shape)
        flatten(object, shape, 0, flat)
        kind = native.kind_of(flat)
        if kind is None:
            odd = next(type(item).__name__ for item in flat if native.kind_of([item]) is None)
            raise TypeError(f"arrays of {odd} are not available here; elements are bool, int, float or complex")
        if dtype is not None:
            kind = as_dtype(dtype).name
        try:
            buffer = native.from_list(flat, kind)
        except OverflowError:
            raise OverflowError(
                "Python int too large to convert to C long: arrays hold 64-bit integers here; keep larger ones in lists"
            ) from None
        made = fresh(buffer, shape)
    while made.ndim < ndmin:
        made = made[None]
    return made


def asarray(object, dtype=None):
    if isinstance(object, ndarray) and (dtype is None or as_dtype(dtype).name == object._buffer.kind):
        return object
    return array(object, dtype)


def zeros(shape, dtype=float):
    shape = as_shape(shape)
    return fresh(native.zeros(as_dtype(dtype).name, shape), shape)


def as_shape(shape):
    shape = (shape,) if hasattr(shape, "__index__") else tuple(shape)
    shape = tuple(map(operator.index, shape))
    if shape and max(shape) >= 1 << 31:
        raise MemoryError(f"Unable to allocate an array with shape {shape}")
    return shape


def as_axis(axis, ndim):
    index = operator.index(axis)
    if not -ndim <= index < ndim:
        raise AxisError(f"axis {index} is out of bounds for array of dimension {ndim}")
    return index % ndim


class AxisError(ValueError, IndexError):
    """An axis that the array does not have."""


def binary(name, a, b):
    a, b = operand(a, b), operand(b, a)
    if a is None or b is None:
        return NotImplemented
    buffer, shape = native.binary(name, a._buffer, a._view, b._buffer, b._view)
    return result(buffer, shape)


def operand(value, other):
    if type(value) is ndarray:
        return value
    if isinstance(value, int) and type(value) is not int64 and not -(1 << 63) <= value < 1 << 63:
        # numpy 2 says so where a Python int meets an array of 64-bit integers.
        raise OverflowError("Python int too large to convert to C long")
    try:
        return array(value)
    except TypeError:
        return None


def unary(name, a):
    a = asarray(a)
    return result(native.unary(name, a._buffer, a._view), a.shape)


def reduction(name, a, axis=None, keepdims=False):
    a = asarray(a)
    if isinstance(axis, tuple):
        for one in sorted((as_axis(one, a.ndim) for one in axis), reverse=True):
            a = reduction(name, a, one, keepdims)
        return a
    index = None if axis is None else as_axis(axis, a.ndim)
    buffer, shape = native.reduce(name, a._buffer, a._view, index)
    if keepdims:
        shape = tuple(1 if index is None or k == index else length for k, length in enumerate(a.shape))
    return result(buffer, shape)


class flatiter:
    """What `flat` gives: the elements in C order, one after the other or by index."""

    def __init__(self, base):
        self.base, self._parts = base, iter(base.ravel())

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._parts)

    def __len__(self):
        return self.base.size

    def __getitem__(self, key):
        return self.base.ravel()[key]

    def __setitem__(self, key, value):
        flat = self.base.copy().ravel()
        flat[key] = value
        self.base[...] = flat.reshape(self.base.shape)


class ndarray:
    """A view of a buffer: shape, strides (in elements) and first element."""

    __slots__ = ("_buffer", "_view")
    __array_priority__ = 10

    def __new__(cls, *args, **options):
        raise TypeError("arrays are made by array(), zeros(), arange() and the like")

    @property
    def shape(self):
        return self._view[0]

    @shape.setter
    def shape(self, shape):
        reshaped = self.reshape(shape)
        self._buffer, self._view = reshaped._buffer, reshaped._view

    @property
    def dtype(self):
        return DTYPES[self._buffer.kind]

    @property
    def ndim(self):
        return len(self._view[0])

    @property
    def size(self):
        return math.prod(self._view[0])

    @property
    def itemsize(self):
        return self.dtype.itemsize

    @property
    def nbytes(self):
        return self.size * self.itemsize

    @property
    def T(self):
        return self.transpose()

    @property
    def flat(self):
        return flatiter(self)

    @property
    def real(self):
        return unary("real", self)

    @property
    def imag(self):
        return unary("imag", self)

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self):
        if not self.shape:
            raise TypeError("iteration over a 0-d array")
        if self.ndim == 1:
            kind = self._buffer.kind
            return iter([scalar(value, kind) for value in native.to_list(self._buffer, self._view)])
        return iter([self[k] for k in range(self.shape[0])])

    def __bool__(self):
        if self.size != 1:
            what = "more than one element is ambiguous. Use a.any() or a.all()" if self.size else "no elements is ambiguous"
            raise ValueError(f"The truth value of an array with {what}")
        return bool(self.item())

    def item(self, *index):
        if index:
            return self[index if len(index) > 1 else index[0]].item()
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return native.to_list(self._buffer, self._view)[0]

    def __int__(self):
        return int(self._single())

    def __float__(self):
        return float(self._single())

    def __complex__(self):
        return complex(self._single())

    def __index__(self):
        if self.ndim or self._buffer.kind != "int64":
            raise TypeError("only integer scalar arrays can be converted to a scalar index")
        return self.item()

    def _single(self):
        if self.ndim:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return self.item()

    def tolist(self):
        flat = native.to_list(self._buffer, self._view)
        for length in reversed(self.shape[1:]):
            flat = [flat[k : k + length] for k in range(0, len(flat), length)] if length else [[] for _ in range(math.prod(self.shape[:-1]))]
        return flat if self.shape else flat[0]

    def copy(self, order="C"):
        return array(self)

    def astype(self, dtype, copy=True):
        return array(self, dtype)

    def fill(self, value):
        self[...] = value

    def __contains__(self, value):
        return bool((self == value).any())

    def __hash__(self):
        raise TypeError("unhashable type: 'numpy.ndarray'")

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # Indexing

    def _locate(self, index):
        """The view of an index of integers, slices, None and `...`, or (None, parts) where arrays are among them."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(list_index(part) for part in parts)
        n_axes = sum(part.ndim if is_mask(part) else part is not None and part is not Ellipsis for part in parts)
        if n_axes > self.ndim:
            raise IndexError(f"too many indices for array: array is {self.ndim}-dimensional, but {n_axes} were indexed")
        fill = (slice(None),) * (self.ndim - n_axes)
        at = next((k for k, part in enumerate(parts) if part is Ellipsis), None)
        parts = parts + fill if at is None else parts[:at] + fill + parts[at + 1 :]
        if any(type(part) is ndarray for part in parts):
            return None, parts
        shape, strides, (lengths, steps, offset) = [], [], self._view
        axis = 0
        for part in parts:
            if part is None:
                shape.append(1)
                strides.append(0)
                continue
            length, step = lengths[axis], steps[axis]
            if type(part) is slice:
                start, stop, stride = part.indices(length)
                n = len(range(start, stop, stride))
                offset += start * step if n else 0
                shape.append(n)
                strides.append(stride * step)
            else:
                offset += in_bounds(part, length, axis) * step
            axis += 1
        return (tuple(shape), tuple(strides), offset), None

    def _places(self, parts):
        """Positions in the buffer of an index with arrays among its parts, and the shape of what it selects."""
        # Positions of all elements, as an array of this one's shape: the index is applied to it part by part.
        expanded = []
        for part in parts:
            expanded.extend(nonzero(part) if is_mask(part) else [part])
        axis, arrays, axes = 0, [], []
        places = fresh(native.places(self._buffer, self._view), self.shape)
        for part, mask in zip(parts, parts):
            if is_mask(part) and part.shape != self.shape[axis : axis + part.ndim]:
                bad = next(k for k in range(part.ndim) if part.shape[k] != self.shape[axis + k])
                raise IndexError(
                    f"boolean index did not match indexed array along axis {axis + bad}; size of axis is "
                    f"{self.shape[axis + bad]} but size of corresponding boolean axis is {part.shape[bad]}"
                )
            axis += part.ndim if is_mask(part) else part is not None
        # Slices and new axes first; integers join the arrays.
        basic = tuple(part if part is None or type(part) is slice else slice(None) for part in expanded)
        places = places[basic]
        for axis, part in enumerate(expanded):
            if part is not None and type(part) is not slice:
                arrays.append(asarray(part))
                axes.append(axis)
        for index in arrays:
            if index._buffer.kind != "int64" and index.size:
                raise IndexError("arrays used as indices must be of integer (or boolean) type")
        shape = ()
        for index in arrays:
            shape = broadcast_shapes(shape, index.shape)
        adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
        rest = [k for k in range(places.ndim) if k not in axes]
        ordered = places.transpose(*axes, *rest)
        flat = zeros(shape, int)
        for axis, index in zip(axes, arrays):
            length = places.shape[axis]
            for value in native.to_list(index._buffer, index._view):
                in_bounds(value, length, axis)
            flat = flat * length + index.astype(int) % max(length, 1)
        n_rows = math.prod(ordered.shape[: len(axes)])
        rows = ordered.reshape((n_rows,) + ordered.shape[len(axes) :])
        tail = rows.shape[1:]
        width = math.prod(tail)
        chosen = asarray(flat).reshape((-1, 1)) * width + arange_(width)
        found = native.pick(rows.ravel()._buffer, asarray(chosen).ravel()._buffer)
        selected = fresh(found, shape + tail)
        if adjacent and axes[0]:
            n, before = len(shape), axes[0]
            order = [n + k for k in range(before)] + list(range(n)) + list(range(n + before, selected.ndim))
            selected = selected.transpose(*order)
        return selected

    def __getitem__(self, index):
        view, parts = self._locate(index)
        if view is None:
            places = self._places(parts)
            return fresh(native.pick(self._buffer, array(places)._buffer), places.shape)
        if not view[0] and not (index is Ellipsis or isinstance(index, tuple) and Ellipsis in map(keep, index)):
            return scalar(native.get(self._buffer, view[2]), self._buffer.kind)
        selected = object.__new__(ndarray)
        selected._buffer, selected._view = self._buffer, view
        return selected

    def __setitem__(self, index, value):
        value = asarray(value)
        if value._buffer.kind == "complex128" and self._buffer.kind != "complex128":
            raise TypeError("int() argument must be a string, a bytes-like object or a real number, not 'complex'")
        view, parts = self._locate(index)
        if view is not None:
            while value.ndim > len(view[0]) and value.shape[0] == 1:
                value = value[0]
                if not isinstance(value, ndarray):
                    value = asarray(value)
            if value.ndim > len(view[0]):
                if not view[0]:
                    raise ValueError("setting an array element with a sequence.")
                raise ValueError(f"could not broadcast input array from shape {value.shape} into shape {view[0]}")
            try:
                native.scatter(self._buffer, view, value._buffer, value._view)
            except ValueError:
                shown = [f"({','.join(map(str, shape))}{',' if len(shape) == 1 else ''})" for shape in (value.shape, view[0])]
                raise ValueError(f"could not broadcast input array from shape {shown[0]} into shape {shown[1]}") from None
            return
        places = self._places(parts)
        value = broadcast_to(value, places.shape)
        if places.size:
            native.put(self._buffer, array(places)._buffer, array(value)._buffer)

    # Shapes

    def reshape(self, *shape, order="C"):
        shape = as_shape(shape[0] if len(shape) == 1 else shape)
        if shape.count(-1) == 1:
            known = -math.prod(shape)
            if known == 0 or self.size % known:
                raise ValueError(f"cannot reshape array of size {self.size} into shape {shape}")
            shape = tuple(self.size // known if length == -1 else length for length in shape)
        if math.prod(shape) != self.size or min(shape, default=0) < 0:
            shown = f"({','.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
            raise ValueError(f"cannot reshape array of size {self.size} into shape {shown}")
        if order == "F":
            return self.T.reshape(shape[::-1]).T
        base = self if self._is_contiguous() else array(self)
        reshaped = object.__new__(ndarray)
        reshaped._buffer, reshaped._view = base._buffer, (shape, strides_of(shape), base._view[2])
        return reshaped

    def _is_contiguous(self):
        shape, strides, _ = self._view
        return all(a == b or n == 1 for n, a, b in zip(shape, strides, strides_of(shape)))

    def ravel(self, order="C"):
        flat = self.reshape(-1, order=order)
        return flat if flat._view[2] == 0 and flat.size == flat._buffer.size else array(flat)

    def flatten(self, order="C"):
        return array(self.reshape(-1, order=order))

    def transpose(self, *axes):
        shape, strides, offset = self._view
        if len(axes) == 1 and not hasattr(axes[0], "__index__"):
            axes = axes[0]
        axes = tuple(range(self.ndim))[::-1] if not axes else tuple(as_axis(axis, self.ndim) for axis in axes)
        if sorted(axes) != list(range(self.ndim)):
            raise ValueError("axes don't match array")
        turned = object.__new__(ndarray)
        turned._buffer = self._buffer
        turned._view = tuple(shape[k] for k in axes), tuple(strides[k] for k in axes), offset
        return turned

    def swapaxes(self, a, b):
        axes = list(range(self.ndim))
        a, b = as_axis(a, self.ndim), as_axis(b, self.ndim)
        axes[a], axes[b] = axes[b], axes[a]
        return self.transpose(*axes)

    def squeeze(self, axis=None):
        dropped = range(self.ndim) if axis is None else [as_axis(axis, self.ndim)]
        if axis is not None and self.shape[dropped[0]] != 1:
            raise ValueError("cannot select an axis to squeeze out which has size not equal to one")
        return self.reshape(tuple(n for k, n in enumerate(self.shape) if n != 1 or k not in dropped))

    # Reductions

    def sum(self, axis=None, dtype=None, keepdims=False):
        return reduction("sum", self if dtype is None else self.astype(dtype), axis, keepdims)

    def prod(self, axis=None, dtype=None, keepdims=False):
        return reduction("prod", self if dtype is None else self.astype(dtype), axis, keepdims)

    def min(self, axis=None, keepdims=False):
        return reduction("min", self, axis, keepdims)

    def max(self, axis=None, keepdims=False):
        return reduction("max", self, axis, keepdims)

    def argmin(self, axis=None):
        return reduction("argmin", self, axis)

    def argmax(self, axis=None):
        return reduction("argmax", self, axis)

    def all(self, axis=None, keepdims=False):
        return reduction("all", self, axis, keepdims)

    def any(self, axis=None, keepdims=False):
        return reduction("any", self, axis, keepdims)

    def mean(self, axis=None, keepdims=False):
        total = reduction("sum", self, axis, keepdims)
        n = self.size if axis is None else self.shape[as_axis(axis, self.ndim)]
        return binary("divide", total, n)

    def var(self, axis=None, ddof=0, keepdims=False):
        spread = self - self.mean(axis, keepdims=True)
        squares = (spread * spread.conj()).real if self._buffer.kind == "complex128" else spread * spread
        n = self.size if axis is None else self.shape[as_axis(axis, self.ndim)]
        return reduction("sum", squares, axis, keepdims) / (n - ddof)

    def std(self, axis=None, ddof=0, keepdims=False):
        return unary("sqrt", self.var(axis, ddof, keepdims))

    def cumsum(self, axis=None):
        return self._cumulate(False, axis)

    def cumprod(self, axis=None):
        return self._cumulate(True, axis)

    def _cumulate(self, product, axis):
        base = self.reshape(-1) if axis is None else self
        axis = as_axis(axis or 0, base.ndim)
        return fresh(native.cumulate(product, base._buffer, base._view, axis), base.shape)

    def trace(self):
        return self.diagonal().sum()

    def diagonal(self, offset=0):
        (rows, columns, *rest), (down, right, *_), start = self._view
        if rest:
            raise ValueError("diagonals are taken of 2-dimensional arrays here")
        start += offset * right if offset >= 0 else -offset * down
        n = max(0, min(rows + min(offset, 0), columns - max(offset, 0)))
        diagonal = object.__new__(ndarray)
        diagonal._buffer, diagonal._view = self._buffer, ((n,), (down + right,), start if n else 0)
        return diagonal

    def dot(self, other):
        return dot(self, other)

    def conj(self):
        return unary("conjugate", self)

    conjugate = conj

    def round(self, decimals=0):
        if self._buffer.kind == "int64" and decimals >= 0:
            return self.copy()
        if self._buffer.kind == "complex128":
            return self.real.round(decimals) + self.imag.round(decimals) * 1j
        scale = 10.0**decimals
        return unary("rint", self * scale) / scale

    def clip(self, min=None, max=None):
        clipped = self
        if min is not None:
            clipped = binary("maximum", clipped, min)
        return clipped if max is None else binary("minimum", clipped, max)

    # Order

    def _along(self, axis, positions):
        base = self.reshape(-1) if axis is None else self
        axis = as_axis(-1 if axis is None else axis, base.ndim)
        moved = base.swapaxes(axis, -1)
        return fresh(native.order(positions, moved._buffer, moved._view), moved.shape).swapaxes(axis, -1)

    def sort(self, axis=-1, kind=None):
        self[...] = self._along(axis, False)

    def argsort(self, axis=-1, kind=None):
        return self._along(axis, True)

    def nonzero(self):
        return nonzero(self)

    def repeat(self, repeats, axis=None):
        base = self.reshape(-1) if axis is None else self
        axis = as_axis(axis or 0, base.ndim)
        counts = [operator.index(repeats)] * base.shape[axis] if hasattr(repeats, "__index__") else list(repeats)
        chosen = [k for k, n in enumerate(counts) for _ in range(n)]
        return base[(slice(None),) * axis + (array(chosen, int),)]

    def take(self, indices, axis=None):
        base = self.reshape(-1) if axis is None else self
        return base[(slice(None),) * as_axis(axis or 0, base.ndim) + (asarray(indices, int),)]

    def __matmul__(self, other):
        return matmul(self, other)

    def __rmatmul__(self, other):
        return matmul(other, self)

    def __divmod__(self, other):
        return self // other, self % other

    def __pow__(self, other, modulus=None):
        return binary("power", self, other)

    def __rpow__(self, other):
        return binary("power", other, self)

    def __neg__(self):
        return unary("negative", self)

    def __pos__(self):
        return unary("positive", self)

    def __abs__(self):
        return unary("absolute", self)

    def __invert__(self):
        return unary("invert", self)

    def __repr__(self):
        from . import _show

        return _show.array_repr(self)

    def __str__(self):
        from . import _show

        return _show.array_str(self)

    def __format__(self, spec):
        return format(self.item(), spec) if spec else str(self)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(f"'numpy.ndarray' object has no attribute '{name}'")
        have = ", ".join(sorted(n for n in dir(ndarray) if not n.startswith("_")))
        raise AttributeError(f"arrays have no '{name}' here; available: {have}")


def keep(part):
    return part if part is Ellipsis else None


def is_mask(part):
    return type(part) is ndarray and part._buffer.kind == "bool"


def list_index(part):
    """A part of an index: lists become arrays, scalars ints."""
    if part is None or part is Ellipsis or type(part) in (int, slice, ndarray):
        return part.item() if type(part) is ndarray and not part.ndim and part._buffer.kind == "int64" else part
    if isinstance(part, (list, tuple)):
        return array(part, int) if not len(part) else array(part)
    if isinstance(part, (bool, bool_)):
        raise IndexError("a single truth value as an index is not available here")
    try:
        return operator.index(part)
    except TypeError:
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean arrays are "
            "valid indices"
        ) from None


def in_bounds(index, length, axis):
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for axis {axis} with size {length}")
    return index + length if index < 0 else index


def arange_(n):
    return fresh(native.count(0, 1, n), (n,))


def nonzero(a):
    """Arrays of the positions of what is true, one for each axis."""
    a = asarray(a)
    flat = native.true_places(a._buffer, a._view)
    places = fresh(flat, (flat.size,))
    found = []
    for length in reversed(a.shape):
        found.append(places % length if length else places)
        places = places // length if length else places
    return tuple(reversed(found))


def broadcast_shapes(*shapes):
    joined = []
    for lengths in zip(*[(1,) * (max(map(len, shapes)) - len(shape)) + tuple(shape) for shape in shapes]):
        length = max(lengths) if 0 not in lengths else 0
        if any(n not in (1, length) for n in lengths):
            raise ValueError("shape mismatch: objects cannot be broadcast to a single shape")
        joined.append(length)
    return tuple(joined)


def broadcast_to(a, shape):
    a, shape = asarray(a), as_shape(shape)
    lengths, strides, offset = a._view
    n_new = len(shape) - a.ndim
    if n_new < 0 or any(n != m and n != 1 for n, m in zip(lengths, shape[n_new:])):
        raise ValueError(
            f"operands could not be broadcast together with remapped shapes [original->remapped]: {a.shape}  and "
            f"requested shape {shape}"
        )
    spread = object.__new__(ndarray)
    spread._buffer = a._buffer
    steps = tuple(0 if n == 1 else step for n, step in zip(lengths, strides))
    spread._view = shape, (0,) * n_new + steps, offset
    return spread


def matmul(a, b):
    """The product of vectors, matrices, or stacks of matrices."""
    a, b = asarray(a), asarray(b)
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: Input operand does not have enough dimensions")
    if a.ndim > 2 or b.ndim > 2:
        left = a if a.ndim > 1 else a[None]
        right = b if b.ndim > 1 else b[:, None]
        stack = broadcast_shapes(left.shape[:-2], right.shape[:-2])
        left = broadcast_to(left, stack + left.shape[-2:]).reshape((-1,) + left.shape[-2:])
        right = broadcast_to(right, stack + right.shape[-2:]).reshape((-1,) + right.shape[-2:])
        parts = [matmul(x, y).tolist() for x, y in zip(left, right)]
        product = array(parts).reshape(stack + (left.shape[-2], right.shape[-1]))
        return product if a.ndim > 1 and b.ndim > 1 else product.squeeze(-2 if a.ndim == 1 else -1)
    left, right = a if a.ndim == 2 else a[None], b if b.ndim == 2 else b[:, None]
    buffer = native.matmul(left._buffer, left._view, right._buffer, right._view)
    return result(buffer, a.shape[:-1] + b.shape[1:])


def dot(a, b):
    a, b = asarray(a), asarray(b)
    if not a.ndim or not b.ndim:
        return binary("multiply", a, b)
    if a.ndim <= 2 and b.ndim <= 2:
        inner = b.shape[0]
        if a.shape[-1] != inner:
            shown = [f"({','.join(map(str, x.shape))}{',' if x.ndim == 1 else ''})" for x in (a, b)]
            raise ValueError(
                f"shapes {shown[0]} and {shown[1]} not aligned: {a.shape[-1]} (dim {a.ndim - 1}) != {inner} (dim 0)"
            )
        return matmul(a, b)
    raise ValueError("dot of arrays with more than two axes is not available here; use matmul or einsum by hand")


OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift",
    "rshift": "right_shift",
}  # fmt: skip
COMPARISONS = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal"}


def _operator(name):
    def forward(self, other):
        return binary(name, self, other)

    def reflected(self, other):
        return binary(name, other, self)

    def in_place(self, other):
        changed = binary(name, self, other)
        if changed is NotImplemented:
            return changed
        if KINDS.index(asarray(changed)._buffer.kind) > KINDS.index(self._buffer.kind):
            raise TypeError(
                f"Cannot cast ufunc '{name}' output from dtype('{asarray(changed).dtype}') to dtype('{self.dtype}') "
                "with casting rule 'same_kind'"
            )
        self[...] = changed
        return self

    return forward, reflected, in_place


def _power(self, other, modulus=None):
    return binary("power", self, other)


def _install():
    for short, name in OPERATORS.items():
        forward, reflected, in_place = _operator(name)
        for kind in (ndarray, int64, float64, complex128, bool_):
            setattr(kind, f"__{short}__", forward)
            setattr(kind, f"__r{short}__", reflected)
        setattr(ndarray, f"__i{short}__", in_place)
    setattr(ndarray, "__ipow__", _operator("power")[2])
    for short, name in COMPARISONS.items():
        compare = _operator(name)[0]
        for kind in (ndarray, int64, float64, complex128, bool_):
            setattr(kind, f"__{short}__", compare)
    for kind, hashed in ((int64, int), (float64, float), (complex128, complex)):
        kind.__hash__ = hashed.__hash__
        kind.__pow__ = _power
        kind.__rpow__ = lambda self, other: binary("power", other, self)
        kind.__neg__ = lambda self: unary("negative", self)
        kind.__abs__ = lambda self: unary("absolute", self)
        kind.__divmod__ = lambda self, other: (self // other, self % other)
        kind.__rdivmod__ = lambda self, other: (other // self, other % self)
    int64.__invert__ = bool_.__invert__ = lambda self: unary("invert", self)
    bool_.__hash__ = lambda self: hash(self._value)


_install()

# sympy, for one, knows what is numpy's by the module that its class is of.
bool_.__name__ = bool_.__qualname__ = "bool"
for _class in (dtype, generic, number, integer, floating, complexfloating, int64, float64, complex128, bool_, ndarray):
    _class.__module__ = "numpy"
