"""The processes that share models, as rank 0 sees them: it runs the study, and tells the others what to compute.

What they are told, and what they answer, goes by a connection to each. So a process that has nothing to do waits
without a limit, while rank 0 hears at once when one of them ends, however that came about."""

import atexit
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Listener
from typing import Any

import torch
import torch.distributed as dist

from omni_thinker.errors import EngineLost, UserError
from omni_thinker.models.memory import is_out_of_memory
from omni_thinker.policy.fsdp.follower import ADDRESS, ALIVE_S
from omni_thinker.policy.fsdp.hands import Hands, store_of
from omni_thinker.policy.fsdp.place import KEY_VARIABLE, PARENT_VARIABLE, Place, given_place
from omni_thinker.policy.fsdp.talk import accept, packed, send

_JOIN_S = 300.0
"""Time for all processes to be there: each imports torch first."""
_NEWS_S = 5.0
"""Time for what ended a process to be heard, once torch has noticed that it is gone."""
_GONE_S = 1.0
_STUCK_S = 20.0
"""Time that rank 0 may go on computing with ranks of which one is gone: gloo notices at once, nccl doesn't."""
_END_S, _LEAVE_S = 10.0, 2.0
"""Time for ranks to end by themselves; those that are at work don't hear that they are to leave, and hold nothing."""
_LEAST_MOST, _RANKS_OF_A_CORE = 8, 4
"""On a CPU a few ranks more than cores are of use to who tries things out; hundreds would only fill the memory."""

OnGroup = Callable[[int, Any], object]


