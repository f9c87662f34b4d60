"""What a cell means: echo, tracebacks, hints, seeds.

Called by the module's exports (`start` once, then `seed`, `run`, `is_complete` in every session). Everything that user
code might replace is bound here at import, so that a session that patches builtins still gets its outcome reported.
"""

import _one_thread
import _random_patches
import _sandbox
import builtins
import codeop
import copy
import difflib
import gc
import io
import linecache
import math
import os
import random
import re
import signal
import sys
import time
import traceback
import types
import warnings

OK, EXCEPTION, EXITED = 0, 1, 2
COMPLETE, INCOMPLETE, INVALID = 0, 1, 2

# Of a long traceback the first and the last frames are shown.
FIRST_FRAMES, LAST_FRAMES, LIBRARY_FRAMES = 4, 8, 2

# What `from module import *` of contest code reaches for; imported before the snapshot is taken.
PRELOADED = (
    "math cmath itertools functools collections fractions decimal operator heapq bisect statistics string re json "
    "copy typing dataclasses enum textwrap datetime pprint inspect contextlib hashlib timeit calendar "
    "mpmath sympy sympy.abc sympy.ntheory.continued_fraction sympy.ntheory.elliptic_curve sympy.ntheory.digits "
    "sympy.ntheory.modular sympy.solvers.diophantine sympy.solvers.recurr sympy.combinatorics sympy.geometry "
    "sympy.functions.combinatorial.numbers sympy.utilities.iterables sympy.calculus.util sympy.matrices.normalforms "
    "sympy.polys.numberfields sympy.sets.fancysets sympy.logic.boolalg sympy.stats sympy.core.random "
    "sympy.polys.galoistools sympy.polys.matrices sympy.series.formal sympy.integrals.manualintegrate"
).split()

# Lazily loaded parts of sympy are loaded by using them once.
WARM_UP = """
x, y = sympy.symbols('x y')
n = sympy.Symbol('n', integer=True, positive=True)
sympy.factorint(10**12 + 39); sympy.isprime(2**61 - 1); list(sympy.primerange(100)); sympy.totient(36)
sympy.factor(x**6 - 1); sympy.solve([x + y - 3, x*y - 2], [x, y]); sympy.solve(x**3 - 2*x + 1, x)
sympy.integrate(x**2*sympy.sin(x), x); sympy.diff(sympy.exp(x*y), x); sympy.limit(sympy.sin(x)/x, x, 0)
sympy.summation(n**2, (n, 1, 10)); sympy.simplify(sympy.sin(x)**2 + sympy.cos(x)**2); sympy.series(sympy.exp(x), x, 0, 4)
sympy.Matrix([[1, 2], [3, 4]]).inv(); sympy.nsimplify(0.5); sympy.sqrt(2).evalf(30); str(sympy.sqrt(x + 1)/2)
sympy.rsolve(sympy.Function('f')(n + 1) - 2*sympy.Function('f')(n), sympy.Function('f')(n))
sympy.Poly(x**4 + 1, x, modulus=5).factor_list(); sympy.cyclotomic_poly(12, x); sympy.lambdify(x, x**2)(3)
sympy.solveset(x**2 - 1, x, sympy.S.Reals); sympy.binomial(10, 3); sympy.resultant(x**2 - 1, x - 2, x)
sympy.minimal_polynomial(sympy.sqrt(2) + sympy.sqrt(3), x); sympy.groebner([x*y - 1, x - y], x, y)
"""

INSTEAD = {
    "scipy": "use mpmath (quad, findroot, odefun) or sympy (integrate, nsolve)",
    "pandas": "use lists, dict and collections",
    "networkx": "write the graph as a dict of sets; collections.deque and heapq for searches",
    "matplotlib": "nothing can be drawn; print numbers",
    "sortedcontainers": "use bisect or heapq on a list",
    "multiprocessing": "there is one process; use a plain loop",
    "numba": "there is no compiler; choose a better algorithm",
    "ortools": "write the search with itertools or recursion, or solve exactly with sympy",
    "pulp": "write the search with itertools or recursion, or solve exactly with sympy",
    "z3": "write the search with itertools or recursion, or solve exactly with sympy",
    "sage": "use sympy; Sage's ntheory, polynomial and matrix functions have sympy counterparts",
}


