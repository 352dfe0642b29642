"""The sandbox: verdicts on honest programs, and that hostile ones gain, cost and leave nothing."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import hostile
from omni_thinker.isolation import (
    IsolationError,
    Limits,
    TestReport,
    WorkerPool,
    allow_weak_sandbox,
    bubblewrap,
    launch,
    programs,
    run_tests,
    shutdown,
)
from omni_thinker.isolation.scratch import Scratch
from other_users import open_to_others
from timing import quickest
from traces import children, left_behind, state

GOOD = "def f(x):\n    return x + 3\n"
TESTS = ["assert f(2) == 5", "assert f(0) == 3"]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()
    assert not children()


def run_tests_sync(
    program: str, tests: Sequence[str], setup: str = "", entry_points: Sequence[str] = (), **limits: Any
) -> TestReport:
    run = run_tests(program, tests, setup=setup, entry_points=entry_points, limits=Limits(**limits))
    return asyncio.run(run)


def _run(program: str, tests: list[str] | None = None, timeout: float = 2.0) -> TestReport:
    return run_tests_sync(program, tests or TESTS, timeout=timeout)


def test_correct_program_passes_all_tests() -> None:
    assert _run(GOOD) == TestReport(2, 2, "passed")


def test_program_that_fails_one_test_reports_1_of_2_passed() -> None:
    report = _run("def f(x):\n    return 5\n")
    assert (report.passed, report.total, report.outcome) == (1, 2, "failed")
    assert "f(0) == 3" in (report.reason or "")


def test_setup_code_can_use_what_the_program_defines() -> None:
    report = run_tests_sync("class Pair: pass\n", ["assert g() == 1"], setup="Pair.x = 1\ndef g(): return Pair.x")
    assert report.outcome == "passed"


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("import os\nassert not os.environ\n" + GOOD, "passed"),
        ("import os\nos.write(1, b'x' * 10**6)\nprint('y' * 10**6)\n" + GOOD, "passed"),
        ("import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n" + GOOD, "passed"),
        ("import multiprocessing, decimal, json, subprocess\n"
         "assert subprocess.run(['true'], stdout=subprocess.DEVNULL).returncode == 0\n" + GOOD, "passed"),
        ("import tempfile\nwith tempfile.TemporaryFile() as s: s.write(b'x')\n" + GOOD, "passed"),
        ("import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int = 3\ndef f(x): return x + P().x\n", "passed"),
        ("if __name__ == '__main__': raise SystemExit\n" + GOOD, "passed"),
        ("input()\n" + GOOD, "failed"),
        ("x = bytearray(10**9)\n" + GOOD, "failed"),
        ("def f(x): return -1\n", "failed"),
    ],
)  # fmt: skip
def test_harmless_programs_get_the_expected_outcome(program: str, outcome: str) -> None:
    report = _run(program)
    assert report.outcome == outcome, report
    assert (report.passed == report.total) == (outcome == "passed")


# -- what goes between tests and program ------------------------------------------------------------------------------

PLAIN = (
    "None", "True", "0", "-1", "1 << 70", "-(1 << 2000)", "1.5", "-0.0", "float('inf')", "1 + 2j", "'text'", "'\\ud800'", "''",
    "b'\\x00\\xff'", "bytearray(b'x')", "[]", "[1, [2, (3,)]]", "()", "(1, 'a', None)", "{}", "{1: [2], (1, 2): 'x'}",
    "{'l': 1, 't': 2}", "{1, 2, 3}", "frozenset({1})", "range(0, 10, 2)", "...", "int", "[len, dict]",
    "__import__('decimal').Decimal('1.10')", "__import__('fractions').Fraction(1, 3)",
    "__import__('datetime').datetime(2020, 1, 2, 3)", "__import__('datetime').date(2020, 1, 2)",
    "__import__('datetime').timedelta(1, 2, 3)", "__import__('collections').deque([1, 2], 5)",
)  # fmt: skip


@pytest.mark.parametrize("value", PLAIN)
def test_plain_values_cross_the_sandbox_with_type_and_repr(value: str) -> None:
    program = f"def give(): return {value}\ndef take(v): return v == {value} and type(v) is type({value})\n"
    tests = [f"assert give() == {value}", f"assert type(give()) is type({value})", f"assert take({value}) is True"]
    tests += [f"assert repr(give()) == repr({value})"]
    assert _run(program, tests) == TestReport(4, 4, "passed")


HONEST = """
import asyncio, collections, contextlib, functools, math
class Point:
    def __init__(self, x, y=0): self.x, self.y = x, y
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __lt__(self, other): return self.x < other.x
    def __hash__(self): return hash((self.x, self.y))
    def __mul__(self, k): return Point(self.x * k, self.y * k)
    def __len__(self): return 2
    def __getitem__(self, i): return (self.x, self.y)[i]
    def __repr__(self): return f"Point({self.x}, {self.y})"
    def __enter__(self): return self
    def __exit__(self, *exc): return False
    def moved(self, by): self.x += by; return self
