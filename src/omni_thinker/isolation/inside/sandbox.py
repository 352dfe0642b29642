"""The sandbox: three kinds of process, none of which trusts what it runs. A script, never imported.

    server      reads requests, forks a tester for each, keeps the deadline
      tester    runs the tests; asks the candidate over a socket for every call          (tester.py)
    zygote      starts a fresh process for every program                                 (zygote.py)
      candidate   reads its program from the socket, runs it, answers                    (candidate.py)

A verdict is what the tester hands in, over a pipe that no candidate has ever had open, behind a secret of this one
request. A program can print, exit, patch, search its memory or take over its socket: all it can do with any of that is
answer for its own functions.

Started with `python -I -S`, inside bubblewrap (bubblewrap.py): no network, a read-only file system. argv: none, or a
folder and the packages in it that programs may import."""

import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import candidate, confine, tester, zygote
    from omni_thinker.isolation.inside.wire import Gone
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import candidate
    import confine
    import tester
    import zygote
    from wire import Gone

    del sys.path[0]

# Loaded once here instead of once per candidate.
_WARM = "bisect copy dataclasses enum functools heapq itertools random re statistics string typing"
for _name in _WARM.split():
    __import__(_name)

_REPORT_BYTES = 4096


def _serve(channel: socket.socket) -> None:
    try:
        candidate.Candidate(channel).run()
    except Gone:
        return


def _test(channel: socket.socket, request: dict[str, Any], report: int, secret: bytes) -> None:
    confine.die_with_parent(signal.SIGKILL)
    os.closerange(zygote.REQUESTS, zygote.REPLIES + 1)
    confine.limit({**request, "memory_mb": 1024}, 0)  # a test that starts processes could leave them behind
    try:
        passed, reason = tester.run(channel, request)
    except Gone:
        text = "gone"
    else:
        text = json.dumps([passed, reason])[: _REPORT_BYTES - 100]
    os.write(report, secret + text.encode() + b"\n")


def _await(report: int, deadline: float) -> bytes | None:
    """Read the tester's report; None at the deadline."""
    received = b""
    while not received.endswith(b"\n"):
        ready, _, _ = select.select([report, zygote.REQUESTS], [], [], max(0.0, deadline - time.monotonic()))
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
    zygote.start_worker(control, limits, theirs)
    received = _await(report_in, deadline)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(report_in)
    gone = received == secret + b"gone\n"
    end = zygote.end_worker(control, linger=gone)
    return _verdict(received, secret, end, request)


def _verdict(received: bytes | None, secret: bytes, end: str, request: dict[str, Any]) -> dict[str, Any]:
    total = len(request["tests"])
    if received is None or (received.endswith(b"gone\n") and end == str(128 + signal.SIGXCPU)):
        why = f"killed at the deadline of {request['timeout']:g} s (timeout)"
        return {"passed": 0, "outcome": "timeout", "reason": why}
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


def _load(folder: str, packages: list[str]) -> None:
    """Import packages for programs and tests alike, once and before there are any."""
    sys.path.append(folder)
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # threads would not outlive a fork
    for name in packages:
        __import__(name)
    os.environ.clear()


def main() -> None:
    zygote.begin()
    if len(sys.argv) > 1:
        _load(sys.argv[1], sys.argv[2:])
    control = zygote.spawn(_serve)
    confine.hide()
    os.write(zygote.REPLIES, b'{"ready": true}\n')
    zygote.answer_requests(lambda request: _run(request, control))


if __name__ == "__main__":
    main()