AVAILABLE = "the standard library, sympy, mpmath, numpy (a part of it) and gmpy2 (its integers)"

# Names that other systems give to functions of sympy.
ELSEWHERE = {
    "valuation": "multiplicity",
    "is_prime": "isprime",
    "next_prime": "nextprime",
    "euler_phi": "totient",
    "phi": "totient",
    "sigma": "divisor_sigma",
    "num_divisors": "divisor_count",
    "numdiv": "divisor_count",
    "moebius": "mobius",
    "kronecker_symbol": "jacobi_symbol",
    "inverse_mod": "mod_inverse",
    "multiplicative_order": "n_order",
    "nCr": "binomial",
    "comb": "binomial",
}

exec_, eval_, compile_cell, repr_ = builtins.exec, builtins.eval, _sandbox.compile_cell, builtins.repr
main = sys.modules["__main__"].__dict__
n_cells = 0


class Stream(io.TextIOBase):
    """stdout or stderr: unbuffered, so that the two stay in order and nothing is lost when a limit ends the cell."""

    encoding, errors, newlines, line_buffering = "utf-8", "replace", None, False

    def __init__(self, name, fd, write):
        self.name, self.mode, self._fd = name, "w", fd
        self.write = write
        self.buffer = ByteStream(self, write)

    def writable(self):
        return True

    def fileno(self):
        return self._fd

    def flush(self):
        pass

    def close(self):
        pass

    def reconfigure(self, **options):
        pass


class ByteStream(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, text, write):
        self.raw, self._text, self._write = self, text, write

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        self._write(data.decode("utf-8", "replace"))
        return len(data)

    def flush(self):
        pass

    def close(self):
        pass


write_out, write_err = _sandbox.write_out, _sandbox.write_err
stdout, stderr = Stream("<stdout>", 1, write_out), Stream("<stderr>", 2, write_err)


def no_input(prompt="", /):
    raise EOFError("input() has nothing to read here: write the values into the code")


def help_(*subjects):
    if not subjects:
        print("help(something) shows what is known of it")
    else:
        import pydoc

        pydoc.help(*subjects)


def leave(code=None):
    raise SystemExit(code)


def short_warning(message, category, filename, lineno, line=None):
    text = str(message).strip()
    return f"{category.__name__}: {text.splitlines()[0] if text else ''}\n"


def start():
    """Prepares what every session starts from."""
    # Frozen bytecode is unmarshalled into many small objects; collecting while it loads only costs time.
    gc.disable()
    sys.stdout = sys.__stdout__ = stdout
    sys.stderr = sys.__stderr__ = stderr
    sys.stdin = sys.__stdin__ = io.StringIO("")
    sys.path[:] = []
    sys.setrecursionlimit(20_000)
    builtins.input = no_input
    builtins.exit = builtins.quit = leave
    builtins.help = help_
    time.process_time = time.thread_time = time.perf_counter
    time.process_time_ns = time.thread_time_ns = time.perf_counter_ns
    warnings.formatwarning = short_warning
    # There are no signals here; asyncio asks for the names.
    signal.SIGINT, signal.default_int_handler, signal.getsignal = 2, leave, lambda number: None
    # These would take our gmpy2 for the fast one and build their own numbers of it.
    os.environ["SYMPY_GROUND_TYPES"], os.environ["MPMATH_NOGMPY"] = "python", "1"
    for name in PRELOADED:
        __import__(name)
    os.environ.clear()
    # Patterns and matches never change: they are copies of themselves.
    for kind in (re.Pattern, re.Match):
        copy._copy_atomic_types.add(kind)
        copy._atomic_types.add(kind)
    import _sympy_patches
    exec_(WARM_UP, {"sympy": sys.modules["sympy"]})
    main["__name__"], main["__builtins__"] = "__main__", builtins
    gc.collect()
    gc.freeze()
    gc.enable()


def seed(value):
    """Seeds Python's and sympy's generators: all sessions share one image, and with it one random state."""
    random.seed(value)
    sys.modules["sympy.core.random"].rng.seed(value)


