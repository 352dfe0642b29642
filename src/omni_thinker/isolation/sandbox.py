"""The sandbox process: a small warm Python that forks once per candidate. A script, never imported.

Imports the standard library alone and is started with `python -I -S`. For each request it forks a keeper, which
enters new namespaces where the kernel allows it and forks the candidate: there the candidate is process 1, so its
end ends everything it started, and no signal of its own reaches the outside. Where namespaces are refused, this
process is the reaper of all orphans below it and kills them by hand.

Where mounts are allowed, too (a user namespace, or root), the candidate's whole file system is a small tmpfs of its
own with the standard library and /usr mounted into it, read-only: nothing else of the host can be read, let alone
written, and all that it leaves vanishes with it. It has no capabilities, and can't get any. Where mounts are refused,
an ordinary user's candidates have that user's file access; root's become a user without files, or are refused.

Success is what the candidate's process hands in after the last test: a secret that it can read from a pipe only, and
that is written there after the fork. Leaving early, printing and exit codes count for nothing.

Not prevented: tests run in the candidate's own process, so a program written against this very file can look for the
pipes and hand in a success itself, or read from the calling frame what a test expects while the test runs. Only the
obvious ways are closed: the tests are on no frame's variables while the program runs, and the harness has its own
copy of the builtins and calls nothing that the program could have replaced.
"""

from __future__ import annotations

import ast
import builtins
import collections
import ctypes
import datetime
import decimal
import fractions
import gc
import json
import math
import numbers
import os
import resource
import select
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation import confine
else:  # a script without the package: its neighbour is taken from its own folder, and out of candidates' sight
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import confine

    del sys.path[0], sys.modules["confine"]

# What is defined below keeps these, whatever a program does to its own builtins. mypy knows no such assignment.
globals()["__builtins__"] = dict(vars(builtins))

# Loaded once here instead of once per candidate.
_WARM = "bisect copy datetime decimal fractions functools heapq itertools operator random re statistics string typing"
for _name in _WARM.split():
    __import__(_name)

_PDEATHSIG, _SUBREAPER = 1, 36
_FILE_BYTES = 1 << 20
_REPORT_BYTES = 4096
_PROCESSES = 64
_SLICE_S = 0.02
_REFUSED = "programs are not run with root's access to files, and nothing less can be had here: run as an ordinary user"
_libc = ctypes.CDLL(None, use_errno=True)


# --- the candidate's process -------------------------------------------------------------------------------------

_TRUSTED_EQ = {
    cls: cls.__dict__["__eq__"]
    for module in (collections, fractions, decimal, datetime, numbers)
    for cls in vars(module).values()
    if isinstance(cls, type) and "__eq__" in cls.__dict__
}
_WRAPPER = types.WrapperDescriptorType
_MRO = type.__dict__["__mro__"].__get__


def plain(value: Any, depth: int = 6) -> Any:
    """`value`, unless it brings its own idea of equality (an object that equals everything passes any test).

    Raises AssertionError.
    """
    for cls in _MRO(type(value)):
        if "__eq__" in cls.__dict__:
            equality = cls.__dict__["__eq__"]
            # Equality that is written in Python asks methods, which a subclass may have replaced.
            trusted = cls is type(value) and equality is _TRUSTED_EQ.get(cls)
            if not trusted and type(equality) is not _WRAPPER:
                raise AssertionError("the result defines its own equality")
            break
    if depth:
        for item in _items(value)[:1000]:
            plain(item, depth - 1)
    return value


def _items(value: Any) -> list[Any]:
    """What is in a container, whatever a subclass says."""
    if isinstance(value, dict):
        return [*dict.keys(value), *dict.values(value)]
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset)
    return next(([*kind.__iter__(value)] for kind in kinds if isinstance(value, kind)), [])