class Crew:
    """`world` processes, of which this one is rank 0."""

    def __init__(self, ranks: int) -> None:
        """Join the processes that torchrun started, or start `ranks` - 1 others on this machine."""
        given = given_place()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._threads = torch.get_num_threads()
        self._key = secrets.token_bytes(32)
        self._store: Any = None
        if given is None:
            local = "127.0.0.1"
            self._store = dist.TCPStore(local, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
            given = Place(0, ranks, 0, local, self._store.port)
        else:
            self._store = store_of(given)
            _hear_of_losses_first(self)
        self.place, self.world = given, given.world
        self.broken = True  # until all are there
        self._heard = dict.fromkeys(range(1, self.world), time.monotonic())
        self._news: queue.Queue[tuple[int, tuple[Any, ...]]] = queue.Queue()
        self._busy = False
        self._timeout_s = _JOIN_S
        self._begun = ""
        self._made = 0
        self.dropped: list[int] = []
        self.lost: dict[int, str] = {}
        self._connections: dict[int, Any] = {}
        atexit.register(self.end)
        self._connect(started_here=given_place() is None)
        self._hands = Hands(self.place, self._store)
        self.broken = False

    def begin(self, device: str, timeout_s: float) -> None:
        """Let all join one group, once; on `device`."""
        if self._begun and self._begun != device:
            raise UserError(f"the processes compute on {self._begun} already", key="model.device")
        self._timeout_s = timeout_s
        if not self._begun:
            self._begun = device
            self._all("begin", [(device, timeout_s)] * self.world)

    def make(self, args: tuple[Any, ...], **own: Any) -> int:
        """A worker on every rank, and its number; `own`: what rank 0 has for it alone."""
        self._drop()
        self._made += 1
        self._all("make", [(self._made, *args)] * self.world, **own)
        return self._made

    def worker(self, number: int) -> Any:
        """Rank 0's own."""
        return self._hands.workers[number]

    def call(
        self, number: int, method: str, shares: Sequence[tuple[Any, ...]], on_group: OnGroup | None = None
    ) -> list[Any]:
        """A method of the workers, with each rank's own arguments; what each returned. Raises EngineLost where a
        process ends."""
        self._drop()
        return self._all("do", [(number, method, share) for share in shares], on_group=on_group)

    def _drop(self) -> None:
        """Let go of workers whose policy is gone: not when it goes, which may be in the middle of anything."""
        while self.dropped:
            self._all("drop", [(self.dropped.pop(),)] * self.world)

    def hear(self, on_group: OnGroup | None) -> None:
        """Pass on what has come in by now."""
        while not self._news.empty():
            self._take(on_group, 0.0)

    def end(self) -> None:
        """Let all processes end. Those that were started here have ended then."""
        atexit.unregister(self.end)
        orderly = not self.broken and not self._busy and not self.lost
        self.broken = True
        for connection in self._connections.values():
            try:
                send(connection, "end" if orderly else "leave", ())
            except OSError:
                continue
        if orderly:
            self._hands.end()
        torch.set_num_threads(self._threads)
        until = time.monotonic() + (_END_S if orderly else _LEAVE_S)
        for process in self.processes.values():
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if dist.is_initialized() and self._begun == "cpu":  # nccl would wait for who is gone
            dist.destroy_process_group()

    def _connect(self, *, started_here: bool) -> None:
        host = self.place.own_address
        with Listener((host, 0), authkey=self._key, backlog=self.world) as listener:
            told = {"host": host, "port": listener.address[1], "key": "" if started_here else self._key.hex()}
            if started_here:
                self._start()
            self._store.set(ADDRESS, json.dumps(told))
            try:
                self._connections = accept(listener, self.world - 1, _JOIN_S, self._look)
            except TimeoutError as exc:
                raise EngineLost(str(exc)) from None
        for rank, connection in self._connections.items():
            thread = threading.Thread(target=self._listen, args=(rank, connection), name=f"omni-{rank}", daemon=True)
            thread.start()

    def _look(self) -> None:
        """Raises EngineLost where a process that was started here has ended."""
        for rank, process in self.processes.items():
            if process.poll() is not None:
                self._fail(rank, "")

    def _start(self) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if "OMP_NUM_THREADS" not in os.environ and self.world > 1:
            torch.set_num_threads(max(1, cores // self.world))
        for rank in range(1, self.world):
            environment = {
                "OMP_NUM_THREADS": str(max(1, cores // self.world)),
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(self.world),
                "LOCAL_WORLD_SIZE": str(self.world),
                "MASTER_ADDR": self.place.host,
                "MASTER_PORT": str(self.place.port),
                KEY_VARIABLE: self._key.hex(),
                PARENT_VARIABLE: str(os.getpid()),
            }
            self.processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "omni_thinker.policy.fsdp.follower"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a Ctrl-C is rank 0's to hear
            )

    def _all(
        self, method: str, shares: Sequence[tuple[Any, ...]], on_group: OnGroup | None = None, **own: Any
    ) -> list[Any]:
        if self.broken:
            raise EngineLost("the processes that share the model have ended")
        messages = {rank: packed(method, shares[rank]) for rank in self._connections}  # all, before any is sent
        self._results: dict[int, Any] = {}
        self._heard = dict.fromkeys(self._heard, time.monotonic())
        self._busy = True
        for rank, connection in self._connections.items():
            try:
                connection.send_bytes(messages[rank])
            except OSError:
                self._fail(rank, "")
        try:
            result = getattr(self._hands, method)(*shares[0], **own)
        except Exception as exc:
            self._blame(exc)
            raise
        while len(self._results) < self.world - 1:
            self._take(on_group, 1.0)
        self._busy = False
        return [result, *(self._results[rank] for rank in range(1, self.world))]

    def _take(self, on_group: OnGroup | None, wait_s: float) -> None:
        """One piece of news, or a look at how long there was none."""
        try:
            rank, message = self._news.get(timeout=wait_s) if wait_s else self._news.get_nowait()
        except queue.Empty:
            if wait_s:
                self._look_for_hung(self._timeout_s)
            return
        match message:
            case ("group", place, group):
                if on_group is not None:
                    on_group(place, group)
            case ("done", result):
                self._results[rank] = result
            case ("failed", words):
                self._fail(rank, words)
            case _:
                self._fail(rank, "")

    def _look_for_hung(self, seconds: float) -> None:
        """Raises EngineLost where a rank has been silent for so long."""
        for rank, heard in self._heard.items():
            if (silent := time.monotonic() - heard) > seconds:
                self.broken = True
                raise EngineLost(f"rank {rank} of {self.world} has given no sign of life for {silent:.0f} s") from None

    def _fail(self, rank: int, words: str) -> None:
        self.broken = True
        # A rank that fails may do so because another one is gone, which is what matters.
        until = time.monotonic() + _GONE_S
        while words and not self.lost and time.monotonic() < until:
            time.sleep(0.02)
        if words and (gone := next((other for other in self.lost if other != rank), None)) is not None:
            raise EngineLost(f"rank {gone} of {self.world} {self.lost[gone]}")
        raise EngineLost(f"rank {rank} of {self.world} {f'failed: {words}' if words else self._how(rank)}")

    def _blame(self, exc: Exception) -> None:
        """Raise what ended another rank, where that is why this one failed."""
        if self.world == 1:
            self._busy = False
            return
        self.broken = True
        if is_out_of_memory(exc):
            raise EngineLost(f"rank 0 of {self.world} ran out of memory; lower engine.fsdp.row_tokens") from exc
        if not isinstance(exc, RuntimeError) or isinstance(exc, EngineLost):
            return
        until = time.monotonic() + _NEWS_S
        while time.monotonic() < until:
            try:
                self._take(None, 0.2)
            except EngineLost as lost:
                raise lost from None
        self._look_for_hung(2 * ALIVE_S)

    def _how(self, rank: int) -> str:
        process = self.processes.get(rank)
        if process is not None:
            try:
                code = process.wait(2.0)
            except subprocess.TimeoutExpired:
                return "hung up"
            if code < 0:
                return f"was killed by {signal.Signals(-code).name}"
        return "ended early"

    def _listen(self, rank: int, connection: Any) -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                break
            self._heard[rank] = time.monotonic()
            if message != ("alive",):
                self._news.put((rank, message))
        self.lost[rank] = self._how(rank)
        self._news.put((rank, ("lost",)))
        until = time.monotonic() + _STUCK_S
        while time.monotonic() < until:
            if not self._busy or self.broken:
                return
            time.sleep(0.1)
        words = f"rank {rank} of {self.world} {self.lost[rank]}; resume the run with --resume"
        sys.stderr.write(f"omni-thinker: {words}\n")
        sys.stderr.flush()
        os._exit(1)


_crews: list[Crew] = []


def crew_of(ranks: int = 0) -> Crew:
    """This process's crew, made where there is none; a new one where it has ended. Raises UserError for a number of
    ranks other than torchrun's, or than those that share models already."""
    given = given_place()
    if given is not None and ranks not in (0, given.world):
        raise UserError(f"is {ranks}, but torchrun started {given.world} processes", key="engine.fsdp.ranks")
    if given is not None and given.rank:
        raise UserError("only rank 0 runs a study; the others are started by the command line", key="engine.fsdp")
    wanted = given.world if given is not None else ranks or max(1, torch.cuda.device_count())
    if _crews and _crews[-1].broken and given is not None:
        raise EngineLost("the processes that torchrun started have ended")
    if _crews and (_crews[-1].broken or _crews[-1].world != wanted):
        _crews.pop().end()
    if not _crews:
        _crews.append(Crew(wanted))
    return _crews[-1]


def check_ranks(ranks: int, device: str) -> None:
    """Raises UserError for more ranks on this machine than its GPUs, or than its cores by far: each is a process with
    a torch of its own."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if given_place() is not None else ranks
    if device == "cuda":
        if here > (gpus := torch.cuda.device_count()):
            raise UserError(f"{here} ranks, but this machine has {gpus} GPUs", key="engine.fsdp.ranks")
    elif here > (most := max(_LEAST_MOST, _RANKS_OF_A_CORE * (os.cpu_count() or 1))):
        raise UserError(f"{here} ranks on a machine of {os.cpu_count()} cores; at most {most}", key="engine.fsdp.ranks")


def _hear_of_losses_first(crew: Crew) -> None:
    """torchrun ends all processes when one has ended. Say which one it was, not that this one was ended for it."""
    before = signal.getsignal(signal.SIGTERM)

    def ended(number: int, frame: Any) -> None:
        if crew.broken:
            return
        until = time.monotonic() + 1.0
        while not crew.lost and time.monotonic() < until:
            time.sleep(0.02)
        if crew.lost:
            rank, how = next(iter(crew.lost.items()))
            crew.broken = True
            raise EngineLost(f"rank {rank} of {crew.world} {how}")
        if callable(before):
            before(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ended)
