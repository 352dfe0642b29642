"""Units worked on by the nodes of a Ray cluster: a task each. Ray finds the place, and tells when a node is lost.

Ray (Apache-2.0) is imported when a cluster is asked for. Attempts are counted by the dispatcher, not by Ray, so that
every one begins at the last checkpoint."""

import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.recipe.cluster import ClusterSpec
from omni_thinker.studies.crews.connect import connect
from omni_thinker.studies.crews.mail import Inbox, to_table
from omni_thinker.studies.dispatch.crew import Broke, Order, Told

_TIDY_S = 3.0
_NODES_S = 2.0
"""For how long the list of nodes is believed."""
_LAST_S = 10.0
_GONE_S = 30.0
"""Time for nodes to come back, once none is left that could work on a unit."""


class Cluster:
    """A crew of as many as the nodes have room for."""

    near: tuple[int, ...] = ()
    """Ray finds the process."""

    def __init__(
        self, address: str, spec: ClusterSpec, hello: Mapping[str, Any], run: Path, owner: JudgeOwner | None = None
    ) -> None:
        """hello: see Worker. run: the run's directory on this machine. owner: of the judge that all units share.

        Raises UserError where there is no such cluster, where no node has room for a unit, and where a node lacks what
        units need."""
        from omni_thinker.studies.crews import node

        self._ray, self._spec = connect(address), spec
        self._hello = {**hello, "cores": spec.cores}
        self._nodes, self._looked, self._seen = list[Mapping[str, Any]](), 0.0, time.monotonic()
        self._inbox, self._ended = Inbox(owner), threading.Event()
        self._tasks: dict[Any, Order] = {}
        self._node = node
        if not self._room():
            self._refuse()
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = partial(self._ray.remote, num_cpus=0, scheduling_strategy=here)
        self._desk = actor(max_concurrency=1000)(node.Desk).remote()
        self._keeper = None if spec.shared else actor(max_concurrency=4)(node.Keeper).remote(str(run.absolute()))
        self._check_nodes(run)
        self._listener = threading.Thread(target=self._listen, name="omni-cluster", daemon=True)
        self._listener.start()

    @property
    def words(self) -> str:
        """What it is, for people."""
        address = self._ray.get_runtime_context().gcs_address
        return f"Ray cluster at {address}: {len(self._nodes)} nodes, room for {self.size} units at a time"

    @property
    def size(self) -> int:
        """See Crew."""
        room = self._room()
        if room:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _GONE_S:
            self._refuse()
        return max(1, min(room, self._spec.most) if self._spec.most else room)

    def start(self, order: Order) -> None:
        """See Crew."""
        needs: dict[str, Any] = {"num_cpus": self._spec.cores, "max_retries": 0}
        if self._spec.gpus and order.unit.computes:
            needs["num_gpus"] = self._spec.gpus
        if self._spec.memory_gb:
            needs["memory"] = int(self._spec.memory_gb * 1e9)
        work = self._ray.remote(**needs)(self._node.work)
        reference = work.remote(self._hello, to_table(order), order.unit.id, self._desk, self._keeper)
        self._tasks[reference] = order

    def wait(self) -> list[Told]:
        """See Crew."""
        told = self._inbox.take()
        ready, _ = (
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0) if self._tasks else ([], [])
        )
        for reference in ready:
            order = self._tasks.pop(reference)
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayError as exc:
                told.append(Told(order.unit.id, order.attempt, Broke("the cluster", _lost(exc))))
        return told

    def stop(self) -> None:
        """See Crew."""
        self._desk.stop.remote()

    def close(self) -> None:
        """End all tasks, and leave the cluster."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        if self._keeper is not None:
            self._on_each_node(self._node.tidy, self._hello["token"], seconds=_TIDY_S)
        self._ended.set()
        self._desk.wake.remote()
        self._listener.join(_TIDY_S + _LAST_S)  # Ray crashes where it is shut down while somebody waits for it
        if not self._listener.is_alive():
            self._ray.shutdown()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                messages = self._ray.get(self._desk.take.remote())
            except Exception:  # the cluster is left, or lost, which is noticed where tasks are waited for
                return
            for unit, attempt, table in messages:
                reply = partial(self._reply, table.get("id"))
                self._inbox.receive(unit, attempt, table, reply)

    def _reply(self, number: int | None, value: Any) -> None:
        self._desk.reply.remote(number, value)

    def _room(self) -> int:
        """Units that the nodes have room for, whatever else runs there."""
        if time.monotonic() - self._looked > _NODES_S:
            self._looked = time.monotonic()
            self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(_fitting(node, self._spec) for node in self._nodes)

    def _refuse(self) -> None:
        needs = [f"{self._spec.cores} cores"]
        needs += [f"{self._spec.gpus:g} GPUs"] if self._spec.gpus else []
        needs += [f"{self._spec.memory_gb:g} GB of memory"] if self._spec.memory_gb else []
        largest = max(self._nodes, key=lambda node: node.get("CPU", 0), default={})
        has = (
            f"{largest.get('CPU', 0):g} cores, {largest.get('GPU', 0):g} GPUs, {largest.get('memory', 0) / 1e9:.1f} GB"
        )
        raise UserError(
            f"no node has room for a unit, which needs {', '.join(needs)}; the largest of {len(self._nodes)} has {has}",
            key="cluster",
        )

    def _check_nodes(self, run: Path) -> None:
        """Raises UserError for the first node that lacks what units need."""
        mark = run / f".{self._hello['token']}"
        mark.write_text("", "utf-8")
        try:
            arguments = (self._hello, self._node.versions(), str(mark) if self._spec.shared else "", self._keeper)
            for host, fault in self._on_each_node(self._node.check, *arguments, seconds=None):
                if fault:
                    raise UserError(f"the node {host} {fault}", key="cluster")
        finally:
            mark.unlink(missing_ok=True)

    def _on_each_node(self, function: Any, *arguments: Any, seconds: float | None) -> list[Any]:
        """What a function comes to on every node that units may be worked on."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        tasks = [
            self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy(node["NodeID"], soft=False))(
                function
            ).remote(*arguments)
            for node in self._ray.nodes()
            if node["Alive"] and _fitting(node["Resources"], self._spec)
        ]
        ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
        found = []
        for task in ready:
            try:
                found.append(self._ray.get(task))
            except self._ray.exceptions.RayTaskError as exc:
                raise UserError(_failure(exc), key="cluster") from None
            except self._ray.exceptions.RayError:
                continue  # a node that is lost already
        return found


def _fitting(node: Mapping[str, float], spec: ClusterSpec) -> int:
    """Units that a node has room for."""
    rooms = [node.get("CPU", 0.0) // spec.cores]
    if spec.gpus:
        gpus = node.get("GPU", 0.0)
        rooms.append(gpus * (1 / spec.gpus // 1) if spec.gpus < 1 else gpus // spec.gpus)
    if spec.memory_gb:
        rooms.append(node.get("memory", 0.0) // (spec.memory_gb * 1e9))
    return int(min(rooms))


def _lost(exc: Exception) -> str:
    """Why a task has no end. Ray's own words are a paragraph for some."""
    known = {
        "NodeDiedError": "its node was lost",
        "WorkerCrashedError": "its process died",
        "LocalRayletDiedError": "its node was lost",
        "OutOfMemoryError": "its node ran out of memory",
    }
    name = type(exc).__name__
    return known.get(name) or f"{name}: {' '.join(str(exc).split())[:300]}"


def _failure(exc: Any) -> str:
    """What a task failed with, in one line."""
    cause = getattr(exc, "cause", None) or exc
    return f"a node can't be used: {type(cause).__name__}: {' '.join(str(cause).split())[-300:]}"
