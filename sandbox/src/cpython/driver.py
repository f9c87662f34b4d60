"""CPython's side of the sandbox: answers one call of the host after another, in the notebook's terms of `_cell.py`.

`start` runs once, before the memory that every session starts from is kept; `answer` runs for each call. The host puts
a request on descriptor 10, one letter and a text, and takes from descriptor 11 a status, an exception's class and its
message. What `_cell.py` asks of RustPython's native module `_sandbox` is here in Python.
"""

import ast
import copy
import gc
import importlib.util
import os
import signal
import sys
import types

gc.disable()

REQUEST, REPLY = 10, 11
# The host makes this signal pending when the time is over (`image.rs`).
TIME_SIGNAL = 24
CHUNK = 1 << 16
MESSAGE_CHARS = 1 << 16

PACKAGES = (
    "numpy numpy.linalg numpy.fft numpy.random numpy.polynomial "
    "scipy scipy.linalg scipy.optimize scipy.integrate scipy.special scipy.interpolate scipy.sparse "
    "scipy.sparse.linalg scipy.sparse.csgraph scipy.spatial scipy.signal scipy.stats scipy.fft scipy.ndimage "
    "networkx queue threading asyncio concurrent.futures.thread concurrent.futures.process"
).split()

# Modules that need threads, sockets or processes; what RustPython has in their place does for both.
REPLACED = "asyncio.unix_events", "concurrent.futures.thread", "concurrent.futures.process"

INSTEAD = {
    "gmpy2": "use int, math, pow(a, -1, m) and sympy.ntheory",
    "sortedcontainers": "use bisect or heapq on a list",
}
AVAILABLE = "the standard library, numpy, scipy, sympy, mpmath, networkx, pandas, scikit-learn and statsmodels"

read, write, encode = os.read, os.write, str.encode


def write_all(fd, data):
    while data:
        data = data[write(fd, data) :]


def write_out(text):
    write_all(1, encode(text, "utf-8", "replace"))
    return len(text)


def write_err(text):
    write_all(2, encode(text, "utf-8", "replace"))
    return len(text)


def compile_cell(source, filename, compile=compile, Expression=ast.Expression, Expr=ast.Expr):
    """`(statements, expression)`: code objects, either may be None. Raises SyntaxError."""
    # The tree alone is no proof: some errors are found later.
    whole = compile(source, filename, "exec", dont_inherit=True)
    tree = compile(source, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    if not tree.body or not isinstance(tree.body[-1], Expr):
        return whole, None
    last = tree.body.pop()
    body = compile(tree, filename, "exec", dont_inherit=True) if tree.body else None
    return body, compile(Expression(last.value), filename, "eval", dont_inherit=True)


class Replacements:
    """Finds the modules of `REPLACED`, before anything else is asked."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, f"/sandbox/{name}.py") if name in REPLACED else None


is_running = False


def on_time(signum, frame):
    if is_running:
        raise TimeoutError("the time limit of this cell is reached")


def without_handler(report):
    """A traceback ends where the time was over, not in the handler that says so."""

    def clean(error):
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            if trace.tb_next.tb_frame.f_code is on_time.__code__:
                trace.tb_next = None
            trace = trace.tb_next
        return report(error)

    return clean


def start():
    cell = CELL
    path = list(sys.path)
    sys.meta_path.insert(0, Replacements)
    for name in [*cell.PRELOADED, *PACKAGES]:
        __import__(name)
    # Before `_cell.start` takes the path away: this loads more.
    exec(cell.WARM_UP, {"sympy": sys.modules["sympy"]})
    sys.meta_path.remove(Replacements)
    kept = signal.getsignal, signal.default_int_handler
    cell.INSTEAD |= INSTEAD
    cell.AVAILABLE = AVAILABLE
    cell.report = without_handler(cell.report)
    signal.signal(TIME_SIGNAL, on_time)
    sys.set_int_max_str_digits(0)
    # `_cell.start` adds to it; it can't be added to from 3.15 on.
    copy._copy_atomic_types = set(copy._copy_atomic_types)
    copy._atomic_types = set(copy._atomic_types)
    cell.start()
    signal.getsignal, signal.default_int_handler = kept
    sys.path[:] = [entry for entry in path if entry != "/sandbox"]
    write(REPLY, encode(str(id(answer))))


def reseed(cell, text):
    seed = int(text)
    cell.seed(seed)
    sys.modules["numpy"].random.seed(seed % 2**32)
    return cell.OK, "", ""


def answer():
    """Answers the request that waits. Never raises, as far as it can help it."""
    global is_running
    cell = CELL
    request = b""
    while piece := read(REQUEST, CHUNK):
        request += piece
    kind, text = request[:1], request[1:].decode("utf-8", "replace")
    try:
        if kind == b"r":
            is_running = True
            result = cell.run(text)
        elif kind == b"c":
            result = cell.is_complete(text), "", ""
        else:
            result = reseed(cell, text)
    except BaseException as error:
        result = cell.EXCEPTION, type(error).__name__, "the cell runner failed"
    finally:
        is_running = False
    status, name, message = result
    write(REPLY, encode(f"{status}\0{name}\0{str(message)[:MESSAGE_CHARS]}", "utf-8", "replace"))


# CPython's own locks will do; the functions of sympy that RustPython has in Rust stay Python's here.
for name in "_one_thread", "_random_patches", "_sympy_patches":
    sys.modules[name] = types.ModuleType(name)
sys.modules["_sandbox"] = sys.modules[__name__]

import _cell as CELL
