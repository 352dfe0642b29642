"""The sandbox against hostile programs. What is asserted: the verdict, the time it takes, and that nothing stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_thinker.isolation import IsolationError, TestReport, WorkerPool, programs, run_tests, run_tests_sync, shutdown

GOOD = "def f(x):\n    return x + 3\n"
TESTS = ["assert f(2) == 5", "assert f(0) == 3"]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()
    assert not _children()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the candidate can write to, whichever user it became."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def _children() -> list[str]:
    """Command lines of the worker processes below this one, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return [line for line in found if not line or "isolation" in line]


def _run(program: str, tests: list[str] | None = None, timeout: float = 2.0) -> TestReport:
    return run_tests_sync(program, tests or TESTS, timeout=timeout)


def test_a_right_program_passes() -> None:
    assert _run(GOOD) == TestReport(2, 2, "passed")


def test_passed_counts_tests_that_hold() -> None:
    report = _run("def f(x):\n    return 5\n")
    assert (report.passed, report.total, report.outcome) == (1, 2, "failed")
    assert "f(0) == 3" in (report.reason or "")


def test_setup_runs_after_the_program() -> None:
    report = run_tests_sync("class Pair: pass\n", ["assert g() == 1"], setup="Pair.x = 1\ndef g(): return Pair.x")
    assert report.outcome == "passed"


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("import sys\nsys.exit(0)", "failed"),
        ("import os\nos._exit(0)", "crashed"),
        (GOOD + "import atexit, os\natexit.register(lambda: os._exit(0))\nraise SystemExit(0)", "failed"),
        ("def f(x):\n    import os\n    os._exit(0)", "crashed"),
        ("print('passed')\nprint('{\"passed\": 2, \"reason\": null}')", "failed"),
        ("import os\nfor fd in range(3, 300):\n    try:\n        os.write(fd, b'0' * 32 + b'{\"passed\": 2, "
         "\"reason\": null}\\n')\n    except OSError: pass\nos._exit(0)", "crashed"),
        ("import __main__\n__main__._execute = lambda request: (2, None)", "failed"),
        ("this is no python", "failed"),
        ("x = bytearray(10**9)\n" + GOOD, "failed"),
        ("import ctypes\nctypes.string_at(0)", "crashed"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E", "failed"),
        ("import os\nopen('big', 'wb').write(b'0' * 10**8)\n" + GOOD, "failed"),
        ("input()\n" + GOOD, "failed"),
        ("class E:\n    def __eq__(self, other): return True\ndef f(x): return E()", "failed"),
        ("class L(list):\n    def __eq__(self, other): return True\ndef f(x): return [L()]", "failed"),
        ("from unittest.mock import ANY\ndef f(x): return ANY", "failed"),
        ("import os\nassert not os.environ\n" + GOOD, "passed"),
        ("import os\nos.write(1, b'x' * 10**6)\nprint('y' * 10**6)\n" + GOOD, "passed"),
        ("import os, signal\ntry:\n    os.kill(-1, signal.SIGKILL)\nexcept OSError: pass\nos._exit(0)", "crashed"),
        ("from collections import Counter\ndef f(x): return x + 3\n", "passed"),
    ],
)  # fmt: skip
def test_only_the_sentinel_counts(program: str, outcome: str) -> None:
    # killing everyone is only tried where a PID namespace makes it harmless
    if "kill(-1" in program and not _namespaces():
        pytest.skip("no PID namespaces here")
    report = _run(program)
    assert report.outcome == outcome, report
    assert (report.passed == report.total) == (outcome == "passed")


def _namespaces() -> bool:
    return run_tests_sync("import os", ["assert os.getpid() == 1"]).outcome == "passed"


def test_trusted_kinds_of_equality_still_count() -> None:
    program = "from collections import Counter, OrderedDict\nfrom fractions import Fraction\n"
    tests = ["assert Counter('aa') == {'a': 2}", "assert OrderedDict(a=1) == {'a': 1}", "assert Fraction(1, 2) == 0.5"]
    assert _run(program, tests).outcome == "passed"


@pytest.mark.parametrize(
    "program", ["while True: pass", "while True: print('x' * 10**5)", "import time\ntime.sleep(99)"]
)
def test_a_deadline_is_kept(program: str) -> None:
    begin = time.monotonic()
    assert _run(program, timeout=0.5).outcome == "timeout"
    assert time.monotonic() - begin < 3.0


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


@pytest.mark.parametrize("namespaces", [True, False])
@pytest.mark.parametrize("ending", ["", "while True: pass", "os._exit(0)"])
def test_children_die_with_the_program(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, namespaces: bool, ending: str
) -> None:
    if not namespaces:  # as where the kernel refuses them
        script = open_folder / "isolation_sandbox.py"
        text = programs._SANDBOX.read_text()
        assert "_libc.unshare(" in text
        script.write_text(text.replace("_libc.unshare(", "(lambda flags: -1)("))
        monkeypatch.setattr(programs, "_SANDBOX", script)
    shutdown()
    heartbeat = open_folder / "heartbeat"
    report = _run(OUTLIVING.format(path=str(heartbeat)) + ending, timeout=0.6)
    assert report.outcome == {"": "passed", "while True: pass": "timeout", "os._exit(0)": "crashed"}[ending]
    size = heartbeat.stat().st_size
    assert size > 0
    time.sleep(0.1)
    assert heartbeat.stat().st_size == size
    shutdown()


def test_a_fork_bomb_ends_with_its_deadline() -> None:
    program = "import os, time\nfor _ in range(6): os.fork()\ntime.sleep(99)"
    assert _run(program, timeout=0.5).outcome == "timeout"
    assert _run(GOOD).outcome == "passed"


def test_programs_do_not_see_each_other() -> None:
    program = "import os, builtins\nassert not os.listdir('.')\nopen('left', 'w').close()\n"
    program += "assert not hasattr(builtins, 'left')\nbuiltins.left = 1\n" + GOOD
    assert {_run(program).outcome for _ in range(4)} == {"passed"}


def test_many_at_once_keep_their_own_results_and_their_pace() -> None:
    async def many() -> list[TestReport]:
        return list(
            await asyncio.gather(*(run_tests(f"def f(): return {i % 7}", ["assert f() == 3"]) for i in range(90)))
        )

    asyncio.run(many())  # starts the workers
    begin = time.monotonic()
    reports = asyncio.run(many())  # another event loop, the same workers
    assert [r.outcome == "passed" for r in reports] == [i % 7 == 3 for i in range(90)]
    assert time.monotonic() - begin < 6.0  # measured: 0.4 s; 60 a second would be 1.5 s


def test_no_tests_or_bad_limits_are_refused() -> None:
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


def test_shutdown_leaves_neither_processes_nor_folders() -> None:
    _run(GOOD)
    folders = [worker.folder for worker in programs._pool()._idle]
    assert folders
    assert all(folder.exists() for folder in folders)
    shutdown()
    assert not any(folder.exists() for folder in folders)
    assert not _children()
