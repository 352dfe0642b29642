"""The sandbox process: a small warm Python that forks once per candidate. A script, never imported.

Imports the standard library alone and is started with `python -I -S`. For each request it forks a keeper, which
enters new namespaces where the kernel allows it and forks the candidate: there the candidate is process 1, so its
end ends everything it started, and no signal of its own reaches the outside. Where namespaces are refused, this
process is the reaper of all orphans below it and kills them by hand.

Success is what the candidate's process hands in after the last test: a secret that it can read from a pipe only, and
that is written there after the fork. Leaving early, printing and exit codes count for nothing.
"""

from __future__ import annotations

import ast
import collections  # noqa: F401
import ctypes
import gc
import json
import math
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import types
from typing import Any

# Loaded once here instead of once per candidate.
_WARM = "bisect copy datetime decimal fractions functools heapq itertools operator random re statistics string typing"
for _name in _WARM.split():
    __import__(_name)

_PDEATHSIG, _SUBREAPER = 1, 36
_NEWNET, _NEWPID, _NEWUSER, _NEWIPC = 0x40000000, 0x20000000, 0x10000000, 0x08000000
_FILE_BYTES = 1 << 20
_REPORT_BYTES = 4096
_PROCESSES = 64
_SLICE_S = 0.02
_libc = ctypes.CDLL(None, use_errno=True)


# --- the candidate's process -------------------------------------------------------------------------------------

_TRUSTED_EQ = {"collections", "fractions", "decimal", "datetime", "numbers"}


def plain(value: Any, depth: int = 6) -> Any:
    """`value`, unless it brings its own idea of equality (an object that equals everything passes any test).

    Raises AssertionError.
    """
    for cls in type.__dict__["__mro__"].__get__(type(value)):
        if "__eq__" in cls.__dict__:
            known = isinstance(cls.__dict__["__eq__"], types.WrapperDescriptorType)
            if not known and cls.__module__ not in _TRUSTED_EQ:
                raise AssertionError("the result defines its own equality")
            break
    if depth and isinstance(value, (list, tuple, set, frozenset, dict)):
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
        for item in items[:1000]:
            plain(item, depth - 1)
    return value


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


def _execute(request: dict[str, Any]) -> tuple[int, str | None]:
    """(tests that hold, first reason why one doesn't)."""
    module = types.ModuleType("candidate")
    # The harness is not to be had by `import __main__`; dataclasses look their module up here.
    sys.modules["candidate"] = sys.modules["__main__"] = module
    space = module.__dict__
    try:
        exec(compile(request["program"], "<program>", "exec"), space)  # noqa: S102
        exec(compile(request["setup"], "<setup>", "exec"), space)  # noqa: S102
    except BaseException as exc:  # SystemExit above all
        return 0, _why(exc)
    passed, reason = 0, None
    for test in request["tests"]:
        try:
            space["__plain__"] = plain
            tree = ast.fix_missing_locations(_Guard().visit(ast.parse(test)))
            exec(compile(tree, "<test>", "exec"), space)  # noqa: S102
            passed += 1
        except BaseException as exc:
            reason = reason or f"{test.strip()[:80]}: {_why(exc)}"
    return passed, reason


def _candidate(request: dict[str, Any], report: int, secret: int, count_processes: bool) -> None:
    read, write, leave, dumps = os.read, os.write, os._exit, json.dumps  # bound before the program can replace them
    _limits(request, count_processes)
    passed, reason = _execute(request)
    line = dumps({"passed": passed, "reason": reason}).encode()[: _REPORT_BYTES - 100]
    write(report, read(secret, 64) + line + b"\n")
    leave(0)


# --- the keeper between the two ----------------------------------------------------------------------------------


def _enter(uid: int | None) -> bool:
    """Give up what can be given up. True where processes are counted for this candidate alone."""
    if uid is not None:
        _libc.unshare(_NEWPID | _NEWNET | _NEWIPC)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        return True
    if _libc.unshare(_NEWUSER | _NEWPID | _NEWNET | _NEWIPC) == 0:
        return True
    _libc.unshare(_NEWPID | _NEWNET | _NEWIPC)  # in a container that has capabilities but no user namespaces
    return False


def _keep(request: dict[str, Any], report: int, secret: int, uid: int | None) -> None:
    os.setsid()
    counted = _enter(uid)
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


def _run(request: dict[str, Any], requests: int, uid: int | None) -> dict[str, Any]:
    folder = tempfile.mkdtemp(dir=".")
    if uid is not None:
        os.chown(folder, uid, uid)
    report_in, report_out = os.pipe()  # in this order: the child moves the two it needs down to 3 and 4
    secret_in, secret_out = os.pipe()
    deadline = time.monotonic() + request["timeout"]
    keeper = os.fork()
    if keeper == 0:
        try:
            os.chdir(folder)
            tempfile.tempdir = os.getcwd()
            os.dup2(report_out, 3, inheritable=False)
            os.dup2(secret_in, 4, inheritable=False)
            os.closerange(5, 256)
            _keep(request, 3, 4, uid)
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
    shutil.rmtree(folder, ignore_errors=True)
    return _verdict(received, secret, end, len(request["tests"]))


def _verdict(received: bytes, secret: bytes, end: str, total: int) -> dict[str, Any]:
    if end == "timeout":
        return {"passed": 0, "outcome": "timeout", "reason": "killed at the deadline"}
    if not received.startswith(secret):
        reason = end if end != "done" else "handed in a result without the secret"
        return {"passed": 0, "outcome": "crashed", "reason": reason}
    try:
        result = json.loads(received[len(secret) :])
        passed, reason = int(result["passed"]), result["reason"]
    except (ValueError, KeyError, TypeError):
        return {"passed": 0, "outcome": "crashed", "reason": "handed in a broken result"}
    return {"passed": passed, "outcome": "passed" if passed == total else "failed", "reason": reason}


def _candidate_uid() -> int | None:
    """A user to become, where this is root and the standard library is readable to others."""
    if os.geteuid() != 0:
        return None
    uid = 60000 + os.getpid() % 5000
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(0 if os.access(os.__file__, os.R_OK) and os.access(".", os.X_OK) else 1)
        finally:
            os._exit(1)
    return uid if os.waitpid(pid, 0)[1] == 0 else None


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
    uid = _candidate_uid()
    gc.freeze()
    os.write(replies, b'{"ready": true}\n')
    with os.fdopen(os.dup(requests), "rb") as stream:
        for line in stream:
            try:
                reply = _run(json.loads(line), requests, uid)
            except OSError as exc:
                _kill_all()
                reply = {"outcome": "broken", "reason": f"the sandbox can't start a process: {exc}"}
            os.write(replies, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
