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
        ("class E:\n    def __eq__(self, other): return True\nE.__module__ = 'collections'\n"
         "def f(x): return E()", "failed"),
        ("from fractions import Fraction\nclass E(Fraction):\n    def __eq__(self, other): return True\n"
         "E.__eq__.__module__ = 'fractions'\ndef f(x): return E(1)", "failed"),
        ("class E:\n    def __eq__(self, other): return True\nclass L(list):\n    def __iter__(self): return iter([])\n"
         "def f(x): return L([E()])", "failed"),
        ("from collections import Counter\nCounter.__eq__ = lambda self, other: True\n"
         "def f(x): return Counter()", "failed"),
        ("import builtins, json, os\nbuiltins.isinstance = lambda *a: False\nbuiltins.type = lambda v: int\n"
         "builtins.exec = lambda *a: None\njson.dumps = lambda v: '2'\nos.write = lambda *a: 0\n"
         "def f(x): return 7", "failed"),
        ("import sys\nframe, seen = sys._getframe(), ''\nwhile frame:\n    seen += str(frame.f_locals)\n"
         "    frame = frame.f_back\nassert 'f(2)' not in seen\n" + GOOD, "passed"),
        ("import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n" + GOOD, "passed"),
        ("import multiprocessing, decimal, json, subprocess\n"
         "assert subprocess.run(['true'], stdout=subprocess.DEVNULL).returncode == 0\n" + GOOD, "passed"),
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
    if not namespaces:
        _refuse_namespaces(open_folder, monkeypatch)
    shutdown()
    heartbeat = open_folder / "heartbeat"
    seen = namespaces and _private_files()  # then the heartbeat would be in a file system of its own
    try:
        report = _run(OUTLIVING.format(path="heartbeat" if seen else str(heartbeat)) + ending, timeout=0.6)
    except IsolationError as exc:
        shutdown()
        _only_root_is_refused(exc)
        pytest.skip("root whose standard library nobody else can read runs no programs without namespaces")
    assert report.outcome == {"": "passed", "while True: pass": "timeout", "os._exit(0)": "crashed"}[ending]
    [sandbox] = programs._pool()._idle
    assert not Path(f"/proc/{sandbox.pid}/task/{sandbox.pid}/children").read_text()
    if not seen:
        size = heartbeat.stat().st_size
        assert size > 0
        time.sleep(0.1)
        assert heartbeat.stat().st_size == size
    shutdown()


def _refuse_namespaces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel refuses them."""
    script = folder / "sandbox.py"
    script.write_text(programs._SANDBOX.read_text())
    text = programs._SANDBOX.with_name("confine.py").read_text()
    assert "_libc.unshare(" in text
    script.with_name("confine.py").write_text(text.replace("_libc.unshare(", "(lambda flags: -1)("))
    monkeypatch.setattr(programs, "_SANDBOX", script)


def _only_root_is_refused(exc: IsolationError) -> None:
    assert os.geteuid() == 0
    assert "ordinary user" in str(exc)


def _private_files() -> bool:
    return run_tests_sync("import os", ["assert os.getcwd() == '/work'"]).outcome == "passed"


def test_the_files_of_the_host_are_out_of_reach() -> None:
    if not _private_files():
        pytest.skip("mounts are refused here")
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
        if action(*arguments) != -1: done.append((action, arguments))
    except OSError: pass
libc = ctypes.CDLL(None)
attempt(libc.unshare, 0x10000000 | 0x20000)
attempt(libc.mount, None, b"/usr", None, 32 | 4096, None)
attempt(libc.umount2, b"/usr", 2)
attempt(os.chroot, ".")
attempt(os.mknod, "disk", 0o60666, os.makedev(254, 0))
attempt(open, "/usr/canary-of-the-tests", "w")
attempt(open, os.path.dirname(os.__file__) + "/canary-of-the-tests", "w")
attempt(os.listdir, "/proc")
for folder in {[str(folder) for folder in folders]!r}:
    attempt(open, folder + "/canary")
    attempt(open, folder + "/canary", "w")
    attempt(open, folder + "/new", "w")
    attempt(os.unlink, folder + "/canary")
    attempt(os.listdir, folder)
open("own", "w").write("x")
"""
        report = _run(program, ["assert done == []", "assert open('own').read() == 'x'"])
        assert report.outcome == "passed", report
        for folder in folders:
            assert [path.name for path in folder.iterdir()] == ["canary"]
            assert (folder / "canary").read_text() == "alive"
    finally:
        for folder in folders:
            shutil.rmtree(folder)


def test_without_namespaces_programs_never_have_the_access_of_root(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse_namespaces(open_folder, monkeypatch)
    shutdown()
    try:
        deep = "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')\n"
        report = _run(deep + GOOD, ["import os\nassert os.geteuid() != 0", *TESTS])
        assert report.outcome == "passed"
        [sandbox] = programs._pool()._idle
        assert not [*sandbox.folder.iterdir()]
    except IsolationError as exc:
        _only_root_is_refused(exc)
    finally:
        shutdown()


def test_a_fork_bomb_ends_with_its_deadline() -> None:
    program = "import os, time\nfor _ in range(6):\n    try: os.fork()\n    except OSError: pass\ntime.sleep(99)"
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
    if _private_files():
        assert not any(folder.exists() for folder in folders), "nothing is left if this process is killed"
    shutdown()
    assert not any(folder.exists() for folder in folders)
    assert not _children()