class Odd(ValueError): pass
Pair = collections.namedtuple("Pair", "a b")
def odd(x):
    if x % 2: raise Odd("odd")
    return x // 2
def sort(items): items.sort()
def grow(table): table["inner"]["new"] = [1]; table["list"].append(2)
def apply(function, *values): return [function(v) for v in values]
def numbers():
    yield from range(3)
def counter(): return collections.Counter("aab")
def pair(): return Pair(1, 2)
def second(node): node.next.value += 1; return node.next.value
async def later(x): return x + 1
LIMIT = [1, 2]
def close(a): return math.isclose(a, 1)
class Tree:
    def __init__(self, value): self.value, self.children, self.table = value, [], {}
class Stack(list):
    def push(self, v): self.append(v)
import enum
class Color(str, enum.Enum):
    RED = "red"
class Level(enum.IntEnum):
    HIGH = 3
def fill(table):
    table["a"] += 1
    return table
def push(d): d.append(9)
class Seq:
    def __init__(self, items): self.items = items
    def __getitem__(self, key): return self.items[key]
class Base(Exception): pass
class Short(Base):
    def __init__(self, need):
        super().__init__(f"need {need}")
        self.need = need
def need(n): raise Short(n)
class Quiet:
    def __enter__(self): return self
    def __exit__(self, kind, exc, trace): return kind is KeyError and exc.args == ("x",)
class Ratio:
    def __round__(self, digits=None): return 1
    def __format__(self, form): return format(0.7, form)
