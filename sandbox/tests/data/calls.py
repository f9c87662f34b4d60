"""Every kind of signature with every kind of call: the values that arrive, or the first letter of the error.

`calls.txt` is what CPython prints: `python3 calls.py > calls.txt`.
"""


def a(x, y=2): return x, y
def b(x, /, y, *, z=3): return x, y, z
def c(*args): return args
def d(**kwargs): return kwargs
def e(x, *args, z, w=5, **kwargs): return x, args, z, w, kwargs
def f(x, /, **kwargs): return x, kwargs
def g(): return ()
def h(x, y=1, *args, z=2): return (lambda: (x, y, args, z))()
class K:
    def __init__(self, x, y=0, *, z=1): self.v = x, y, z
    def m(self, x=4, **kwargs): return self.v, x, kwargs
    @classmethod
    def n(cls, *args, z=0): return args, z
class L(K):
    def __new__(cls, *args, **kwargs): return object.__new__(cls)
CALLS = "() (1) (1,2) (1,2,3) (1,2,3,4) (x=1) (y=1) (1,y=2) (1,x=2) (1,z=4) (1,2,z=4) (1,2,w=6) (1,2,z=4,w=6,q=7) (z=1,q=2) (*[1,2]) (*(1,2),z=5) (*(),**{'x':1}) (1,**{'y':2}) (1,**{'z':2,'q':3}) (**{'q':3}) (1,*(2,),*[3],z=0,**{'w':1},**{'r':2}) (*(1,2),**{}) (1,**{1:2}) (1,**{'x':2})".split()
for name in "a b c d e f g h K L K(7).m L(7).m K.n K(7).n".split():
    shown = []
    for call in CALLS:
        try: value = eval(name + call)
        except Exception as error: value = type(error).__name__[0]
        shown.append(str(getattr(value, 'v', value)).replace(' ', ''))
    print(name, *shown)