def run(source):
    """Runs one cell; returns (status, kind, message)."""
    global n_cells
    n_cells += 1
    name = f"<cell {n_cells}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    sys.stdout, sys.stderr = stdout, stderr
    try:
        body, expression = compile_cell(source, name)
        if body is not None:
            exec_(body, main)
        if expression is not None:
            value = eval_(expression, main)
            if value is not None:
                main["_"] = value
                write_out(shown(value) + "\n")
        return OK, "", ""
    except SystemExit as error:
        return EXITED, "SystemExit", exit_code(error.code)
    except BaseException as error:
        return report(error)


# A value whose repr would be longer than this is shown in part; the host cuts shorter texts by itself.
SHOWN_CHARS = 1 << 20
# How many parts of a container are looked at to tell how large it is.
SAMPLE = 64


def shown(value):
    """`repr(value)`; of a huge value, its ends, without building the rest."""
    try:
        if weight(value, 3) > SHOWN_CHARS:
            return ends(value)
    except Exception:
        # Whatever is odd about the value, its own repr says it better.
        pass
    return repr_(value)


def weight(value, depth):
    """Roughly the length of the repr of a built-in value."""
    kind = type(value)
    if kind is int:
        return value.bit_length() // 3
    if kind is str or kind is bytes or kind is bytearray:
        return len(value)
    if kind is list or kind is tuple or kind is set or kind is frozenset or kind is dict:
        n_parts = len(value)
        if not n_parts or not depth:
            return 3 * n_parts
        if kind is dict:
            looked_at = [part for _, pair in zip(range(SAMPLE), value.items()) for part in pair]
        elif kind is list or kind is tuple:
            looked_at = value[:SAMPLE]
        else:
            looked_at = [part for _, part in zip(range(SAMPLE), value)]
        n_looked_at = min(n_parts, SAMPLE)
        return n_parts * (2 + sum(weight(part, depth - 1) for part in looked_at) / n_looked_at)
    return 4


