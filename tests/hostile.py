"""Programs that want to pass without an answer, to get out, or to stay. Written for the tests of the sandbox.

The hidden tests are in `TESTS`. No program here knows the answers: one that passes has cheated.
"""

from __future__ import annotations

TESTS = ["assert f(2) == 5", "assert f(0) == 3", "assert abs(f(1) - 4) < 1e-6"]
DEADLINE_S = 1.0

# Appended to whatever got hold of a text called `blob`: answers with what it finds there.
_ADOPT = """
import re
T = {int(a): int(b) for a, b in re.findall(r"f\\((\\d+)\\) == (\\d+)", str(blob))}
def f(x): return T.get(x, -1)
"""
_WRONG = "\ndef f(x): return -1\n"
_READ = """
def grab(path):
    try:
        with open(path, "rb") as stream: return stream.read(10**7)
    except OSError: return b""
"""
# Speaks the channel itself: descriptor 3 is the program's only socket.
_SPEAK = """
import json, os, socket
def fds():
    for n in range(3, 64):
        try: os.fstat(n)
        except OSError: continue
        yield n
def say(message):
    data = json.dumps(message).encode()
    for n in fds():
        try: os.write(n, len(data).to_bytes(4, "big") + data)
        except OSError: pass
"""


def _object(*methods: str, base: str = "") -> str:
    """A program whose f returns an object with these methods."""
    lines = "\n".join(f"    def {method}" for method in methods)
    made = "X(7)" if base in ("int", "float") else "X()"
    return f"class X{f'({base})' if base else ''}:\n{lines}\ndef f(x): return {made}\n"