class _Guard(ast.NodeTransformer):
    """Where a test compares with a literal, the other side must be a plain value."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
            if _literal(node.comparators[0]):
                node.left = _guarded(node.left)
            elif _literal(node.left):
                node.comparators = [_guarded(node.comparators[0])]
        return node


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return False
    return True


def _guarded(node: ast.expr) -> ast.expr:
    call = ast.Call(func=ast.Name(id="__plain__", ctx=ast.Load()), args=[node], keywords=[])
    return ast.copy_location(call, node)


def _limits(request: dict[str, Any], count_processes: bool) -> None:
    cpu = math.ceil(request["timeout"]) + 1
    limits = [
        (resource.RLIMIT_AS, request["memory_mb"] << 20),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ]
    if count_processes:  # else it would count everything else that this user runs
        limits.append((resource.RLIMIT_NPROC, _PROCESSES))
    for which, value in limits:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _why(exc: BaseException) -> str:
    try:
        return f"{type(exc).__name__}: {exc}"[:200]
    except BaseException:  # a hostile __str__
        return type(exc).__name__[:200]


def _steps(request: dict[str, Any]) -> Iterator[tuple[str | None, Any]]:
    """(the test or None, its code or why it can't be compiled), and empties `request`."""
    steps: list[tuple[str | None, Any]] = []
    texts = [(None, "<program>", request["program"]), (None, "<setup>", request["setup"])]
    for label, name, text in [*texts, *((test.strip()[:80], "<test>", test) for test in request["tests"])]:
        try:
            tree = ast.parse(text, name)
            if label is not None:
                tree = ast.fix_missing_locations(_Guard().visit(tree))
            steps.append((label, compile(tree, name, "exec", dont_inherit=True)))
        except BaseException as exc:
            steps.append((label, _why(exc)))
    request.clear()
    gc.freeze()  # also what gc.get_objects() shows
    return iter(steps)


def _execute(request: dict[str, Any]) -> tuple[int, str | None]:
    """(tests that hold, first reason why one doesn't). The steps to come are in no variable of any frame."""
    module = types.ModuleType("candidate")
    # The harness is not to be had by `import __main__`; dataclasses look their module up here.
    sys.modules["candidate"] = sys.modules["__main__"] = module
    space = module.__dict__
    space["__builtins__"] = builtins  # not the harness's own
    passed: int = 0
    reason: str | None = None
    for label, code in _steps(request):
        if isinstance(code, str):
            problem: str | None = code
        else:
            problem = _step(code, space, label is not None)
        if problem is None:
            passed += label is not None
        elif label is None:
            return 0, problem
        else:
            reason = reason or f"{label}: {problem}"
    return passed, reason


def _step(code: Any, space: dict[str, Any], test: bool) -> str | None:
    try:
        if test:
            space["__plain__"] = plain
        exec(code, space)  # noqa: S102
    except BaseException as exc:  # SystemExit above all
        return _why(exc)
    return None


def _candidate(request: dict[str, Any], report: int, secret: int, count_processes: bool) -> None:
    read, write, leave = os.read, os.write, os._exit  # bound before the program can replace them
    confine.disarm()
    report, secret = _move(report), _move(secret)
    _limits(request, count_processes)
    passed, reason = _execute(request)
    told = "" if reason is None else f"?{reason}"
    line = f"{passed}{told}".encode(errors="replace").replace(b"\n", b" ")[: _REPORT_BYTES - 100]
    write(report, read(secret, 64) + line + b"\n")
    leave(0)


def _move(descriptor: int) -> int:
    """To a number that can't be guessed (it can be searched for)."""
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1 << 14)
    while True:
        number = 64 + int.from_bytes(os.urandom(4)) % max(1, highest - 64)
        try:
            os.fstat(number)
        except OSError:
            os.dup2(descriptor, number, inheritable=False)
            os.close(descriptor)
            return number


# --- the keeper between the two ----------------------------------------------------------------------------------


