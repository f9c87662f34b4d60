"""No debugger: there is nobody to type into it. doctest takes `Pdb` for a base class; who calls it is told so."""


def none_here(*_, **__):
    raise RuntimeError("there is no debugger here: print the values instead")


class Pdb:
    def __init__(self, *_, **__):
        pass

    def reset(self):
        pass

    set_trace = set_continue = none_here


run = runcall = runeval = set_trace = post_mortem = pm = none_here
