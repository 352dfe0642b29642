"""The part of a sandbox that starts fresh processes for untrusted work. Loaded by scripts inside the sandbox.

A zygote is forked before the first request, so its memory never holds a test, an answer or a program. For every
channel that arrives it forks

    keeper            enters namespaces of its own (confine.py), and forks there, as process 1,
      worker          which serves the channel and ends

The end of process 1 ends everything it started. What is left where namespaces are refused (the weak sandbox) is found
among the zygote's children and killed."""

import gc
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import confine
else:
    import confine

REFUSED = 70
"""Exit code of a keeper that got no namespaces."""
REQUESTS, REPLIES = 200, 201
"""The server's pipes, out of the way of 0 to 2, which lead nowhere in every process of a sandbox."""
_LINGER_S = 0.1
_MAX_ORDER = 1 << 16

Order = dict[str, Any]
"""What the zygote is told of a piece of work: its limits. Never the work itself."""


def begin() -> None:
    """Become the server: no environment, no root, an end with the parent, pipes moved to REQUESTS and REPLIES."""
    os.environ.clear()  # Python itself sets LC_CTYPE at its start
    parent = os.getppid()
    confine.leave_root()
    confine.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    os.dup2(0, REQUESTS)
    os.dup2(1, REPLIES)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # of every process below: no output can fill a pipe
        os.dup2(nowhere, standard)
    os.close(nowhere)


def spawn(serve: Callable[[socket.socket], None], prepare: Callable[[Order], None] | None = None) -> socket.socket:
    """Fork the zygote; the returned socket controls it.

    serve: called in each worker with its channel. prepare: called in the zygote with each order before it forks, and
    once with an empty one; for trusted work that every later worker should find done."""
    gc.freeze()
    control, below = socket.socketpair()
    if os.fork() == 0:
        try:
            control.close()
            os.closerange(REQUESTS, REPLIES + 1)
            _breed(below, serve, prepare)
        finally:
            os._exit(0)
    below.close()
    return control


def answer_requests(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer JSON lines until they end. An OSError means that no process can be had: it is told, and this one ends."""
    with os.fdopen(os.dup(REQUESTS), "rb") as stream:
        for line in stream:
            try:
                reply = answer(json.loads(line))
            except OSError as exc:
                reply = {"outcome": "broken", "reason": f"the sandbox can't start a process: {exc}"}
            os.write(REPLIES, json.dumps(reply).encode() + b"\n")
            if reply.get("outcome") == "broken":
                os._exit(1)


def start_worker(control: socket.socket, order: Order, channel: socket.socket) -> None:
    """Have the zygote start a worker on `channel`, which is closed on this side."""
    socket.send_fds(control, [json.dumps(order).encode()], [channel.fileno()])
    channel.close()


def await_prepared(control: socket.socket) -> None:
    """Wait until the zygote has called `prepare` for the worker that was just started."""
    if not control.recv(1):
        raise OSError("the zygote is gone")


def end_worker(control: socket.socket, linger: bool) -> str:
    """End the worker and all it started: its exit code, 128 + signal, or "alive" if it had to be killed.

    linger: wait a moment for it to end by itself, so that its exit code is known."""
    control.send(b"g" if linger else b"k")
    end = control.recv(64).decode()
    if not end:
        raise OSError("the zygote is gone")
    if end == str(REFUSED):
        raise OSError("namespaces for a worker were refused")
    return end


def _breed(
    control: socket.socket, serve: Callable[[socket.socket], None], prepare: Callable[[Order], None] | None
) -> None:
    confine.die_with_parent(signal.SIGKILL)
    confine.adopt_orphans()
    if prepare is not None:
        prepare({})
    while True:
        text, channels, _, _ = socket.recv_fds(control, _MAX_ORDER, 1)
        if not text:
            return
        order = json.loads(text)
        if prepare is not None:
            prepare(order)
            control.send(b".")
        folder = "/" if os.path.isdir(confine.BOX) else tempfile.mkdtemp(dir=".")
        keeper = os.fork()
        if keeper == 0:
            try:
                control.close()
                _keep(socket.socket(fileno=channels[0]), order, os.path.abspath(folder), serve)
            except OSError as exc:
                os.write(channels[0], f"{exc}".encode())  # the server can't read this as a message
            finally:
                os._exit(REFUSED)
        os.close(channels[0])
        linger = control.recv(1) == b"g"
        end = _end_of(keeper, _LINGER_S if linger else 0.0)
        _kill_all()
        if folder != "/":
            _remove(folder)
        control.send(end.encode())


def _keep(channel: socket.socket, order: Order, folder: str, serve: Callable[[socket.socket], None]) -> None:
    os.setsid()
    confine.die_with_parent(signal.SIGKILL)
    counted = confine.enter(folder)
    pid = os.fork()
    if pid == 0:
        try:
            _work(channel, order, counted, serve)
        finally:
            os._exit(0)
    channel.close()
    _, status = os.waitpid(pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    os._exit(1 if code == REFUSED else code)


def _work(channel: socket.socket, order: Order, count_processes: bool, serve: Callable[[socket.socket], None]) -> None:
    os.setsid()
    confine.die_with_parent(signal.SIGKILL)
    os.dup2(channel.fileno(), 3)
    os.closerange(4, 256)
    if count_processes:
        confine.limit(order)
    else:
        confine.limit(order, None)  # it would count everything else that this user runs
    confine.forbid()
    serve(socket.socket(fileno=os.dup(3)))


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
