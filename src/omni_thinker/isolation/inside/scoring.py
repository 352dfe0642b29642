"""The server of walled scorers: a fresh process for every request. A script, never imported.

    server      reads requests, keeps the deadline, hands back what the worker said
    zygote      loads the scorer once, makes what it needs ready, forks a worker for every request     (zygote.py)
      worker    reads its one request, scores, answers, and is killed with all that it started

argv: a file that defines `handle(request) -> reply` and may define `prepare(settings)`, then folders for sys.path.
A worker has never seen an earlier answer, and no later one sees it. Unless the request allows it, code made of a text
isn't run in it (guard.py)."""

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import confine, guard, handler, zygote
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import confine
    import guard
    import handler
    import zygote

    del sys.path[0]

_READ_BYTES = 1 << 16
_MAX_REPLY = 1 << 21
"""Longest reply in bytes, half of what the trainer takes: this server's own words are around it."""
_ZYGOTE_BYTES = 4 << 30


class _Handler:
    """The scorer's file, loaded in the zygote."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._module: ModuleType | None = None
        self._fault = ""

    def prepare(self, order: zygote.Order) -> None:
        """Load the file, and make ready what its `prepare` makes of the order's settings. Faults are told later."""
        self._fault = ""
        try:
            if self._module is None:
                self._module = handler.load(self._path)
            if order.get("settings") is not None and hasattr(self._module, "prepare"):
                self._module.prepare(order["settings"])
        except Exception as exc:
            self._fault = f"{type(exc).__name__}: {exc}"[:300]

    def serve(self, channel: socket.socket) -> None:
        """Answer the one request of `channel`."""
        stream = channel.makefile("rwb")
        request = json.loads(stream.readline())
        if self._fault or self._module is None:
            reply: Any = {"error": self._fault}
        else:
            if not request["evaluates"]:
                guard.data_only()
            reply = _call(self._module.handle, request["request"])
        stream.write(json.dumps(reply).encode() + b"\n")
        stream.flush()


def _call(handle: Callable[[Any], Any], request: Any) -> Any:
    try:
        return handle(request)
    except Exception as exc:
        return {"error": f"{type(exc).__name__}: {exc}"[:300]}


def _run(request: dict[str, Any], control: socket.socket) -> dict[str, Any]:
    ours, theirs = socket.socketpair()
    order = {name: request[name] for name in ("timeout", "memory_mb", "settings")}
    zygote.start_worker(control, order, theirs)
    zygote.await_prepared(control)
    deadline = time.monotonic() + request["timeout"]
    line = json.dumps({name: request[name] for name in ("request", "evaluates")}).encode() + b"\n"
    received = _exchange(ours, line, deadline)
    ours.close()
    end = zygote.end_worker(control, linger=received == b"")
    if received is None or (not received and end == str(128 + signal.SIGXCPU)):
        return {"error": "no reply before the deadline"}
    if not received and end == str(guard.EVALUATED) and not request["evaluates"]:
        return {"error": "evaluated", "evaluated": True}
    try:
        reply = json.loads(received)
        if len(json.dumps(reply)) <= _MAX_REPLY:
            return {"reply": reply}
        return {"error": "the scorer's reply is too long"}
    except (ValueError, RecursionError):
        return {"error": f"the scorer's process ended without a reply (exit code {end})"}


def _exchange(channel: socket.socket, line: bytes, deadline: float) -> bytes | None:
    """What the worker answers, up to the end of its line; b"" where it ended without; None at the deadline."""
    received = bytearray()
    try:
        channel.settimeout(_left(deadline))
        channel.sendall(line)
        while not received.endswith(b"\n"):
            channel.settimeout(_left(deadline))
            chunk = channel.recv(_READ_BYTES)
            received += chunk
            if not chunk or len(received) > _MAX_REPLY:
                return b""
        _left(deadline)
    except TimeoutError:
        return None
    except OSError:
        return b""
    return bytes(received)


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError once it is over, however steadily a worker writes."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def main() -> None:
    loaded = _Handler(sys.argv[1])
    sys.path[:0] = sys.argv[2:]
    resource.setrlimit(resource.RLIMIT_AS, (_ZYGOTE_BYTES, _ZYGOTE_BYTES))  # `prepare` has a bound as well
    zygote.begin()
    control = zygote.spawn(loaded.serve, loaded.prepare)
    confine.hide()
    os.write(zygote.REPLIES, b'{"ready": true}\n')
    zygote.answer_requests(lambda request: _run(request, control))


if __name__ == "__main__":
    main()
