"""The sandbox: three kinds of process, none of which trusts what it runs. A script, never imported.

    server      reads requests, forks a tester for each, keeps the deadline
      tester    runs the tests; asks the candidate over a socket for every call          (tester.py)
    zygote      forked before the first request, so its memory holds no test and no program, ever
      keeper    enters namespaces of its own (confine.py), and forks the candidate there as process 1
        candidate   reads its program from the socket, runs it, answers                  (candidate.py)

A verdict is what the tester hands in, over a pipe that no candidate has ever had open, behind a secret of this one
request. A program can print, exit, patch, search its memory or take over its socket: all it can do with any of that is
answer for its own functions. The end of a candidate's process 1 ends everything it started; what is left where
namespaces are refused (the weak sandbox) is found among the zygote's children and killed.

Started with `python -I -S`, inside bubblewrap (bubblewrap.py): no network, a read-only file system.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation import candidate, confine, tester
    from omni_thinker.isolation.wire import Gone
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import candidate
    import confine
    import tester
    from wire import Gone

    del sys.path[0]

# Loaded once here instead of once per candidate.
_WARM = "bisect copy dataclasses enum functools heapq itertools random re statistics string typing"
for _name in _WARM.split():
    __import__(_name)

_REPORT_BYTES = 4096
_LINGER_S = 0.1
_REFUSED = 70
"""How a keeper ends that got no namespaces."""
_REQUESTS, _REPLIES = 200, 201


# --- the zygote's side: whatever touches a program -------------------------------------------------------------------


def _candidate(channel: socket.socket, limits: dict[str, Any], count_processes: bool) -> None:
    os.setsid()
    confine.die_with_parent(signal.SIGKILL)
    os.dup2(channel.fileno(), 3)
    os.closerange(4, 256)
    if count_processes:
        confine.limit(limits)
    else:
        confine.limit(limits, None)  # it would count everything else that this user runs
    confine.forbid()
    try:
        candidate.Candidate(socket.socket(fileno=os.dup(3))).run()
    except Gone:
        return


def _keep(channel: socket.socket, limits: dict[str, Any], folder: str) -> None:
    os.setsid()
    confine.die_with_parent(signal.SIGKILL)
    counted = confine.enter(folder)
    pid = os.fork()
    if pid == 0:
        try:
            _candidate(channel, limits, counted)
        finally:
            os._exit(0)
    channel.close()
    _, status = os.waitpid(pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    os._exit(1 if code == _REFUSED else code)


def _breed(control: socket.socket) -> None:
    """Start a candidate for every channel that arrives; end it, and all that is left of it, on the next message."""
    confine.die_with_parent(signal.SIGKILL)
    confine.adopt_orphans()
    while True:
        text, channels, _, _ = socket.recv_fds(control, 256, 1)
        if not text:
            return
        folder = "/" if os.path.isdir(confine.BOX) else tempfile.mkdtemp(dir=".")
        keeper = os.fork()
        if keeper == 0:
            try:
                control.close()
                _keep(socket.socket(fileno=channels[0]), json.loads(text), os.path.abspath(folder))
            except OSError as exc:
                os.write(channels[0], f"{exc}".encode())  # the tester can't read this as a message
            finally:
                os._exit(_REFUSED)
        os.close(channels[0])
        linger = control.recv(1) == b"g"
        end = _end_of(keeper, _LINGER_S if linger else 0.0)
        _kill_all()
        if folder != "/":
            _remove(folder)
        control.send(end.encode())


def _end_of(keeper: int, linger: float) -> str:
    deadline = time.monotonic() + linger
    while True:
        info = os.waitid(os.P_PID, keeper, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            return str(info.si_status)
        if time.monotonic() >= deadline:
            return "alive"
        time.sleep(0.001)


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


def _remove(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        try:  # not shutil.rmtree: folders may be nested deeper than Python recurses
            os.waitpid(os.posix_spawnp("rm", ["rm", "-rf", "--", folder], {}), 0)
        except OSError:
            return


# --- the server's side: whatever knows a test ----------------------------------------------------------------------


def _test(channel: socket.socket, request: dict[str, Any], report: int, secret: bytes) -> None:
    confine.die_with_parent(signal.SIGKILL)
    os.closerange(_REQUESTS, _REPLIES + 1)
    confine.limit({**request, "memory_mb": 1024}, 0)  # a test that starts processes could leave them behind
    try:
        passed, reason = tester.run(channel, request)
    except Gone:
        text = "gone"
    else:
        text = json.dumps([passed, reason])[: _REPORT_BYTES - 100]
    os.write(report, secret + text.encode() + b"\n")


def _await(report: int, deadline: float) -> bytes | None:
    """What was handed in; None at the deadline."""
    received = b""
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([report, _REQUESTS], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        if report not in ready:  # the trainer is gone: it never sends before it has its reply
            os._exit(0)
        chunk = os.read(report, _REPORT_BYTES)
        received += chunk
        if not chunk:
            return b""
    return received


def _run(request: dict[str, Any], control: socket.socket) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    limits = {name: request[name] for name in ("timeout", "memory_mb")}
    secret = os.urandom(16).hex().encode()
    report_in, report_out = os.pipe()
    deadline = time.monotonic() + request["timeout"]
    pid = os.fork()
    if pid == 0:
        try:
            theirs.close()
            control.close()
            os.close(report_in)
            _test(ours, request, report_out, secret)
        finally:
            os._exit(0)
    os.close(report_out)
    ours.close()
    socket.send_fds(control, [json.dumps(limits).encode()], [theirs.fileno()])
    theirs.close()
    received = _await(report_in, deadline)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(report_in)
    gone = received == secret + b"gone\n"
    control.send(b"g" if gone else b"k")
    end = control.recv(64).decode()
    if not end:
        raise OSError("the zygote is gone")
    return _verdict(received, secret, end, len(request["tests"]))


def _verdict(received: bytes | None, secret: bytes, end: str, total: int) -> dict[str, Any]:
    if received is None or (received.endswith(b"gone\n") and end == str(128 + signal.SIGXCPU)):
        return {"passed": 0, "outcome": "timeout", "reason": "killed at the deadline"}
    if end == str(_REFUSED):
        raise OSError("namespaces for a candidate were refused")
    text = received.removeprefix(secret)
    if text == b"gone\n":
        code = int(end) if end.isdecimal() else 0
        how = f"killed by signal {code - 128}" if code > 128 else f"left with code {end} before the end"
        return {"passed": 0, "outcome": "crashed", "reason": how}
    try:
        if text == received:
            raise ValueError
        passed, reason = json.loads(text)
    except ValueError:
        return {"passed": 0, "outcome": "crashed", "reason": "the tests ended without a result"}
    return {
        "passed": passed,
        "outcome": "failed" if reason is not None or passed < total else "passed",
        "reason": reason,
    }


def main() -> None:
    os.environ.clear()  # Python itself sets LC_CTYPE at its start
    parent = os.getppid()
    confine.leave_root()
    confine.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    os.dup2(0, _REQUESTS)
    os.dup2(1, _REPLIES)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # of every process below: no output can fill a pipe
        os.dup2(nowhere, standard)
    os.close(nowhere)
    gc.freeze()
    control, below = socket.socketpair()
    if os.fork() == 0:
        try:
            control.close()
            os.closerange(_REQUESTS, _REPLIES + 1)
            _breed(below)
        finally:
            os._exit(0)
    below.close()
    confine.hide()
    os.write(_REPLIES, b'{"ready": true}\n')
    with os.fdopen(os.dup(_REQUESTS), "rb") as stream:
        for line in stream:
            try:
                reply = _run(json.loads(line), control)
            except OSError as exc:
                reply = {"outcome": "broken", "reason": f"the sandbox can't start a process: {exc}"}
            os.write(_REPLIES, json.dumps(reply).encode() + b"\n")
            if reply["outcome"] == "broken":
                os._exit(1)


if __name__ == "__main__":
    main()