def _keep(request: dict[str, Any], report: int, secret: int, mode: confine.Mode) -> None:
    os.setsid()
    try:
        counted = confine.enter(mode)
    except OSError as exc:
        os.write(report, os.read(secret, 64) + f"!{exc}\n".encode())
        return
    tempfile.tempdir = os.getcwd()
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _candidate(request, report, secret, counted)
        os._exit(0)
    os.close(report)
    _, status = os.waitpid(pid, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


# --- the sandbox -------------------------------------------------------------------------------------------------


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as stream:
            return [int(pid) for pid in stream.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(name) == os.getpid()]


def _parent(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return int(stream.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _kill_all() -> None:
    """Kill and reap whatever is below this process. Orphans of the killed arrive here and go the same way."""
    while True:
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _await(keeper: int, report: int, requests: int, deadline: float) -> tuple[bytes, str]:
    """(what was handed in, "done" | "timeout" | how the process ended)."""
    received = b""
    ended: str | None = None
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            return b"", "timeout"
        ready, _, _ = select.select([report, requests], [], [], 0 if ended else min(left, _SLICE_S))
        if requests in ready:  # the trainer is gone: it never sends before it has its reply
            _kill_all()
            os._exit(0)
        if report in ready:
            chunk = os.read(report, _REPORT_BYTES)
            received += chunk
            if not chunk or len(received) > 2 * _REPORT_BYTES:
                return b"", ended or _end_of(keeper, deadline)
        elif ended:
            return b"", ended
        elif os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            # A grandchild may hold the pipe open: the end of the keeper is an end, too.
            ended = _end_of(keeper, deadline)
    return received, "done"


def _end_of(keeper: int, deadline: float) -> str:
    while time.monotonic() < deadline:
        info = os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            code = info.si_status
            if code == 128 + signal.SIGXCPU:
                return "timeout"
            return f"killed by signal {code - 128}" if code > 128 else f"left with code {code} before the end"
        time.sleep(0.001)
    return "timeout"


def _run(request: dict[str, Any], requests: int, mode: confine.Mode) -> dict[str, Any]:
    total, folder = len(request["tests"]), None if mode.view else tempfile.mkdtemp(dir=".")
    if folder is not None and mode.uid is not None:
        os.chown(folder, mode.uid, mode.uid)
    report_in, report_out = os.pipe()  # in this order: the child moves the two it needs down to 3 and 4
    secret_in, secret_out = os.pipe()
    deadline = time.monotonic() + request["timeout"]
    keeper = os.fork()
    if keeper == 0:
        try:
            if folder is not None:
                os.chdir(folder)
            os.dup2(report_out, 3, inheritable=False)
            os.dup2(secret_in, 4, inheritable=False)
            os.closerange(5, 256)
            _keep(request, 3, 4, mode)
        finally:
            os._exit(70)
    os.close(report_out)
    os.close(secret_in)
    secret = os.urandom(16).hex().encode()
    os.write(secret_out, secret)
    received, end = _await(keeper, report_in, requests, deadline)
    _kill_all()
    for descriptor in (report_in, secret_out):
        os.close(descriptor)
    if folder is not None:
        _remove(folder)
    return _verdict(received, secret, end, total)


def _remove(folder: str) -> None:
    """Best effort: what a candidate left has no say in its verdict."""
    try:
        os.rmdir(folder)
    except OSError:
        try:  # not shutil.rmtree: folders may be nested deeper than Python recurses
            os.waitpid(os.posix_spawnp("rm", ["rm", "-rf", "--", folder], {}), 0)
        except OSError:
            return


def _verdict(received: bytes, secret: bytes, end: str, total: int) -> dict[str, Any]:
    if end == "timeout":
        return {"passed": 0, "outcome": "timeout", "reason": "killed at the deadline"}
    if not received.startswith(secret):
        reason = end if end != "done" else "handed in a result without the secret"
        return {"passed": 0, "outcome": "crashed", "reason": reason}
    if received.startswith(b"!", len(secret)):
        raise OSError(received[len(secret) + 1 :].decode(errors="replace").strip())
    number, _, told = received[len(secret) :].decode(errors="replace").strip("\n").partition("?")
    if not number.isdecimal() or int(number) > total or (int(number) == total) == bool(told):
        return {"passed": 0, "outcome": "crashed", "reason": "handed in a broken result"}
    return {"passed": int(number), "outcome": "failed" if told else "passed", "reason": told or None}


def main() -> None:
    os.environ.clear()  # Python itself sets LC_CTYPE at its start
    parent = os.getppid()
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
    # High numbers, closed in every candidate: its standard streams lead nowhere, so no output can fill a pipe.
    requests, replies = 200, 201
    os.dup2(0, requests)
    os.dup2(1, replies)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    os.chmod(".", 0o711)  # noqa: S103  (another user must get through to its folder)
    mode = confine.best_mode()
    if mode is None or mode.view:  # no folder is needed, so none can be left behind
        folder = os.getcwd()
        os.chdir("/")
        os.rmdir(folder)
    gc.freeze()
    os.write(replies, b'{"ready": true}\n')
    with os.fdopen(os.dup(requests), "rb") as stream:
        for line in stream:
            request = json.loads(line)
            line = b""  # candidates can read the variables of the frames that they were forked in
            try:
                reply = {"outcome": "broken", "reason": _REFUSED} if mode is None else _run(request, requests, mode)
            except OSError as exc:
                _kill_all()
                reply = {"outcome": "broken", "reason": f"the sandbox can't start a process: {exc}"}
            os.write(replies, json.dumps(reply).encode() + b"\n")
            reply = {}  # it may quote a test


if __name__ == "__main__":
    main()
