"""One worker process that answers JSON lines and can be killed at any moment."""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from omni_thinker.isolation.scratch import Scratch

START_DEADLINE_S = 60.0
_READ_BYTES = 1 << 16
_MAX_REPLY = 1 << 22


class IsolationError(Exception):
    """The machinery failed; says nothing about the text that was to be scored."""


class WorkerTimeout(IsolationError):
    """No reply before the deadline; the worker was killed."""


class WorkerDied(IsolationError):
    """The worker went away in the middle of a request."""


class DiedStarting(IsolationError):
    """The worker went away before it was ready."""


class Worker:
    """A child process in a session of its own, with an empty environment and a temporary working folder.

    Spawned, never forked: the caller may hold torch and its threads. The child must answer each JSON line with
    one JSON line, the first of them unasked, when it is ready. Raises DiedStarting or another IsolationError where it
    doesn't get there."""

    def __init__(self, command: Sequence[str]) -> None:
        self._scratch = Scratch()
        self.folder = self._scratch.path
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd=self.folder,
                start_new_session=True,
            )
        except OSError as exc:
            self._scratch.remove()
            raise IsolationError(f"can't start a worker process: {exc}") from None
        self._buffer = b""
        try:
            self._read(START_DEADLINE_S)
        except IsolationError as exc:
            self.kill()
            kind = DiedStarting if isinstance(exc, WorkerDied) else IsolationError
            raise kind(f"a worker process did not start: {exc}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to `request`. Raises WorkerTimeout or WorkerDied; kill the worker after either."""
        try:
            pipe = _pipe(self._process.stdin)
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except (OSError, ValueError) as exc:
            raise WorkerDied(f"the worker process went away: {exc}") from None
        return self._read(timeout)

    def _read(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        descriptor = _pipe(self._process.stdout).fileno()
        # poll, not select: a trainer may well have more than 1,024 files open.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise WorkerTimeout(f"no reply within {timeout:g} s")
            chunk = os.read(descriptor, _READ_BYTES)
            if not chunk or len(self._buffer) > _MAX_REPLY:
                raise WorkerDied("the worker process went away")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            raise WorkerDied("the worker process wrote something that is no reply") from None
        if not isinstance(reply, dict):
            raise WorkerDied("the worker process wrote something that is no reply")
        return reply

    def stop(self) -> None:
        """Kill the process with its session. For another thread than the one that waits for a reply, which must
        keep its pipes: it sees their end, and calls `kill`."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()

    def kill(self) -> None:
        """Kill the process with its session, reap it and remove its folder. May be called twice."""
        self.stop()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # unsent bytes of a request to a dead worker
                    continue
        for _ in range(20):  # what the worker had started dies with it, but a moment later
            self._scratch.remove()
            if not self.folder.exists():
                break
            time.sleep(0.01)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the worker has no pipe")
    return stream
