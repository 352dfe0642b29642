"""Pools of workers, shared by everything in this process that needs the same kind.

Threads do the waiting, so that a pool outlives the event loop that first used it (trainers call
`asyncio.run` once a step)."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omni_thinker.isolation.bubblewrap import launch_scorer
from omni_thinker.isolation.scratch import sweep
from omni_thinker.isolation.worker import DiedStarting, IsolationError, Worker, WorkerDied


def cores() -> int:
    """CPU cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


_STARTS = 3
"""Attempts at starting a worker."""
_size: int | None = None


def use_workers(count: int | None) -> None:
    """How many workers pools made from now on have at most; None: one per core. Raises ValueError below 1."""
    global _size  # noqa: PLW0603
    if count is not None and count < 1:
        raise ValueError(f"workers must be at least 1, got {count}")
    _size = count


class WorkerPool:
    """At most `size` workers (default: as `use_workers` said), started when first needed and used again."""

    def __init__(self, command: Sequence[str], size: int | None = None) -> None:
        self._command = tuple(command)
        self._executor = ThreadPoolExecutor(size or _size or cores(), thread_name_prefix="omni-isolation")
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._closed = False

    async def call(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:  # noqa: ASYNC109
        """The reply to `request`; `timeout` seconds count from when a worker takes it.

        Raises WorkerTimeout, WorkerDied (twice in a row) or IsolationError (can't start a worker)."""
        return await asyncio.wrap_future(self._submit(request, timeout))

    def call_sync(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """`call` for code outside an event loop."""
        return self._submit(request, timeout).result()

    def close(self) -> None:
        """Kill all workers and wait for the threads. Requests under way raise WorkerDied."""
        with self._lock:
            self._closed = True
            idle, busy = self._idle, [*self._busy]
            self._idle = []
        for worker in idle:
            worker.kill()
        for worker in busy:
            worker.stop()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, request: Mapping[str, Any], timeout: float) -> Future[dict[str, Any]]:
        try:
            return self._executor.submit(self._call, request, timeout)
        except RuntimeError as exc:  # shut down, or the interpreter is about to end
            raise IsolationError(f"the worker pool is closed: {exc}") from None

    def _call(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        try:
            return self._attempt(request, timeout)
        except WorkerDied:
            # The worker may have been dead before (the kernel's memory killer): a new one decides.
            return self._attempt(request, timeout, new=True)

    def _attempt(self, request: Mapping[str, Any], timeout: float, new: bool = False) -> dict[str, Any]:
        worker = self._take(new)
        try:
            reply = worker.call(request, timeout)
        except BaseException:
            worker.kill()
            with self._lock:
                self._busy.discard(worker)
            raise
        with self._lock:
            self._busy.discard(worker)
            if not self._closed:
                self._idle.append(worker)
                return reply
        worker.kill()
        return reply

    def _take(self, new: bool) -> Worker:
        with self._lock:
            if self._closed:
                raise IsolationError("the worker pool is closed")
            if self._idle and new:
                self._idle.pop().kill()  # makes room, and may well be as dead
            elif self._idle:
                worker = self._idle.pop()
                self._busy.add(worker)
                return worker
        worker = self._start()
        with self._lock:
            self._busy.add(worker)
        return worker

    def _start(self) -> Worker:
        """A worker that dies before it is ready was killed by somebody else: that is no fault of the request's."""
        for _ in range(_STARTS - 1):
            try:
                return Worker(self._command)
            except DiedStarting:
                continue
        return Worker(self._command)


_pools: dict[str, WorkerPool] = {}
_lock = threading.Lock()


def shared_pool(name: str, make: Callable[[], WorkerPool]) -> WorkerPool:
    """The pool called `name`, made on first use."""
    with _lock:
        if not _pools:
            sweep()
        if name not in _pools:
            _pools[name] = make()
        return _pools[name]


def call_pool(handler: Path, packages: Sequence[str] = (), memory_mb: int = 2048) -> WorkerPool:
    """The shared pool of workers that call `handle(request)` of the file `handler`, behind the wall, again and again.

    For scorers that read a text as data. packages: those it imports. Raises IsolationError where there is no sandbox.
    """

    def make() -> WorkerPool:
        return WorkerPool(launch_scorer("calls.py", handler, packages, str(memory_mb)).command)

    return shared_pool(str(handler), make)


def shutdown() -> None:
    """Kill every shared worker. The next use starts new ones."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()


def _forget() -> None:
    """A forked child must neither use nor kill its parent's workers."""
    global _lock  # noqa: PLW0603  (the old one may be held by a thread that the child does not have)
    _lock = threading.Lock()
    _pools.clear()


atexit.register(shutdown)
os.register_at_fork(after_in_child=_forget)