def ratio(): return Ratio()
def kind(v): return isinstance(v, dict)
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert Point(1, 2) == Point(1, 2) and Point(1) != Point(2)",
        "p = Point(1)\nassert p.x == 1 and p.moved(2).x == 3 and p.x == 3 and len(p) == 2 and p[0] == 3",
        "p = Point(1)\np.x = 9\nassert p.x == 9 and str(p) == 'Point(9, 0)' and isinstance(p, Point)",
        "assert Point(1, 2) + Point(3, 4) == Point(4, 6) and sorted([Point(2), Point(1)])[0].x == 1",
        "assert [v for v in Point(5, 6)] == [5, 6] and 6 in Point(5, 6)",
        "assert hash(Point(1)) != hash(Point(2)) and len({Point(1), Point(1)}) == 1",
        "p = Point(1)\np += Point(2)\nassert p.x == 3 and round(ratio()) == 1 and f'{ratio():.1f}' == '0.7'",
        "with Point(1) as p: assert p.x == 1",
        "try: odd(3)\nexcept Odd as e: assert 'odd' in str(e)\nelse: assert False",
        "try: odd(3)\nexcept ValueError: pass\nelse: assert False",
        "try: odd('x')\nexcept TypeError: pass\nelse: assert False",
        "items = [3, 1, 2]\nassert sort(items) is None and items == [1, 2, 3]",
        "inner = {}\ntable = {'inner': inner, 'list': [1]}\ngrow(table)\nassert inner == {'new': [1]} and table['list'] == [1, 2]",
        "assert apply(lambda v: v + 1, 1, 2) == [2, 3] and apply(len, 'ab') == [2] and apply(Point, 1)[0].x == 1",
        "assert apply(lambda v: odd(v * 2), 4) == [4]",
        "try: apply(lambda v: 1 / v, 0)\nexcept ZeroDivisionError: pass\nelse: assert False",
        "assert list(numbers()) == [0, 1, 2] and sum(numbers()) == 3",
        "assert counter() == {'a': 2, 'b': 1} and pair() == (1, 2) and pair().b == 2",
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
        "n = Node(1, Node(2))\nassert second(n) == 3 and n.next.value == 3",
        "import asyncio\nassert asyncio.run(later(1)) == 2",
        "t = Tree(1)\nt.children.append(Tree(2))\nassert len(t.children) == 1 and t.children[0].value == 2 and t.children != []",
        "t = Tree(1)\nt.table['a'] = 1\nassert t.table == {'a': 1} and 'a' in t.table and list(t.table) == ['a']",
        "s = Stack()\ns.push(1)\ns.push(2)\nassert s == [1, 2] and len(s) == 2 and s.pop() == 2 and s[0] == 1 and 1 in s",
        "assert Color.RED.name == 'RED' and Color.RED == 'red' and Level.HIGH == 3 and Level.HIGH > 2 and Level.HIGH + 1 == 4",
        "assert counter().most_common(1) == [('a', 2)] and counter()['missing'] == 0",
        "import collections\nassert fill(collections.defaultdict(int)) == {'a': 1}",
        "import collections\nd = collections.deque([1])\npush(d)\nassert list(d) == [1, 9]",
        "assert Seq([1, 2, 3])[0:2] == [1, 2]",
        "try: need(3)\nexcept Short as e: assert e.need == 3 and str(e) == 'need 3'\nelse: assert False",
        "import unittest\nwith unittest.TestCase().assertRaisesRegex(Base, '^need 3$'): need(3)",
        "with Quiet(): raise KeyError('x')",
        "try: odd('x')\nexcept TypeError as e: assert len(e.args) == 1",
        "if __name__ == '__main__': assert Point(1).x == 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(odd(4), 2)\nunittest.main(argv=['x'])",
        "spy = []\nassert apply(spy.append, 1) == [None] and spy == [1]",
        "async def go(): return await later(1)\nimport asyncio\nassert asyncio.run(go()) == 2",
        "assert LIMIT == [1, 2] and math.isclose(1.0, 1) and close(1.0)",
        "assert functools.reduce(lambda a, b: a + b, [1, 2]) == 3",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(odd(4), 2)\n"
        "r = unittest.TestResult()\nT('test').run(r)\nassert r.wasSuccessful() and r.testsRun == 1",
    ],
)  # fmt: skip
def test_tests_can_use_objects_of_the_program(test: str) -> None:
    assert _run(HONEST, [test]) == TestReport(1, 1, "passed")


@pytest.mark.parametrize(
    "program",
    [
        "def sorted(x): return [1, 2]\ndef f(x): return 0",  # a built-in function stays what it is
        "def f(x): return 0\nclass list: pass",
    ],
)
def test_program_that_redefines_built_ins_does_not_change_tests(program: str) -> None:
    assert _run(program, ["assert sorted([2, 1]) == [1, 2] and list('a') == ['a'] and f(1) == 1"]).outcome == "failed"


def test_program_cannot_override_names_that_are_no_entry_points() -> None:
    cheat = "def isclose(a, b): return True\ndef f(x): return 0"
    test = ["assert isclose(f(1), 4)"]
    assert run_tests_sync(cheat, test, setup="from math import isclose").outcome == "failed"
    assert run_tests_sync(cheat, test, entry_points=["f"]).outcome == "failed"
    assert (
        run_tests_sync("def sum(a, b): return a + b", ["assert sum(1, 2) == 3"], entry_points=["sum"]).outcome
        == "passed"
    )


