"""The sandbox: scripts, handles of further kinds, names and packages that a row asks for, and what errors say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import hostile
from omni_thinker.isolation import IsolationError, Limits, TestReport, bubblewrap, run_script, run_tests, shutdown
from omni_thinker.isolation.inside.values import Violation, decode, encode
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards import make_reward, score_texts
from omni_thinker.types import Problem, Score

SECOND = Limits(timeout=1.0)
PATIENT = Limits(timeout=10.0)
NUMPY = Limits(timeout=10.0, memory_mb=1024, packages=("numpy",))


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()


def script(program: str, *cases: tuple[str, str], **settings: Any) -> TestReport:
    return asyncio.run(run_script(program, cases, **{"limits": PATIENT, **settings}))


def try_tests(program: str, *statements: str, **settings: Any) -> TestReport:
    return asyncio.run(run_tests(program, statements, **{"limits": PATIENT, **settings}))


# -- scripts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "given", "wanted"),
    [
        ("print(int(input()) ** 2)", "3\n", "9"),
        ("print(int(input()) ** 2)", "3\r\n", "  9 \n\n"),
        ("import sys\nfor line in sys.stdin: print(line.upper(), end='')", "a\nb", "A\nB"),
        ("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", "1 2\n3", "6"),
        ("print(open(0).read().strip())", "é ☃ 😀", "é ☃ 😀"),
        ("import threading\nthreading.Thread(target=lambda: print(input())).start()", "x", "x"),
        ("import atexit\natexit.register(print, 'end')\nprint('start')", "", "start\nend"),
        ("import sys\nif __name__ == '__main__':\n    print(len(sys.argv))\n    sys.exit()", "", "1"),
        ("print(1)\nexit()\nprint(2)", "", "1"),
        ("def main():\n    print(1)\n    quit(0)\nmain()", "", "1"),
        ("import os\nos.write(1, b'1')", "", "1"),
        ("print(1)", "x" * 300_000, "1"),
        ("print(input())", "x" * 300_000, "x" * 300_000),
        ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(9000))", "", "9000"),
        ("import os, time\nprint(1, flush=True)\nif os.fork() == 0: time.sleep(9)", "", "1"),
        ("import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True, text=True).stdout)", "", "hi"),
    ],
)
def test_script_that_prints_what_is_wanted_passes(program: str, given: str, wanted: str) -> None:
    assert script(program, (given, wanted)) == TestReport(1, 1, "passed")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print(8)", "input '3': line 1 is '8', not '9'"),
        ("print(9, 9)", "line 1 is '9 9', not '9'"),
        ("print(9)\nprint(9)", "2 lines of output, not 1"),
        ("pass", "0 lines of output, not 1"),
        ("print(9)\n1 / 0", "ZeroDivisionError: division by zero"),
        ("print(9)\nraise SystemExit('no')", "input '3': no"),
        ("import sys\nprint(9)\nsys.exit(3)", "exit code 3"),
        ("print(9)\nexit(3)", "exit code 3"),
        ("import os\nprint(9, flush=True)\nos.kill(os.getpid(), 9)", "killed by signal 9"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("while True: print('x' * 10**5)", "more than 4 MiB of output"),
        ("x = bytearray(10**9)", "MemoryError"),
    ],
)
def test_script_that_does_not_says_why(program: str, reason: str) -> None:
    report = script(program, ("3\n", "9"))
    assert (report.passed, report.outcome) == (0, "failed")
    assert reason in (report.reason or "")


def test_script_gets_a_fresh_process_for_each_case_and_partial_counts() -> None:
    program = "import builtins\nbuiltins.seen = getattr(builtins, 'seen', 0) + 1\nprint(builtins.seen, input())"
    report = script(program, ("a", "1 a"), ("b", "1 b"), ("c", "2 c"))
    assert (report.passed, report.total, report.outcome) == (2, 3, "failed")
    assert script("while True: pass", ("", "1"), limits=Limits(timeout=0.3)).outcome == "timeout"


SECRET = "SECRET4711"
_TELL = "\nimport re\nfound = re.search(r'SECRET\\d+', str(blob))\nprint(found.group() if found else 'nothing')\n"


def test_script_never_holds_the_expected_output() -> None:
    programs = [program + _TELL for program in hostile.READING.values() if "blob = " in program]
    assert len(programs) >= 12

    async def run() -> list[TestReport]:
        cases = [("1", "no"), ("2", SECRET), ("3", SECRET)]
        return list(await asyncio.gather(*(run_script(program, cases, limits=Limits(3.0)) for program in programs)))

    assert [report.passed for report in asyncio.run(run())] == [0] * len(programs)


def test_script_that_attacks_its_channel_or_parent_never_passes_nor_harms_the_next() -> None:
    attacks = [*hostile.CHANNEL.values(), *(text for name, text in hostile.OUTSIDE.items() if "signal" in name)]

    async def run() -> list[TestReport]:
        return list(
            await asyncio.gather(*(run_script(text, [("", "x"), ("", "y")], limits=SECOND) for text in attacks))
        )

    assert not [report for report in asyncio.run(run()) if report.passed]
    assert script("print(input())", ("x", "x")).outcome == "passed"


# -- handles ----------------------------------------------------------------------------------------------------------

OBJECTS = """
import asyncio
class Even:
    def __contains__(self, n): return n % 2 == 0
    def __floor__(self): return 2
    def __ceil__(self): return 3
    def __trunc__(self): return 4
    def __bytes__(self): return b"x"
