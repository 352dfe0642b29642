"""Units worked on by several processes on this machine, each with its share of the cores, and a GPU where there are
several."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.studies.crews.mail import Inbox, to_table
from omni_thinker.studies.dispatch.crew import Broke, Order, Told

LOGS = "workers"
"""Folder of a run for what its workers print."""
_BEGIN = "import sys; sys.path[:] = {path!r}; from omni_thinker.studies.crews.pipes import main; main()"
"""With `-m`, a file of the folder that the command runs in would stand in for a module of Python's of that name."""
_LAST_S = 5.0
"""Time for an idle worker to end."""
_TAIL_BYTES, _LONGEST = 4096, 300
"""Of a worker's log: how much is looked at, and characters of its last line that are told."""


class Processes:
    """A crew of `jobs` processes, which are started when they are first needed and then keep their models."""

    def __init__(self, hello: Mapping[str, Any], run: Path, jobs: int, owner: JudgeOwner | None = None) -> None:
        """hello: see Worker. run: the run's directory, for their logs. owner: of the judge that all units share."""
        self.size = jobs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._cores = max(1, cores // jobs)
        self._hello, self._folder = {**hello, "cores": self._cores}, run / LOGS
        self.devices = _devices()
        self._inbox = Inbox(owner)
        self._workers = list[_Process]()
        self._numbers = 0

    @property
    def near(self) -> set[int]:
        """See Crew. Where there is room for another worker, that one holds none."""
        if len(self._workers) < self.size:
            return set()
        return {worker.seed for worker in self._workers if worker.order is None and worker.seed is not None}

    def start(self, order: Order) -> None:
        """Have a worker begin: one that has the seed's model if there is one, else a new one, else any."""
        self._workers = [worker for worker in self._workers if worker.alive]
        free = [worker for worker in self._workers if worker.order is None]
        known = [worker for worker in free if worker.seed == order.unit.seed]
        full = len(self._workers) >= self.size
        worker = (known or free)[0] if known or full else self._new()
        worker.begin(order)

    def wait(self) -> list[Told]:
        """What the workers have said."""
        return self._inbox.take()

    def stop(self) -> None:
        """Let each end its step, and keep it."""
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        """End all processes, whatever they are at."""
        until = time.monotonic() + _LAST_S
        for worker in self._workers:
            worker.end(max(0.0, until - time.monotonic()))
        self._workers = []

    def next_device(self, taken: Sequence[str]) -> str:
        """The GPU with the fewest workers, where `taken` are those of all others; none where there are no several."""
        return min(self.devices, key=taken.count, default="")

    def _new(self) -> "_Process":
        self._numbers += 1
        self._folder.mkdir(exist_ok=True)
        device = self.next_device([worker.device for worker in self._workers])
        environment = {"OMP_NUM_THREADS": str(self._cores), **os.environ}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        worker = _Process(self._numbers, self._folder, environment, device, self._hello, self._inbox)
        self._workers.append(worker)
        return worker


class _Process:
    """One worker process."""

    def __init__(
        self,
        number: int,
        folder: Path,
        environment: Mapping[str, str],
        device: str,
        hello: Mapping[str, Any],
        inbox: Inbox,
    ) -> None:
        self.device, self.order, self.seed = device, None, None  # type: tuple[str, Order | None, int | None]
        self._log, self._inbox, self._lock = folder / f"{number}.log", inbox, threading.Lock()
        name = f"worker {number}"
        self._leaves = self._lost = False
        """Whether it has said that it ends, and whether it has ended."""
        with self._log.open("ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN.format(path=sys.path), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,  # a Ctrl-C is passed on once, not heard twice
            )
        self._name = f"{name} (process {self._process.pid})"
        self._write(hello)
        self._orders = threading.Lock()
        self._listener = threading.Thread(target=self._listen, name=f"omni-{name}", daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether it may be handed an order."""
        return not self._leaves and self._process.poll() is None

    def begin(self, order: Order) -> None:
        """Hand it an order."""
        with self._orders:
            self.order, self.seed = order, order.unit.seed
            lost = self._lost
        self._write({"order": to_table(order)})
        if lost:  # it died before it had the order
            self._lose()

    def stop(self) -> None:
        """End after this step."""
        if self.order is not None:
            self._process.terminate()

    def end(self, patience: float) -> None:
        """End it now, if it isn't idle."""
        if self.order is None:
            self._write({"order": None})
        else:
            self._process.kill()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        """Hand on what it says, until it is gone."""
        output = _pipe(self._process.stdout)
        while line := output.readline():
            try:
                table = json.loads(line)
            except ValueError:
                break  # it was killed within a line
            order = self.order
            if order is None:
                continue
            if table["kind"] in ("ended", "broke"):
                self._leaves = table.get("leaves", False)
                self.order = None
            reply = partial(self._reply, table.get("id"))
            self._inbox.receive(order.unit.id, order.attempt, table, reply)
        self._lose()

    def _lose(self) -> None:
        """The process is gone; if it had an order, its unit broke off."""
        code = self._process.wait()
        with self._orders:
            order, self.order, self._lost = self.order, None, True
        if order is not None:
            how = f"it was killed by {_signal(-code)}" if code < 0 else f"it ended with code {code}"
            why = f"{how}; {self._last_line()}" if self._last_line() else how
            self._inbox.put(Told(order.unit.id, order.attempt, Broke(self._name, why)))

    def _reply(self, number: int | None, value: Any) -> None:
        self._write({"id": number, "reply": value})

    def _write(self, table: Mapping[str, Any]) -> None:
        try:
            with self._lock:
                stream = _pipe(self._process.stdin)
                stream.write(json.dumps(table).encode() + b"\n")
                stream.flush()
        except (BrokenPipeError, ValueError):
            pass  # it is gone, which is noticed where its output is read

    def _last_line(self) -> str:
        """What it printed at last, in this life of the run."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._begin, self._log.stat().st_size - _TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            return ""
        return next((line.strip()[:_LONGEST] for line in reversed(lines) if line.strip()), "")


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "pipes were asked for"
    return stream


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _devices() -> list[str]:
    """GPUs that this process may use, where there are several to be dealt out."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(place) for place in range(count)]
