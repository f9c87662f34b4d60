"""How arrays are written: numpy's `repr` and `str` with their default options."""

from . import _core as core

PRECISION, THRESHOLD, EDGE, WIDTH = 8, 1000, 3, 75
SUMMARY = "..."


def array_repr(a):
    is_short = a.size > THRESHOLD
    if a.size or a.shape == (0,):
        text = write(a, ", ", "array(", WIDTH - 1)
    else:
        text = f"[], shape={a.shape}"
    extras = []
    if is_short:
        extras.append(f"shape={a.shape}")
    if not a.size:
        extras.append(f"dtype={a.dtype.name}")
    if not extras:
        return f"array({text})"
    extra = ", ".join(extras) + ")"
    last_line = len(text) - (text.rfind("\n") + 1) + (len("array(") if "\n" not in text else 0)
    space = " " if last_line + len(extra) + 1 <= WIDTH else "\n" + " " * len("array(")
    return f"array({text},{space}{extra}"


def array_str(a):
    if not a.ndim:
        return str(a[()])
    return write(a, " ", "", WIDTH)


def write(a, separator, prefix, width):
    is_short = a.size > THRESHOLD
    shown = edges(a) if is_short else a
    format_item = formatter(shown)
    if not a.ndim:
        return format_item(a.item())
    if not a.size:
        return "[]"
    return lines(a, (), " " + " " * len(prefix), width, separator, format_item, is_short)


def edges(a):
    """The elements that a summary shows."""
    for axis, length in enumerate(a.shape):
        if length > 2 * EDGE:
            places = core.array(list(range(EDGE)) + list(range(length - EDGE, length)))
            a = a[(slice(None),) * axis + (places,)]
    return a


def lines(a, index, indent, width, separator, format_item, is_short):
    axis = len(index)
    axes_left = a.ndim - axis
    if not axes_left:
        return format_item(a[index].item())
    next_indent, next_width = indent + " ", width - 1
    length = a.shape[axis]
    summarised = is_short and 2 * EDGE < length
    items = list(range(EDGE)) + [None] + list(range(length - EDGE, length)) if summarised else list(range(length))
    text = ""
    if axes_left == 1:
        item_width = width - max(len(separator.rstrip()), 1)
        line = indent
        for position, item in enumerate(items):
            word = SUMMARY if item is None else format_item(a[index + (item,)].item())
            if len(line) + len(word) > item_width and len(line) > len(indent):
                text += line.rstrip() + "\n"
                line = indent
            line += word
            if position < len(items) - 1:
                line += separator
        text += line
    else:
        end = separator.rstrip() + "\n" * (axes_left - 1)
        for position, item in enumerate(items):
            if item is None:
                word = SUMMARY
            else:
                word = lines(a, index + (item,), next_indent, next_width, separator, format_item, is_short)
            text += indent + word + (end if position < len(items) - 1 else "")
    return "[" + text[len(indent) :] + "]"


def formatter(a):
    values = a.ravel().tolist() if a.ndim else [a.item()]
    kind = a.dtype.name
    if kind == "bool":
        return lambda value: f"{value!s:>{5 if a.ndim else 0}}"
    if kind == "int64":
        width = max((len(str(value)) for value in values), default=0)
        return lambda value: f"{value:>{width}}"
    if kind == "float64":
        return floats(values)
    real = floats([value.real for value in values])
    imaginary = floats([value.imag for value in values], sign=True)

    def pair(value):
        text = imaginary(value.imag)
        n = len(text.rstrip())
        return real(value.real) + text[:n] + "j" + text[n:]

    return pair


def floats(values, sign=False):
    finite = [value for value in values if value - value == 0]
    sizes = [abs(value) for value in finite if value]
    plus = "+" if sign else ""

    def signed(text, value):
        return plus + text if sign and not text.startswith("-") and value - value == 0 else text

    odd = [value for value in values if value - value != 0]
    if sizes and (max(sizes) >= 1e8 or min(sizes) < 1e-4 or max(sizes) / min(sizes) > 1000):
        parts = [scientific(value) for value in finite]
        n_digits = max((len(part[1]) for part in parts), default=0)
        n_exponent = max((len(part[2]) for part in parts), default=0)
        n_whole = max((len(signed(part[0], 0)) for part in parts), default=0)
        width = n_whole + 1 + n_digits + 1 + n_exponent
        if odd:
            width = max(width, max(len(special(value, sign)) for value in odd))

        def write_item(value):
            if value - value != 0:
                return special(value, sign).rjust(width)
            whole, digits, exponent = scientific(value, n_digits)
            exponent = exponent[0] + exponent[1:].zfill(n_exponent - 1)
            return f"{signed(whole, value)}.{digits:0<{n_digits}}e{exponent}".rjust(width)

        return write_item
    parts = [positional(value).split(".") for value in finite]
    n_digits = max((len(part[1]) for part in parts), default=0)
    n_whole = max((len(signed(part[0], 0)) for part in parts), default=0)
    width = n_whole + 1 + n_digits if finite else 0
    if odd:
        n_whole = max(n_whole, max(len(special(value, sign)) for value in odd) - n_digits - 1)
        width = n_whole + 1 + n_digits if finite else max(len(special(value, sign)) for value in odd)

    def write_item(value):
        if value - value != 0:
            return special(value, sign).rjust(width)
        whole, digits = positional(value).split(".")
        return f"{signed(whole, value):>{n_whole}}.{digits:<{n_digits}}"

    return write_item


def special(value, sign):
    if value != value:
        return "nan"
    return ("-" if value < 0 else "+" if sign else "") + "inf"


def positional(value):
    """The shortest digits that give the number again, at most PRECISION of them after the point."""
    text = repr(value)
    if "e" in text:
        text = f"{value:.{PRECISION + 20}f}".rstrip("0")
    whole, _, digits = text.partition(".")
    if len(digits) > PRECISION:
        whole, _, digits = f"{value:.{PRECISION}f}".partition(".")
    return f"{whole}.{digits.rstrip('0')}"


def scientific(value, n_digits=PRECISION):
    """Whole part, digits and exponent of the shortest form."""
    text = repr(value)
    n_significant = len(text.partition("e")[0].replace(".", "").replace("-", "").strip("0"))
    text = f"{value:.{min(max(n_significant - 1, 0), PRECISION)}e}"
    mantissa, _, exponent = text.partition("e")
    whole, _, digits = mantissa.partition(".")
    return whole, digits.rstrip("0"), exponent