async def numbers(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i
class Countdown:
    def __init__(self, n): self.n = n
    def __aiter__(self): return self
    async def __anext__(self):
        if not self.n: raise StopAsyncIteration
        self.n -= 1
        return self.n
class Door:
    async def __aenter__(self): return 5
    async def __aexit__(self, kind, exc, trace): return kind is KeyError and exc.args == ("x",)
class Gate:
    def __init__(self): self.lock = asyncio.Lock()
    async def pass_through(self):
        async with self.lock: return 1
def squares(): return (n * n for n in range(4))
def views(): return {"a": 1, "b": 2}
def keys(): return views().keys()
def items(): return views().items()
def values(): return views().values()
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert 4 in Even() and 3 not in Even()",
        "import math\nassert [f(Even()) for f in (math.floor, math.ceil, math.trunc, bytes)] == [2, 3, 4, b'x']",
        "assert 9 in squares() and 5 not in squares()",
        "import asyncio\nasync def go(): return [n async for n in numbers(3)]\nassert asyncio.run(go()) == [0, 1, 2]",
        "import asyncio\nasync def go(): return [n async for n in Countdown(3)]\nassert asyncio.run(go()) == [2, 1, 0]",
        "import asyncio\nasync def go():\n    n = numbers(3)\n    first = await anext(n)\n"
        "    second = await n.__anext__()\n    await n.aclose()\n    return first, second, [m async for m in n]\n"
        "assert asyncio.run(go()) == (0, 1, [])",
        "import asyncio\nasync def go():\n    async with Door() as d: assert d == 5\n"
        "    async with Door(): raise KeyError('x')\n    return 1\nassert asyncio.run(go()) == 1",
        "import asyncio\ng = Gate()\nasync def go(): return await g.pass_through() + await g.pass_through()\n"
        "assert asyncio.run(go()) == 2 and asyncio.run(go()) == 2",
        "assert keys() == {'a', 'b'} and 'a' in keys() and keys() & {'a'} == {'a'} and list(keys()) == ['a', 'b']",
        "assert items() == {('a', 1), ('b', 2)} and ('a', 1) in items() and dict(items()) == {'a': 1, 'b': 2}",
        "assert sorted(values()) == [1, 2] and 2 in values() and len(values()) == 2 and sum(values()) == 3",
        "assert keys() == views().keys() and keys() != {'a'}",
    ],
)
def test_tests_can_use_further_objects_of_the_program(test: str) -> None:
    assert try_tests(OBJECTS, test) == TestReport(1, 1, "passed")


def test_asynchronous_iteration_cannot_end_a_test_early() -> None:
    program = "async def f(n): raise StopAsyncIteration"
    report = try_tests(
        program, "import asyncio\nasync def go():\n    async for n in f(1): pass\nasyncio.run(go())\nassert f(1) == 2"
    )
    assert report.passed == 0
    always = "    def __contains__(self, n): return True\n    def __eq__(self, n): return True\n"
    lying = f"class X:\n{always}def f(n): return X()"
    assert try_tests(lying, "assert f(1) == 3", "assert f(1) in [3]", "assert f(1) in {3: 1}").passed == 0


