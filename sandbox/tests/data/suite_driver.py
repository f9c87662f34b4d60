"""Runs test methods and test functions one by one, from sources that are handed in as text.

Defined by a first cell of a session, or by a native interpreter. `add` hands a module in, `add_file` a file of test
data; `tests` lists what a module holds; `run` runs one test and returns "ok", "skip",
"missing: " and a module that it wants to have handed in, or what went wrong in one line.
A module with a `test_main` is run by way of it, once for each test, as it may set up what its tests rely on.
"""

import _imp
import builtins
import importlib.abc
import importlib.util
import inspect
import io
import os
import re
import sys
import unittest
from _frozen_importlib import FrozenImporter

SOURCES = {}
FILES = {}
# Modules that were looked for in vain, and those of them that can't be handed in.
MISSED = []
GIVEN_UP = set()
# Parts of the library that the tests import, but do not test: doctest's debugger, and what shows pydoc's pages.
PARTS = {
    "pdb": "class Pdb:\n    def __init__(*_, **__): pass\n    reset = __init__\nset_trace = None\n",
    "_pyrepl": "",
    "_pyrepl.pager": "import re\ndef get_pager(): return print\n"
    "def plain(text): return re.sub('.\\b', '', text)\n"
    "pipe_pager = plain_pager = tempfile_pager = tty_pager = lambda text, *_: print(plain(text))\n",
}
# Frozen modules that say where they lie, which only their tests lead to.
READ_THEIR_FILE = ("functools", "sympy.testing.pytest")
# Test cases by the names that `tests` gave them, of the modules that have no `test_main`.
CASES = {}


class Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, is_package=SOURCES[name][0])

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.__file__ = file_of(module.__name__)
        # Up to Python 3.13 a module that annotates nothing has them too.
        module.__dict__.setdefault("__annotations__", {})
        exec(compile(SOURCES[module.__name__][1], module.__file__, "exec"), module.__dict__)
        if module.__name__ == "test.support":
            fit(module)

    def get_source(self, name):
        return SOURCES[name][1]

    def get_data(self, path):
        data = data_at(path)
        if data is None:
            raise FileNotFoundError(path)
        return data


class Misses(importlib.abc.MetaPathFinder):
    """The last of the finders."""

    def find_spec(self, name, path=None, target=None):
        if name not in GIVEN_UP:
            MISSED.append(name)


def file_of(name):
    return name.replace(".", "/") + ("/__init__.py" if SOURCES[name][0] else ".py")


def fit(support):
    """Tells `test.support` what it can't find out, before a test module reads it."""
    # What needs much time or memory is left out, as `python -m test` does.
    support.use_resources = []
    # The modules of a package are asked for one by one.
    support.load_package_tests = lambda directory, loader, standard_tests, pattern: standard_tests
    if len.__doc__ is None:
        support.MISSING_C_DOCSTRINGS, support.HAVE_DOCSTRINGS = True, False
        support.requires_docstrings = unittest.skip("built-in functions have no docstrings here")


def data_at(path):
    """The bytes of a file that was handed in; None of any other."""
    path = os.path.normpath(os.fspath(path))
    for name, data in FILES.items():
        if path == name or path.endswith("/" + name):
            return data
    for name in SOURCES:
        if path == file_of(name):
            return SOURCES[name][1].encode()


def open_(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **named):
    data = data_at(file) if isinstance(file, (str, os.PathLike)) and "r" in mode else None
    if data is None:
        return real_open(file, mode, buffering, encoding, errors, newline, *rest, **named)
    opened = io.BytesIO(data)
    return opened if "b" in mode else io.TextIOWrapper(opened, encoding or "utf-8", errors, newline)


def directory_of_data(path):
    name = os.path.basename(os.path.normpath(path))
    return [file.removeprefix(name + "/") for file in FILES if file.startswith(name + "/")]


def listdir(path="."):
    return directory_of_data(path) or real_listdir(path)


def isdir(path):
    return isinstance(path, str) and bool(directory_of_data(path)) or real_isdir(path)


real_open, real_listdir, real_isdir = builtins.open, os.listdir, os.path.isdir


def create_frozen(spec):
    module = real_create_frozen(spec)
    if spec.name in READ_THEIR_FILE:
        module.__file__ = spec.name.replace(".", "/") + ".py"
    return module


real_create_frozen = FrozenImporter.create_module


