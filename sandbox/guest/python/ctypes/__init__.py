"""The two names that sympy asks for; there is no foreign code to call here."""


class c_long:
    """A C long, as wide as this machine's."""


def sizeof(kind):
    if kind is c_long:
        return 4
    raise TypeError("this type has no size")


def __getattr__(name):
    raise AttributeError(f"ctypes.{name} is not available here: no foreign code can be called")
