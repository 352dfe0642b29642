"""What runs on the nodes of a Ray cluster: units, a desk for what they say, a keeper of the run's files."""

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_thinker.errors import UserError
from omni_thinker.studies.crews.travel import Keeper, Travelling

if TYPE_CHECKING:  # torch comes with it, which the desk and the keeper have no use for
    from omni_thinker.studies.crews.worker import Worker

__all__ = ["Desk", "Keeper", "check", "tidy", "versions", "work"]

_TAKE_S = 5.0
_COPIES = "omni-thinker-node-"
"""How the names of copies of runs begin, in a machine's folder for temporary files."""
_known: "dict[str, Worker]" = {}
"""This process's worker: Ray gives a process one unit after another."""


class Desk:
    """An actor beside the driver: units leave messages, and the driver takes them. What one unit says stays in order,
    however Ray delivers it."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, int, Mapping[str, Any]]] = []
        self._next: dict[tuple[str, int], int] = {}
        self._early: dict[tuple[str, int, int], Mapping[str, Any]] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count(1)
        self._wake, self._stopping = asyncio.Event(), asyncio.Event()

    async def post(self, unit: str, attempt: int, place: int, table: Mapping[str, Any]) -> None:
        """The message number `place` of an attempt, from 0."""
        self._early[unit, attempt, place] = table
        place = self._next.get((unit, attempt), 0)
        while (unit, attempt, place) in self._early:
            self._messages.append((unit, attempt, self._early.pop((unit, attempt, place))))
            place += 1
        self._next[unit, attempt] = place
        self._wake.set()

    async def ask(self, unit: str, attempt: int, place: int, table: Mapping[str, Any]) -> Any:
        """A message that waits for the driver's reply."""
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = future
        await self.post(unit, attempt, place, {**table, "id": number})
        return await future

    async def reply(self, number: int, value: Any) -> None:
        """The driver's reply to a message."""
        if (future := self._asked.pop(number, None)) is not None and not future.done():
            future.set_result(value)

    async def take(self) -> list[tuple[str, int, Mapping[str, Any]]]:
        """All messages since; waits a while for the first."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), _TAKE_S)
        self._wake.clear()
        taken, self._messages = self._messages, []
        return taken

    async def wake(self) -> None:
        """Let `take` come back."""
        self._wake.set()

    async def stop(self) -> None:
        """The driver wants all units to end."""
        self._stopping.set()

    async def stopping(self) -> bool:
        """Comes back once the driver wants all units to end."""
        await self._stopping.wait()
        return True


class _RayMail:
    """A unit's end of the desk."""

    def __init__(self, desk: Any, unit: str, attempt: int) -> None:
        self._desk, self._unit, self._attempt = desk, unit, attempt
        self._places, self._lock = count(0), threading.Lock()

    def send(self, table: Mapping[str, Any]) -> None:
        """See Mail. The last message waits until the desk has it: this process may end then."""
        import ray

        with self._lock:
            sent = self._desk.post.remote(self._unit, self._attempt, next(self._places), table)
        if table["kind"] in ("ended", "broke"):
            ray.get(sent)

    def ask(self, table: Mapping[str, Any]) -> "Future[Any]":
        """See Mail."""
        with self._lock:
            sent = self._desk.ask.remote(self._unit, self._attempt, next(self._places), table)
        future: Future[Any] = sent.future()
        return future


def work(hello: Mapping[str, Any], order: Mapping[str, Any], unit: str, desk: Any, keeper: Any) -> None:
    """A task: one unit. What it comes to is said at the desk."""
    done = threading.Event()
    threading.Thread(target=_obey, args=(desk, done), name="omni-stop", daemon=True).start()
    try:
        _worker(hello, keeper).work(order, _RayMail(desk, unit, order["attempt"]))
    finally:
        done.set()


def check(hello: Mapping[str, Any], wanted: Mapping[str, str], mark: str, keeper: Any) -> tuple[str, str]:
    """A task: this node's name, and what it lacks in words, or nothing. mark: a file that a shared disk has."""
    host = _name()
    for name, version in versions().items():
        if version != wanted[name]:
            return host, f"has {name} {version}, the driver {wanted[name]}; install the same version on both"
    if mark and not Path(mark).exists():
        return host, f"doesn't see {Path(mark).parent}; use a folder that all nodes share, or cluster.shared = false"
    try:
        _worker(hello, keeper).prepare()
    except UserError as exc:
        return host, f"can't work on this study: {exc}"
    return host, ""


def tidy(token: str) -> None:
    """A task: remove this machine's copies of a run."""
    for copy in Path(tempfile.gettempdir()).glob(f"{_COPIES}{token}-*"):
        shutil.rmtree(copy, ignore_errors=True)


def sweep() -> None:
    """Remove copies of processes that are gone: of runs whose driver was killed."""
    for copy in Path(tempfile.gettempdir()).glob(f"{_COPIES}*-*"):
        pid = copy.name.rpartition("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(copy, ignore_errors=True)


def versions() -> dict[str, str]:
    """What has to be the same on all nodes, since results would differ otherwise."""
    from importlib.metadata import version

    names = ("omni-thinker", "torch", "transformers", "numpy")
    return {"Python": ".".join(platform.python_version_tuple()[:2])} | {name: version(name) for name in names}


def _worker(hello: Mapping[str, Any], keeper: Any) -> "Worker":
    import torch

    from omni_thinker.studies.crews.worker import Worker

    token = hello["token"]
    if token not in _known:
        _known.clear()
        torch.set_num_threads(hello["cores"])
        with contextlib.suppress(OSError):
            os.chdir(
                hello["folder"]
            )  # else that in which Ray was started: data files may be named by their way from it
        files = None
        if keeper is not None:
            sweep()
            copy = _copy(token)
            copy.mkdir(parents=True, exist_ok=True)
            hello = {**hello, "run": str(copy)}
            files = Travelling(copy, keeper)
        _known[token] = Worker(hello, _name(), files)
    return _known[token]


def _name() -> str:
    """What people call this node."""
    import ray

    return f"{platform.node()} ({ray.util.get_node_ip_address()})"


def _copy(token: str) -> Path:
    """This process's copy of a run: what one has no use for any more, another may be reading."""
    return Path(tempfile.gettempdir()) / f"{_COPIES}{token}-{os.getpid()}"


def _obey(desk: Any, done: threading.Event) -> None:
    """Pass on the driver's wish to stop as the signal that training listens for."""
    import ray

    try:
        ray.get(desk.stopping.remote())
    except ray.exceptions.RayError:
        return  # the driver is gone, and Ray ends this process
    if not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def new_token() -> str:
    """A name for one driver's visit to a cluster."""
    return uuid.uuid4().hex[:12]