def prepare():
    """What CPython's tests need to load where the library is frozen and there are no files."""
    sys.meta_path[:] = [Sources(), *sys.meta_path, Misses()]
    builtins.open, os.listdir, os.path.isdir = open_, listdir, isdir
    FrozenImporter.create_module = staticmethod(create_frozen)
    # `import_fresh_module` would have the library read from files.
    _imp._override_frozen_modules_for_tests = lambda enabled: None
    for name, source in PARTS.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            add(name, not source, source)


def has(name):
    """Whether a module is there, handed in or the interpreter's own."""
    if name in SOURCES or name in sys.modules:
        return True
    # To look for a part of a package imports the package, which may want that very part.
    return name.rpartition(".")[0] not in SOURCES and importlib.util.find_spec(name) is not None


def add(name, is_package, source):
    SOURCES[name] = is_package, source


def add_file(name, text):
    """A file by its last names; one character of `text` is one byte."""
    FILES[name] = text.encode("latin-1")


def load(name):
    """Imports a module; returns "" or the name of a module that is missing, or what else went wrong after a '!'."""
    try:
        importlib.import_module(name)
        return ""
    except ModuleNotFoundError as error:
        for part in list(sys.modules):
            if part in SOURCES:
                del sys.modules[part]
        return error.name or "!" + str(error)
    except BaseException as error:
        submodule = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        if submodule and submodule[2] in SOURCES:
            return submodule[2] + "." + submodule[1]
        return "!" + type(error).__name__ + ": " + " ".join(str(error).split())[:150]


def tests(name):
    """Test methods as Class.method, and test functions."""
    module = sys.modules[name]
    found = []
    if hasattr(module, "test_main"):
        through_main(module, lambda suite: found.extend(case_name(name, case) for case in flat(suite)))
    else:
        for case in flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
            found.append(case_name(name, case))
            CASES[found[-1]] = case
    # sympy's own runner passes a module over that says so.
    if not found and not getattr(module, "disabled", False):
        for key, value in vars(module).items():
            if key.startswith("test_") and inspect.isfunction(value) and value.__module__ == name:
                found.append(key)
    return list(dict.fromkeys(found))


def case_name(name, case):
    return case.id().removeprefix(name + ".").replace(" ", "_")


def flat(suite):
    if isinstance(suite, unittest.TestSuite):
        for part in suite:
            yield from flat(part)
    else:
        yield suite


def through_main(module, do):
    """Calls a module's `test_main`, in which running a suite means `do(suite)`."""

    def run_unittest(*classes):
        of_class = unittest.defaultTestLoader.loadTestsFromTestCase
        do(unittest.TestSuite(part if isinstance(part, unittest.TestSuite) else of_class(part) for part in classes))

    def run_doctest(of, verbosity=None, optionflags=0):
        import doctest

        do(doctest.DocTestSuite(of, optionflags=optionflags))

    module.run_unittest, module.run_doctest = run_unittest, run_doctest
    module.test_main()


def run(name, test):
    module = sys.modules[name]
    MISSED.clear()
    if inspect.isfunction(getattr(module, test, None)):
        return run_function(getattr(module, test))
    sys.argv = [name]
    result = unittest.TestResult()
    if test in CASES:
        unittest.TestSuite([CASES[test]]).run(result)
    else:
        chosen = lambda suite: unittest.TestSuite(case for case in flat(suite) if case_name(name, case) == test)
        through_main(module, lambda suite: chosen(suite).run(result))
    bad = result.errors + result.failures
    if bad and MISSED:
        return "missing: " + MISSED.pop(0)
    if bad:
        return "failed: " + bad[0][1].strip().splitlines()[-1][:150]
    if not result.testsRun and not result.skipped:
        return "failed: it did not run"
    if result.unexpectedSuccesses:
        return "failed: unexpected success"
    return "skip" if result.skipped and result.testsRun <= len(result.skipped) else "ok"


def run_function(function):
    # As sympy's own runner does unless it is asked for slow tests.
    if inspect.signature(function).parameters or getattr(function, "_slow", False):
        return "skip"
    try:
        function()
        return "ok"
    except BaseException as error:
        kind = type(error).__name__
        if kind == "XPass":
            # A failure that sympy expects on every interpreter does not happen.
            return "ok"
        if kind in ("XFail", "Skipped", "SkipTest"):
            return "skip"
        # Other tests may be handed in, but not parts of the library that are not there.
        wanted = [name for name in MISSED if ".tests." in name]
        if wanted:
            return "missing: " + wanted[0]
        return "failed: " + kind + ": " + " ".join(str(error).split())[:120]


def said(value):
    """Prints an answer so that what the tests print can't be taken for one."""
    print("\x02" + str(value) + "\x03")