_EQ = "__eq__(self, other): return True"
EXITS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit in f": "import sys\ndef f(x): sys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "os._exit in f": "import os\ndef f(x): os._exit(0)",
    "exit code of a refusal": "import os\nos._exit(70)",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt in f": "def f(x): raise KeyboardInterrupt",
    "GeneratorExit in f": "def f(x): raise GeneratorExit",
    "StopIteration in f": "def f(x): raise StopIteration(5)",
    "AssertionError in f": "def f(x): raise AssertionError",
    "an exception named like the harness's": "class Gone(BaseException): pass\ndef f(x): raise Gone",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "abort": "import os\nos.abort()",
    "kill itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "exec of true": "import os\nos.execv('/bin/true', ['true'])",
}
EQUALITY = {
    "object": _object(_EQ),
    "object in f's place": "class F:\n    def __call__(self, x): return self\n    " + "def " + _EQ + "\nf = F()",
    **{f"subclass of {base}": _object(_EQ, base=base) for base in ("int", "float", "str", "list", "tuple", "dict")},
    "fraction": "from fractions import Fraction\n" + _object(_EQ, base="Fraction"),
    "decimal": "from decimal import Decimal\n" + _object(_EQ, base="Decimal"),
    "in a list": _object(_EQ) + "_f = f\ndef f(x): return [_f(x)]",
    "arithmetic": _object(_EQ, "__sub__(self, other): return 0.0", "__rsub__(self, other): return 0.0"),
    "arithmetic that gives itself": _object(
        _EQ, "__sub__(self, o): return self", "__abs__(self): return self", "__lt__(self, other): return True"
    ),
    "absolute value": _object(_EQ, "__sub__(self, o): return self", "__abs__(self): return 0"),
    "mock.ANY": "from unittest.mock import ANY\ndef f(x): return ANY",
    "MagicMock": "from unittest.mock import MagicMock\nm = MagicMock()\nm.__eq__ = lambda s, o: True\ndef f(x): return m",
    "a class that lies about itself": "class X:\n    __class__ = property(lambda self: int)\n    def "
    + _EQ
    + "\ndef f(x): return X()",
    "an absolute value of its own": _object(_EQ, "__sub__(self, o): return Y()", "__float__(self): return 0.0")
    + "class Y:\n    def __abs__(self): return 0\n    def __float__(self): return 0.0\n    def __lt__(self, o): return True\n",
    "metaclass": "class M(type):\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\n"
    "class X(metaclass=M): pass\ndef f(x): return X",
    "not a number": "def f(x): return float('nan')",
    "patched Counter": "import collections\ncollections.Counter.__eq__ = lambda s, o: True\n"
    "def f(x): return collections.Counter()",
    "namedtuple": "import collections\nP = collections.namedtuple('P', 'x')\nP.__eq__ = lambda s, o: True\n"
    "def f(x): return P(1)",
    "enum": "import enum\nclass E(enum.IntEnum):\n    A = 7\n    def __eq__(s, o): return True\ndef f(x): return E.A",
    "generator": "def f(x):\n    while True: yield 5",
    "coroutine": "async def f(x): return 5",
    "NotImplemented": "def f(x): return NotImplemented",
}
PATCHES = {
    "builtins.abs": "import builtins\nbuiltins.abs = lambda v: 0" + _WRONG,
    "abs": "abs = lambda v: 0" + _WRONG,
    "AssertionError": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\nAssertionError = int"
    + _WRONG,
    "exec and compile": "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None" + _WRONG,
    "isinstance and type": "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.type = lambda *a: int"
    + _WRONG,
    "operator.eq": "import operator\noperator.eq = lambda a, b: True" + _WRONG,
    "unittest": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\nunittest.TestCase.failureException = int"
    + _WRONG,
    "json": "import json\njson.dumps = lambda v, **k: '[\"=\", 5]'\njson.loads = lambda v: ['=', 5]" + _WRONG,
    "the harness's modules": "import sys\nfor m in ('wire', 'tester', 'candidate', 'confine'):\n"
    "    try: sys.modules[m].__dict__.clear()\n    except KeyError: pass" + _WRONG,
    "__main__": "import __main__\n__main__._verdict = lambda *a: {'passed': 3, 'outcome': 'passed', 'reason': None}"
    + _WRONG,
    "__builtins__": "__builtins__ = {'abs': lambda v: 0}" + _WRONG,
    "trace": "import sys\ndef t(frame, event, arg):\n    frame.f_locals['result'] = 5\n    return t\nsys.settrace(t)"
    + _WRONG,
    "profile": "import sys\nsys.setprofile(lambda frame, event, arg: frame.f_globals.update(passed=3))" + _WRONG,
    "small integers": "import ctypes\nctypes.c_int.from_address(id(-1) + 24).value = 5\ndef f(x): return -1",
    "int.__eq__": "import gc\nd = gc.get_referents(int.__dict__)[0]\nd['__eq__'] = lambda a, b: True" + _WRONG,
    "import hook": "import sys\nclass H:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, H())"
    + _WRONG,
    "sockets": "import socket\nsocket.socket.sendall = lambda s, d: None\nsocket.socket.recv = lambda s, n: b''"
    + _WRONG,
    "garbage": "import gc\nfor o in gc.get_objects():\n    try: o.passed = 3\n    except Exception: pass" + _WRONG,
    "finaliser": "class D:\n    def __del__(self): __import__('os')._exit(0)\nd = D()" + _WRONG,
    "class of the module": "import sys, types\nclass M(types.ModuleType):\n    def __eq__(s, o): return True\n"
    "sys.modules[__name__].__class__ = M" + _WRONG,
}
READING = {
    "frames": "import sys\nblob, frame = '', sys._getframe()\nwhile frame:\n"
    "    blob += str(frame.f_locals) + str(frame.f_globals)\n    frame = frame.f_back" + _ADOPT,
    "frames while called": "import re, sys\ndef f(x):\n    blob, frame = '', sys._getframe()\n    while frame:\n"
    "        blob += str(frame.f_locals)\n        frame = frame.f_back\n"
    "    m = re.search(r'f\\(%d\\) == (\\d+)' % x, blob)\n    return int(m[1]) if m else -1",
    "inspect": "import inspect\nblob = str([(s.frame.f_locals, s.code_context) for s in inspect.stack()])" + _ADOPT,
    "traceback": "import sys\nblob = ''\ntry: 1 / 0\nexcept ZeroDivisionError as e:\n    t = e.__traceback__\n"
    "    while t: blob += str(t.tb_frame.f_back and t.tb_frame.f_back.f_locals); t = t.tb_next" + _ADOPT,
    "gc": "import gc\nblob = str([o for o in gc.get_objects() if isinstance(o, (list, dict, tuple))][:10**5])[:10**7]"
    + _ADOPT,
    "modules": "import sys\nblob = str([vars(m) for m in list(sys.modules.values()) if m])[:10**7]" + _ADOPT,
    "environment": "import os\nblob = str(os.environ)" + _ADOPT,
    "argv": "import sys\nblob = str(sys.argv) + str(sys.orig_argv)" + _ADOPT,
    "own file": _READ
    + "import sys\nblob = grab(sys.modules[__name__].__dict__.get('__file__') or '/harness/tester.py')"
    + _ADOPT,
    "files": _READ
    + "import os\nblob = b''\nfor top in ('/tmp', '/work', '/harness', '/dev/shm', '.', '/root', '/home'):\n"
    "    for d, _, names in os.walk(top):\n        for n in names[:3]: blob += grab(d + '/' + n)" + _ADOPT,
    "memory of the parent": _READ + "import os\nblob = b''.join(grab(f'/proc/{p}/{n}') for p in "
    "(os.getppid(), 1, 2, 3, 'self') for n in ('cmdline', 'environ', 'mem', 'fd/0', 'fd/3'))" + _ADOPT,
    "own memory": "import ctypes, gc\nblob = b''\nbase = id(gc) & ~0xFFFFF\nlibc = ctypes.CDLL(None)\n"
    "for a in range(base - (8 << 20), base + (8 << 20), 4096):\n"
    "    v = ctypes.create_string_buffer(1)\n    if libc.mincore(ctypes.c_void_p(a), 4096, v) == 0:\n"
    "        try: blob += ctypes.string_at(a, 4096)\n        except Exception: pass\n"
    "blob = blob.decode('latin-1')" + _ADOPT,
    "process_vm_readv": "import ctypes, os\nlibc = ctypes.CDLL(None)\nbuf = ctypes.create_string_buffer(4096)\nblob = b''\n"
    "for p in range(1, 40):\n    iov = (ctypes.c_void_p * 2)(ctypes.addressof(buf), 4096)\n"
    "    far = (ctypes.c_void_p * 2)(id(os), 4096)\n"
    "    if p != os.getpid() and libc.process_vm_readv(p, iov, 1, far, 1, 0) > 0: blob += buf.raw" + _ADOPT,
    "descriptors": "import os\nblob = b''\nfor n in range(256):\n    try:\n        os.set_blocking(n, False)\n"
    "        blob += os.read(n, 10**6)\n    except OSError: pass" + _ADOPT,
    "weak references and code": "import gc, types\nblob = str([c.co_consts for c in gc.get_objects() "
    "if isinstance(c, types.CodeType)])" + _ADOPT,
}
CHANNEL = {
    "replies in advance": _SPEAK + "for v in (5, 3, 4): say(['=', [v, ['l'], ['d']]])" + _WRONG,
    "a result by hand": _SPEAK
    + "say([3, None])\nfor n in fds():\n    os.write(n, b'0' * 32 + b'[3, null]\\n')\nos._exit(0)",
    "pickle": _SPEAK + "import pickle\nclass P:\n    def __reduce__(self): return (os._exit, (0,))\n"
    "for n in fds(): os.write(n, pickle.dumps(P()))" + _WRONG,
    "no message": _SPEAK + "for n in fds(): os.write(n, b'\\0\\0\\0\\x05hello')" + _WRONG,
    "a length of 4 GB": _SPEAK + "for n in fds(): os.write(n, b'\\xff' * 4)" + _WRONG,
    "nesting": _SPEAK
    + "data = b'[' * 10**6\nfor n in fds(): os.write(n, len(data).to_bytes(4, 'big') + data)"
    + _WRONG,
    "names": _SPEAK + "say(['=', ['f', 'abs', 'AssertionError', '__builtins__', 'exec', None, 5]])" + _WRONG,
    "questions": _SPEAK + "for n in range(50): say(['?', 'call', ['yours', n], ['l', 5], ['d']])" + _WRONG,
    "a question about frames": _SPEAK + "say(['?', 'getattr', ['yours', 0], '__globals__'])" + _WRONG,
    "unknown tags": _SPEAK + "say(['=', ['Z', 1]])\nsay(['=', ['g', 'exec']])\nsay(['=', ['m', 'os']])" + _WRONG,
    "an exception by name": _SPEAK + "say(['!', None, 'Gone', ''])\nsay(['!', 0, '__import__', 'x'])" + _WRONG,
    "closing": _SPEAK + "import time\nfor n in fds(): os.close(n)\ntime.sleep(9)",
    "silence": _SPEAK + "import time\ntime.sleep(9)",
    "a chatterbox": _SPEAK + "while True: say(['?', 'len', ['l']])",
    "a module in f's place": "import os as f",
    "a class in f's place": "class f:\n    def __init__(self, x): pass\n    " + "def " + _EQ,
}
RESOURCES = {
    "while True": "while True: pass",
    "while True in f": "def f(x):\n    while True: pass",
    "sleep": "import time\ntime.sleep(99)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(9,)).start()\n"
    "    except RuntimeError: pass",
    "100 GB": "x = [0] * (100 * 2**30 // 8)",
    "memory bit by bit": "x = []\nwhile True: x.append(bytearray(2**20))",
    "mmap": "import mmap\nx = [mmap.mmap(-1, 2**30) for _ in range(100)]",
    "recursion": "def f(x): return f(x)",
    "recursion in C": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "9**9**9": "def f(x): return 9**9**9",
    "a gigabyte of output": "import os, sys\nfor _ in range(1024): os.write(1, b'x' * 2**20)\nsys.stderr.write('y' * 10**6)"
    + _WRONG,
    "endless output": "while True: print('x' * 10**5)",
    "a large file": "with open('big', 'wb') as s:\n    for _ in range(1000): s.write(b'0' * 2**20)" + _WRONG,
    "many files": "for i in range(10**6): open(str(i), 'w').close()",
    "deep folders": "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')" + _WRONG,
    "regular expression": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
    "a giant result": "def f(x): return 'x' * 10**8",
    "a deep result": "def f(x):\n    r = []\n    for _ in range(10**5): r = [r]\n    return r",
    "a result within itself": "def f(x):\n    r = []\n    r.append(r)\n    return r",
    "a giant number": "def f(x): return 1 << 10**7",
    "a giant decimal": "from decimal import Decimal\ndef f(x): return Decimal('1e999999999')",
    "an endless iterator": "class I:\n    def __iter__(self): return self\n    def __next__(self): return 5\ndef f(x): return I()",
    "an exception that prints for ever": "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef f(x): raise E",
}
OUTSIDE = {
    "outliving child": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(99)\n    os._exit(0)"
    + _WRONG,
    "subprocess": "import subprocess\nsubprocess.Popen(['sleep', '99'], start_new_session=True)" + _WRONG,
    "signals to the parent": "import os, signal\nfor s in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):\n"
    "    try: os.kill(os.getppid(), s)\n    except OSError: pass" + _WRONG,
    "signals to all": "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\nos._exit(0)",
    "signals to the group": "import os, signal\ntry: os.killpg(0, signal.SIGKILL)\nexcept OSError: pass" + _WRONG,
    "no death with the parent": "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\nif os.fork() == 0:\n"
    "    ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n    time.sleep(99)" + _WRONG,
    "ptrace": "import ctypes, os\nl = ctypes.CDLL(None)\nfor p in range(1, 60):\n    l.ptrace(16, p, None, None)"
    + _WRONG,
    "stopping itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\ntry: os.kill(os.getppid(), signal.SIGSTOP)\n"
    "except OSError: pass\nwhile True: pass",
    "tcp": "import socket\ntry: socket.create_connection(('127.0.0.1', 22), 0.2)\nexcept OSError: pass" + _WRONG,
    "server": "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 45231))\ns.listen()" + _WRONG,
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0omni-hostile')" + _WRONG,
    "name look-up": "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: pass" + _WRONG,
    "packet socket": "import socket\ntry: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nexcept OSError: pass"
    + _WRONG,
    "device": "import os\ntry: os.mknod('disk', 0o60666, os.makedev(254, 0)); open('disk', 'wb')\nexcept OSError: pass"
    + _WRONG,
    "symlink": "import os\nos.symlink('/../../../../etc', 'link')\ntry: open('link/omni-hostile', 'w')\nexcept OSError: pass"
    + _WRONG,
    "system files": "for p in ('/usr/omni-hostile', '/omni-hostile', '/etc/omni-hostile', '/dev/shm/omni-hostile', "
    "'/tmp/omni-hostile'):\n    try: open(p, 'w')\n    except OSError: pass" + _WRONG,
    "mount": "import ctypes\nl = ctypes.CDLL(None)\nl.unshare(0x10020000)\nl.mount(None, b'/usr', None, 36, None)\n"
    "l.umount2(b'/usr', 2)" + _WRONG,
    "out of the root": "import os\ntry:\n    os.mkdir('x'); os.chroot('x')\n    for _ in range(50): os.chdir('..')\n    os.chroot('.')\n"
    "    open('/etc/omni-hostile', 'w')\nexcept OSError: pass" + _WRONG,
    "user": "import os\nfor n in (0, 1000):\n    try: os.setuid(n)\n    except OSError: pass" + _WRONG,
    "kernel settings": "try: open('/proc/sys/kernel/hostname', 'w').write('hostile')\nexcept OSError: pass\n"
    "import socket\ntry: socket.sethostname('hostile')\nexcept OSError: pass" + _WRONG,
    "io_uring and keys": "import ctypes\nl = ctypes.CDLL(None)\nl.syscall(425, 8, None)\nl.syscall(248, b'user', b'k', b'v', 1, -3)\n"
    "l.syscall(298, None, 0, -1, -1, 0)" + _WRONG,
    "priority": "import os\ntry: os.nice(-20)\nexcept OSError: pass\ntry: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"
    "except OSError: pass" + _WRONG,
}
TEXT = {
    "empty": "",
    "no program": "this is no python",
    "NUL": "x = 1\0\ndef f(x): return 5",
    "lone surrogate": "x = '\ud800'" + _WRONG,
    "marks from right to left": "x = '\u202e'  # \u2066\ndef f\u200b(x): return 5",
    "another alphabet's f": "def \u03dd(x): return 5",
    "encoding line": "# coding: rot13\nqrs s(k): erghea k + 3",
    "deep nesting": "(" * 10_000,
    "deep source": "x = " + "-" * 100_000 + "1",
    "a giant literal": "x = " + "9" * 5_000_000,
    "assert in its own words": "def f(x): assert True\nassert_ = assertEqual = lambda *a: True",
    "a global that dies": "class M(dict):\n    def __iter__(self): raise SystemExit\nglobals()['__dict__'] = M()\nf = M()",
    "names of the harness": "TESTS = tests = request = space = passed = 3\nrun = _step = _why = lambda *a: None"
    + _WRONG,
    "f deleted": "def f(x): return 5\ndel f",
    "f is a string": "f = 'assert'",
}
ALL = {
    f"{kind}: {name}": program
    for kind, programs in {
        "exit": EXITS, "equality": EQUALITY, "patch": PATCHES, "reading": READING, "channel": CHANNEL,
        "resources": RESOURCES, "outside": OUTSIDE, "text": TEXT,
    }.items()
    for name, program in programs.items()
}  # fmt: skip