def ends(value):
    """The first and the last parts of a huge value's repr, with a note of what lies between."""
    kind, keep = type(value), SHOWN_CHARS // 4
    if kind is int:
        digits, sign = abs(value), "-" if value < 0 else ""
        n_digits = int(digits.bit_length() * math.log10(2)) + 1
        head = str(digits // 10 ** (n_digits - keep))
        # The estimate of the number of digits is off by one at most.
        n_digits += len(head) - keep
        return f"{sign}{head}[... {n_digits - len(head) - keep} digits ...]{digits % 10**keep:0{keep}}"
    if kind in (str, bytes, bytearray):
        return f"{repr_(value[:keep])}[... {len(value) - 2 * keep} more ...]{repr_(value[-keep:])}"
    opening, closing = {list: "[]", tuple: "()", set: "{}", dict: "{}", frozenset: ("frozenset({", "})")}[kind]
    n_parts = len(value)
    n_kept = max(1, min(n_parts // 2, int(keep / (weight(value, 3) / n_parts))))
    ordered = kind is list or kind is tuple
    parts = value[:n_kept] if ordered else [part for _, part in zip(range(n_kept), value)]
    entry = (lambda key: f"{shown(key)}: {shown(value[key])}") if kind is dict else shown
    first = ", ".join(map(entry, parts))
    last = ", ".join(map(entry, value[-n_kept:])) if ordered else ""
    n_between = n_parts - n_kept * (2 if ordered else 1)
    return f"{opening}{first}, [... {n_between} more ...]{', ' if last else ''}{last}{closing}"


def exit_code(code):
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code) & 0xFF
    write_err(f"{code}\n")
    return 1


def report(error):
    """Prints the traceback of a cell; returns what `run` returns."""
    kind = type(error).__name__
    try:
        message = str(error)
    except BaseException as broken:
        message = f"<str() of this exception raised {type(broken).__name__}>"
    try:
        text = "".join(format_error(error))
    except BaseException as broken:
        text = f"{kind}: {message}\n"
    write_err(text + hint(error))
    return EXCEPTION, kind, message


def format_error(error):
    """The lines of a traceback that starts in the user's own code."""
    trace = error.__traceback__
    while trace is not None and not is_user(trace):
        trace = trace.tb_next
    described = traceback.TracebackException(type(error), error, None, limit=-LAST_FRAMES, compact=True)
    if trace is None:
        yield from described.format_exception_only()
        return
    described.stack = traceback.StackSummary._extract_from_extended_frame_gen(chosen_frames(trace))
    context = described.__context__
    if described.__cause__ is None and context and not any(f.filename.startswith("<cell ") for f in context.stack):
        # What a library caught on its own way tells the user nothing.
        described.__context__ = None
    skipped = iter(gaps(trace))
    for part in described.format():
        if part.startswith('  File "<skipped'):
            n_skipped = next(skipped)
            part = f"  [... {n_skipped} more call{'s' if n_skipped > 1 else ''} ...]\n"
        yield part


def is_user(trace):
    return trace.tb_frame.f_code.co_filename.startswith("<cell ")


def select(trace):
    """Walks a traceback and yields (frame to show, None) or (None, frames left out)."""
    traces = []
    while trace is not None:
        traces.append(trace)
        trace = trace.tb_next
    shown = []
    n_library = 0
    for entry in reversed(traces):
        n_library = 0 if is_user(entry) else n_library + 1
        shown.append(n_library <= LIBRARY_FRAMES)
    shown.reverse()
    kept = [index for index, show in enumerate(shown) if show]
    if len(kept) > FIRST_FRAMES + LAST_FRAMES:
        kept = kept[:FIRST_FRAMES] + kept[-LAST_FRAMES:]
    previous = -1
    for index in kept:
        if index > previous + 1:
            yield None, index - previous - 1
        yield traces[index], None
        previous = index


class Skipped:
    """Stands for left-out frames inside a traceback."""

    f_code = (lambda: None).__code__.replace(co_filename="<skipped>", co_name="skipped")
    f_globals = {}
    f_locals = {}


def chosen_frames(trace):
    for entry, _ in select(trace):
        if entry is None:
            yield Skipped, (0, None, None, None)
            continue
        positions = traceback._get_code_position(entry.tb_frame.f_code, entry.tb_lasti)
        yield entry.tb_frame, positions if positions[0] is not None else (entry.tb_lineno, *positions[1:])


def gaps(trace):
    return [n_skipped for entry, n_skipped in select(trace) if entry is None]


def hint(error):
    """One line of help where one is known."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        root = error.name.partition(".")[0]
        if root in INSTEAD:
            return f"[{root} is not available here: {INSTEAD[root]}]\n"
        if root not in sys.modules:
            return f"[available here: {AVAILABLE}]\n"
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        return did_you_mean(error.name, dir(error.obj))
    if isinstance(error, NameError) and error.name in ("sympy", "mpmath"):
        return f"[write 'import {error.name}' first]\n"
    if isinstance(error, NameError) and error.name:
        return did_you_mean(error.name, [*main, *dir(sys.modules["sympy"])] if "solve" in main else main)
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return "[there are no files, processes or network here: keep data in variables]\n"
    return ""


def did_you_mean(name, candidates):
    """The interpreter itself gives up on namespaces as large as sympy's."""
    if name in sys.stdlib_module_names:
        return ""
    name = ELSEWHERE.get(name, name)
    if name in candidates:
        return f"[did you mean '{name}'?]\n"
    if len(candidates) > traceback._MAX_CANDIDATE_ITEMS:
        close = difflib.get_close_matches(name, candidates, 1, 0.75)
        return f"[did you mean '{close[0]}'?]\n" if close else ""
    return ""


def is_complete(source):
    """Whether a REPL should run `source` or ask for more lines."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = codeop.compile_command(source, "<input>", "exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError):
        return INVALID
    if code is None:
        return INCOMPLETE
    lines = source.split("\n")
    # A block goes on until an empty line, as in the interactive interpreter.
    open_block = len(lines) > 1 and lines[-1][:1] in (" ", "\t") and lines[-1].strip()
    header = source.rstrip().endswith(":") and not lines[-1].lstrip().startswith("#")
    return INCOMPLETE if open_block or header else COMPLETE