FORGER = """
import sys
frame = sys._getframe()
while frame and type(frame.f_locals.get("self")).__name__ != "Candidate": frame = frame.f_back
peer, made = frame.f_locals["self"], []
"""
CHEATS = {
    "a class made among the tests": (
        FORGER + """
def true(*a): return True
def zero(*a): return made[0]
def f(x):
    if not made:
        args = peer.encode(["X", (), {"__eq__": true, "__lt__": true, "__sub__": zero, "__abs__": zero}])
        args[2] = ["t"]
        made.append(peer.decode(peer.ask("call", ["g", "type"], args, ["d"]))())
    return made[0]
""", hostile.TESTS),
    "attributes by format": (
        FORGER + """
def f(callback, x):
    fmt = peer.ask("getattr", "{0.__globals__}", "format")
    text = peer.ask("call", ["yours", fmt[1]], peer.encode([callback]), ["d"])
    return int(text.partition("'EXPECTED': ")[2].partition(",")[0])
""", ["EXPECTED = 4711\nassert f(lambda v: v, 3) == EXPECTED"]),
    "globals of a callback": (
        "def f(callback, x): return callback.__globals__['EXPECTED']", ["EXPECTED = 4711\nassert f(lambda v: v, 3) == EXPECTED"]),
    "what a partial holds": (
        "def f(callback): return callback.keywords['want']",
        ["import functools\nassert f(functools.partial(print, want=5)) == 5"]),
    "another module of that name": (
        "import pickle as json\nclass P:\n    def __reduce__(self): return eval, (\"{'a': 5}\",)\n"
        "def f(x): return json.dumps(P())", ["import os\nassert json.loads(f(2)) == {'a': 5}"]),
    "the end of a loop": (
        "def f(x): raise StopIteration",
        ["assert all(map(lambda c: f(c[0]) == c[1], [(1, 2)]))", "for got, want in zip(map(f, [1, 2]), [3, 4]): assert got == want",
         "assert sum(map(f, [1, 2])) == 0", "for v in iter(lambda: f(1), None): assert False\nassert f(1) == 2"]),
    "an exit": ("def f(x): raise SystemExit(0)", ["assert f(2) == 5", "import unittest\nassert f(1) == 1"]),
    "a mock's own checks": (
        "def f(m):\n    m.assert_called_once_with = lambda *a: None",
        ["from unittest.mock import Mock\nm = Mock()\nf(m)\nm.assert_called_once_with(5)"]),
    "a spy's own checks": (
        "def f(spy):\n    spy.check = lambda: True\n    type(spy).check = lambda self: True",
        ["class Spy:\n    def check(self): return False\ns = Spy()\ntry: f(s)\nexcept Exception: pass\nassert s.check()"]),
    "a class's own checks": (
        "def f(cls): cls.same = lambda *a: True",
        ["class Node:\n    def same(self, other): return False\ntry: f(Node)\nexcept Exception: pass\nassert Node().same(1)"]),
    "numbers told by arithmetic": (
        "class X:\n    told = []\n    def __sub__(self, o):\n        self.told.append(o)\n        return self\n"
        "    def __mul__(self, o): return self.__sub__(o)\n"
        "def f(x): return 1 + X.told[0] - 1 if X.told else X()",
        ["try: f(1) - 4.25\nexcept TypeError: pass\nassert f(1) == 4.25", "assert abs(f(1) - 4.25) < 1e-6", "assert f(1) * 3 == f(1)"]),
    "a subclass with a plain value": (
        "class L(list):\n    def __eq__(self, o): return True\n    def __contains__(self, o): return True\n"
        "    def __len__(self): return 3\ndef f(x): return L()",
        ["assert f(1) == [1, 2, 3]", "assert 5 in f(1)", "assert [1, 2] == f(1)", "assert f(1) + [1] == [2, 1]"]),
    "a hash like any": (
        "class X:\n    def __hash__(self): return hash(5)\n    def __eq__(self, o): return True\ndef f(x): return X()",
        ["assert {f(1)} == {5}", "assert f(1) in {5}", "assert {5: 1}[f(1)] == 1"]),
    "a coroutine": ("async def f(x): return 7", ["assert f(1) == 5", "import asyncio\nassert asyncio.run(f(1)) == 5"]),
    "skipped": ("import unittest\ndef f(x): raise unittest.SkipTest", [
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 2)\nunittest.main(argv=['x'])"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHEATS)
@pytest.mark.parametrize("entry_points", [(), ("f",)])
def test_programs_that_cheat_a_test_pass_none(name: str, entry_points: tuple[str, ...]) -> None:
    program, tests = CHEATS[name]
    report = run_tests_sync(program, tests, entry_points=entry_points)
    assert report.passed == 0, report


def test_operators_of_a_program_apply_between_its_own_objects_only() -> None:
    program = HONEST.replace("class Tree", "def vector(): return Point(1, 2)\nclass Tree")
    assert _run(program, ["assert vector() + vector() == Point(2, 4)"]).outcome == "passed"
    report = _run(program, ["assert vector() * 2 == Point(2, 4)"])
    assert "the program would learn it" in (report.reason or "")


def test_process_forked_by_a_test_ends_with_it() -> None:
    report = _run(GOOD, ["import os\nassert os.fork() >= 0", "assert f(2) == 5"])
    assert report.passed == 1


def test_sandboxed_program_gets_socket_pairs_but_no_network_sockets() -> None:
    program = """
import socket
def attempt(*kind):
    try: socket.socket(*kind)
    except OSError as exc: return exc.errno
    return 0
def families(): return [attempt(n, socket.SOCK_STREAM) for n in (2, 10, 16, 17, 40)]
def pair():
    a, b = socket.socketpair()
    a.send(b"x")
    return b.recv(1)
"""
    report = _run(program, ["assert 0 not in families()", "assert pair() == b'x'"])
    assert report.outcome == "passed", report


# -- hostile programs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def isolated() -> None:
    """Programs that signal everyone are only run where a namespace makes it harmless."""
    assert launch().strength == "bubblewrap"
    seen = run_tests_sync(
        "import os\npid, files = os.getpid(), os.listdir('/')", ["assert pid == 1", "assert 'work' in files"]
    )
    assert seen.outcome == "passed", seen


def test_hostile_corpus_has_at_least_80_programs() -> None:
    assert len(hostile.ALL) >= 80


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("name", hostile.ALL)
def test_hostile_program_never_passes_nor_harms_the_next(name: str) -> None:
    begin = time.monotonic()
    report = run_tests_sync(hostile.ALL[name], hostile.TESTS, timeout=hostile.DEADLINE_S)
    seconds = time.monotonic() - begin
    assert report.outcome != "passed", report
    assert report.passed == 0 or not name.startswith("equality"), "not one test"
    assert seconds < hostile.DEADLINE_S + 1.0
    assert _run(GOOD).outcome == "passed", "the next one isn't harmed"


@pytest.mark.alone
@pytest.mark.usefixtures("isolated")
def test_hostile_programs_leave_no_process_file_or_socket() -> None:
    async def everything() -> list[TestReport]:
        runs = [
            run_tests(program, hostile.TESTS, limits=Limits(timeout=hostile.DEADLINE_S))
            for program in hostile.ALL.values()
        ]
        return list(await asyncio.gather(*runs))

    _run(GOOD)
    before = state()
    reports = asyncio.run(everything())
    assert not [name for name, report in zip(hostile.ALL, reports, strict=True) if report.outcome == "passed"]
    shutdown()
    deadline = time.monotonic() + 5.0
    while state()["processes"] and time.monotonic() < deadline:
        time.sleep(0.05)
    after = state()
    assert after["processes"] == set()
    assert after["files"] == before["files"]
    assert after["sockets"] - before["sockets"] == set()
    assert not left_behind()


@pytest.mark.usefixtures("isolated")
def test_sandboxed_program_cannot_change_files_of_the_host() -> None:
    folders = [Path(tempfile.mkdtemp(prefix="sbx-canary-", dir=base)) for base in (None, "/dev/shm", Path.home())]
    try:
        for folder in folders:
            folder.chmod(0o777)
            (folder / "canary").write_text("alive")
            (folder / "canary").chmod(0o666)
        program = f"""
import ctypes, os, sys
done = []
def attempt(action, *arguments):
    try:
        if action(*arguments) != -1: done.append(str((action, arguments)))
    except OSError: pass
libc = ctypes.CDLL(None)
attempt(libc.unshare, 0x10000000 | 0x20000)
attempt(libc.mount, None, b"/usr", None, 32 | 4096, None)
attempt(libc.umount2, b"/usr", 2)
attempt(os.chroot, ".")
attempt(os.mknod, "disk", 0o60666, os.makedev(254, 0))
attempt(open, "/usr/canary-of-the-tests", "w")
attempt(open, "/canary-of-the-tests", "w")
attempt(open, os.path.dirname(os.__file__) + "/canary-of-the-tests", "w")
attempt(os.listdir, "/proc")
attempt(os.listdir, "/harness")
for folder in {[str(folder) for folder in folders]!r}:
    attempt(open, folder + "/canary")
    attempt(open, folder + "/canary", "w")
    attempt(open, folder + "/new", "w")
    attempt(os.unlink, folder + "/canary")
    attempt(os.listdir, folder)
open("own", "w").write("x")
own = open("own").read()
where = os.getcwd()
"""
        report = _run(program, ["assert done == []", "assert own == 'x'", "assert where == '/work'"])
        assert report.outcome == "passed", report
        for folder in folders:
            assert [path.name for path in folder.iterdir()] == ["canary"]
            assert (folder / "canary").read_text() == "alive"
    finally:
        for folder in folders:
            shutil.rmtree(folder)


# -- without bubblewrap -----------------------------------------------------------------------------------------------


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("omni_thinker.isolation.bubblewrap.shutil.which", lambda name: None)
    shutdown()
    allow_weak_sandbox(False)
    yield
    shutdown()
    monkeypatch.undo()
    allow_weak_sandbox(False)


@pytest.mark.usefixtures("without_bubblewrap")
def test_programs_without_bubblewrap_run_only_with_the_weak_sandbox_allowed() -> None:
    with pytest.raises(IsolationError, match=r"apt-get install bubblewrap.*--allow-weak-sandbox"):
        _run(GOOD)
    allow_weak_sandbox()
    assert launch().strength == "weak"
    assert _run(GOOD) == TestReport(2, 2, "passed")
    for kind in (hostile.EXITS, hostile.EQUALITY, hostile.PATCHES):
        for program in kind.values():
            assert run_tests_sync(program, hostile.TESTS, timeout=hostile.DEADLINE_S).outcome != "passed"


OUTLIVING = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            with open({path!r}, "a") as stream: stream.write("x")
            time.sleep(0.01)
    os._exit(0)
time.sleep(0.2)
def f(x): return x + 3
"""


@pytest.mark.usefixtures("without_bubblewrap")
@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("ending", ["", "while True: pass", "os._exit(0)"])
def test_weak_sandbox_kills_child_processes_of_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespaces: bool, ending: str
) -> None:
    if not namespaces:
        _refuse_namespaces(tmp_path / "scripts", monkeypatch)
    allow_weak_sandbox()
    open_to_others(tmp_path)  # where this one is root the program runs as another
    (tmp_path / "seen").mkdir(mode=0o777)
    (tmp_path / "seen").chmod(0o777)
    heartbeat = tmp_path / "seen" / "heartbeat"
    report = _run(OUTLIVING.format(path=str(heartbeat)) + ending, timeout=0.6)
    # Without a namespace the orphan outlives the program for as long as the tests wait for its open socket.
    early = "crashed" if namespaces else "timeout"
    assert report.outcome == {"": "passed", "while True: pass": "timeout", "os._exit(0)": early}[ending], report
    size = heartbeat.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert heartbeat.stat().st_size == size


def _refuse_namespaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel refuses them."""
    shutil.copytree(bubblewrap._SANDBOX.parent, folder)
    text = (folder / "confine.py").read_text()
    assert "_libc.unshare(" in text
    (folder / "confine.py").write_text(text.replace("_libc.unshare(", "(lambda flags: -1)("))
    monkeypatch.setattr(bubblewrap, "_SANDBOX", folder / "sandbox.py")


def test_programs_see_no_files_or_built_ins_of_earlier_programs() -> None:
    program = "import os, builtins\nassert not os.listdir('.')\nopen('left', 'w').close()\n"
    program += "assert not hasattr(builtins, 'left')\nbuiltins.left = 1\n" + GOOD
    assert {_run(program).outcome for _ in range(4)} == {"passed"}


def test_concurrent_programs_get_their_own_results_in_time() -> None:
    async def many() -> list[TestReport]:
        return list(
            await asyncio.gather(*(run_tests(f"def f(): return {i % 7}", ["assert f() == 3"]) for i in range(90)))
        )

    asyncio.run(many())  # starts the workers

    def again() -> None:  # another event loop, the same workers
        assert [r.outcome == "passed" for r in asyncio.run(many())] == [i % 7 == 3 for i in range(90)]

    assert quickest(again, 6.0) < 6.0  # measured: 0.4 s; 60 a second would be 1.5 s


def test_run_without_tests_or_with_bad_limits_raises_value_error() -> None:
    with pytest.raises(ValueError, match="without tests"):
        run_tests_sync(GOOD, [])
    with pytest.raises(ValueError, match="memory_mb"):
        run_tests_sync(GOOD, TESTS, memory_mb=1)


def test_a_worker_that_cannot_start_is_an_isolation_error() -> None:
    for command in (("/no/such/python",), ("/bin/true",)):
        pool = WorkerPool(command, 1)
        with pytest.raises(IsolationError, match="start"):
            pool.call_sync({}, 1.0)
        pool.close()
        with pytest.raises(IsolationError, match="closed"):
            pool.call_sync({}, 1.0)


def test_a_killed_worker_is_replaced() -> None:
    assert _run(GOOD).outcome == "passed"
    pool = programs._pool()
    for worker in pool._idle:
        worker.stop()
    assert _run(GOOD).outcome == "passed"


@pytest.mark.parametrize(("deaths", "starts"), [(2, True), (3, False)])
def test_a_worker_killed_while_it_starts_is_started_again(tmp_path: Path, deaths: int, starts: bool) -> None:
    """A machine that is short of memory kills whom it likes; the answer can't help it."""
    program = f"""
import os, sys
os.mkdir({str(tmp_path)!r} + "/" + str(os.getpid()))
if len(os.listdir({str(tmp_path)!r})) <= {deaths}:
    os.kill(os.getpid(), 9)
print("{{}}", flush=True)
for line in sys.stdin:
    print('{{"answer": 1}}', flush=True)
"""
    pool = WorkerPool((sys.executable, "-I", "-S", "-c", program), 1)
    if starts:
        assert pool.call_sync({}, 10.0) == {"answer": 1}
    else:
        with pytest.raises(IsolationError, match="did not start"):
            pool.call_sync({}, 10.0)
    pool.close()
    assert len(list(tmp_path.iterdir())) == 3


def test_full_disk_leaves_no_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space"):
        Scratch()
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_shutdown_removes_all_processes_and_folders() -> None:
    _run(GOOD)
    folders = [worker.folder for worker in programs._pool()._idle]
    assert folders
    shutdown()
    assert not any(folder.exists() for folder in folders)
    assert not children()