# -- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def f(:\n    return 1", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("def f():\nreturn 1", "IndentationError: expected an indented block"),
        ("def f():\n    return (1", "SyntaxError: '(' was never closed (<program>, line 2)"),
        ("def f():\n\tif 1:\n        pass", "TabError: inconsistent use of tabs"),
        ("def f(): pass\n1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_fault_of_a_program_keeps_its_message(program: str, message: str) -> None:
    assert message in (try_tests(program, "assert f() is None").reason or "")


# -- names and packages that a row asks for ---------------------------------------------------------------------------


def test_usual_imports_give_names_to_program_and_tests() -> None:
    program = """
class Solution:
    def order(self, nums: List[int], k: Optional[int] = None) -> List[int]:
        heap = list(nums)
        heapify(heap)
        least = [heapq.heappop(heap) for _ in range(k or len(nums))]
        return least + [gcd(4, 6), Counter("aab")["a"], bisect_left([1], 2)]
    def linked(self, values: List[int]) -> Optional[ListNode]:
        dummy = last = ListNode()
        for value in values:
            last.next = ListNode(value)
            last = last.next
        return dummy.next
    def depth(self, root: Optional[TreeNode]) -> int:
        return 0 if root is None else 1 + max(self.depth(root.left), self.depth(root.right))
"""
    statements = [
        "assert Solution().order([3, 1, 2], 2) == [1, 2, 2, 2, 1]",
        "node = Solution().linked([1, 2])\nassert (node.val, node.next.val, node.next.next) == (1, 2, None)",
        "assert Solution().depth(TreeNode(1, TreeNode(2), None)) == 2",
    ]
    usual = Limits(timeout=10.0, usual_imports=True)
    assert try_tests(program, *statements, limits=usual, entry_points=["Solution"]) == TestReport(3, 3, "passed")
    assert try_tests(program, *statements).passed == 0
    # What is provided is the tests' own, and what a program redefines is its own.
    assert try_tests("def gcd(a, b): return 7", "assert gcd(4, 6) == 7", limits=usual).passed == 1
    assert (
        try_tests(
            "def gcd(a, b): return 7\ndef f(): pass", "assert gcd(4, 6) == 2", limits=usual, entry_points=["f"]
        ).passed
        == 1
    )


def test_module_that_tests_import_under_another_name_is_their_own() -> None:
    program = "import datetime as dt\ndef f(): return dt.date(2020, 1, 1)"
    assert try_tests(program, "assert f() == dt.date(2020, 1, 1)", setup="import datetime as dt").passed == 1
    assert try_tests(program, "assert f() == dt.date(2020, 1, 1)").passed == 0


def test_numpy_is_there_where_it_is_asked_for() -> None:
    program = """
import numpy as np
def grid(n): return np.arange(n * n).reshape(n, n)
def total(a): return a.sum()
def double(a): a *= 2
def inverse(a): return np.linalg.inv(a)
"""
    statements = [
        "assert np.array_equal(grid(2), [[0, 1], [2, 3]]) and grid(2).dtype == np.arange(1).dtype",
        "assert total(np.array([1, 2])) == 3 and total(np.array([.5])) == .5 and isinstance(total(np.ones(1)), float)",
        "a = np.ones(3)\ndouble(a)\nassert a.tolist() == [2, 2, 2]",
        "assert np.allclose(inverse(2 * np.eye(3)), np.eye(3) / 2)",
    ]
    report = try_tests(program, *statements, setup="import numpy as np", limits=NUMPY)
    assert report == TestReport(4, 4, "passed")
    assert "No module named 'numpy'" in (try_tests(program, *statements).reason or "")
    only = try_tests(
        "import os\ndef f(): return os.listdir('/packages')", "assert all('numpy' in n for n in f())", limits=NUMPY
    )
    assert only.passed == 1
    assert script("import numpy\nprint(numpy.ones(2).sum())", ("", "2.0"), limits=NUMPY).passed == 1


def test_arrays_of_a_program_never_point_into_the_memory_of_the_tests() -> None:
    program = """
class X:
    __array_interface__ = {"data": (4096, True), "shape": (3,), "typestr": "<i8", "version": 3}
    def __array__(self, *a, **k): return None
    def __eq__(self, other): return True
    def __sub__(self, other): return 0
def f(n): return X()
"""
    statements = [
        "assert any(hasattr(f(1), f'__array_{name}__') for name in ('interface', 'struct', 'wrap', 'priority'))",
        "assert hasattr(f(1), '__array__')",
        "assert np.array_equal(f(1), np.array([1, 2, 3]))",
        "assert (np.array([1, 2, 3]) == f(1)).all()",
        "assert np.allclose(f(1), 5)",
    ]
    report = try_tests(program, *statements, setup="import numpy as np", limits=NUMPY)
    assert (report.passed, report.outcome) == (0, "failed")


@pytest.mark.parametrize(
    "node",
    [
        ["A", "|O", [1], "00" * 8],
        ["A", "O", None, "00" * 8],
        ["A", "<i8", [9], "00" * 8],
        ["A", "<i8", [1], "zz"],
        ["A", "<V8", [1], "00" * 8],
        ["A", 5, [1], ""],
        ["A"],
    ],
)
def test_forged_arrays_are_refused(node: list[Any]) -> None:
    with pytest.raises(Violation):
        decode(node, lambda unknown: unknown)


@pytest.mark.parametrize(
    "value",
    [np.arange(6).reshape(2, 3), np.zeros((0, 2)), np.float32(1.5), np.int64(-3), np.array(True), np.complex128(1j)],
)
def test_arrays_of_numbers_cross_as_data(value: Any) -> None:
    back = decode(encode(value, lambda other: ["mine", 0]), lambda node: None)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert np.array_equal(back, value)


def test_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(IsolationError, match="'no-such-package' isn't installed"):
        bubblewrap.launch_programs(["no-such-package"])


# -- the reward -------------------------------------------------------------------------------------------------------


def scores(part: str, texts: Sequence[str], **data: Any) -> list[Score]:
    reward = make_reward(RewardSpec(gate=(), sum={part: 1.0}), judge=None)
    problem = Problem("p1", "task", "prompt", None, data)
    assert reward.check(problem) is None
    return asyncio.run(score_texts(reward, problem, texts))


def test_reward_of_scripts_and_functions_says_what_it_took_and_why_it_lost() -> None:
    texts = ["```python\nprint(int(input()) ** 2)\n```\nOutput:\n```text\n9\n```", "n = int(input())\nprint(n + n)"]
    right, wrong = scores("unit_tests", texts, inputs=["2", "3"], outputs=["4", "9"])
    assert (right.value, right.reason) == (1.0, "unit_tests: took block 1 of 1")
    assert (wrong.value, wrong.reason) == (
        0.0, "unit_tests: took unfenced code: input '3': line 1 is '6', not '9'"
    )  # fmt: skip
    [half] = scores("unit_tests_partial", texts[1:], inputs=["2", "3"], outputs=["4", "9"])
    assert half.value == 0.5
    method = "```python\nclass Solution:\n    def root(self, n: Optional[int]) -> float:\n        return sqrt(n)\n```"
    for text in (method, "import math\nroot = lambda n: math.sqrt(n)"):
        [score] = scores(
            "unit_tests", [text], inputs=[[2]], outputs=[1.41421], entry_point="root", float_tolerance=1e-4
        )
        assert score.value == 1.0, score
    reasons = {
        "def f(x): return [x, 'a']": "took unfenced code: assert f(1) == 2: doesn't hold, got [1, 'a']",
        "class A: pass\ndef f(x): return A()": "took unfenced code: assert f(1) == 2: doesn't hold",
        "def f(x):\n    while True: pass": "took unfenced code: killed at the deadline of 0.5 s (timeout)",
        "import requests\ndef f(x): return 2": "took unfenced code: ModuleNotFoundError: No module named 'requests' "
        "(packages allows numpy)",
        "I cannot do this.": "took the whole text, for want of a program: SyntaxError: invalid syntax (<program>, "
        "line 1)",
    }
    for text, reason in reasons.items():
        [score] = scores("unit_tests", [text], tests=["assert f(1) == 2"], timeout=0.5)
        assert (score.value, score.reason) == (0.0, f"unit_tests: {reason}")
    [score] = scores("unit_tests", ["def f(x): return 3"], tests=["assert f(1) == 3", "assert f(1) > 3", "assert 0"])
    assert score.reason == "unit_tests: took unfenced code: assert f(1) > 3: doesn't hold"
    [score] = scores("unit_tests", ["```python\ndef f(:\n```"], tests=["assert f(1) == 2"])
    assert score.reason == "unit_tests: took block 1 of 1: SyntaxError: invalid syntax (<program>, line 1)"
