"""Which unit comes next: those that wait for nothing, the one with the longest way to the end first.

Also how long a study takes with so many workers, by the same rule. Imports no torch."""

import heapq
from collections.abc import Collection, Mapping, Sequence

from omni_thinker.runs.journal import unit_id
from omni_thinker.studies.units import Unit

_NEARLY = 0.9
"""A way of at least this share of the longest is as good, where it spares a worker another seed's model."""


class Queue:
    """Units that haven't begun. `first[unit.id]`: the higher, the sooner; ties in the order of the plan."""

    def __init__(self, units: Sequence[Unit], first: Mapping[str, float], ended: Collection[str] = ()) -> None:
        """`ended`: ids of units that needn't be worked on."""
        self._first = first
        self._place = {unit.id: place for place, unit in enumerate(units)}
        self._ready = list[tuple[float, int, Unit]]()
        self._blocks: dict[str, list[Unit]] = {}
        self._missing = dict[str, int]()
        self.left = 0
        """Units that haven't ended."""
        for unit in units:
            if unit.id in ended:
                continue
            self.left += 1
            names = {unit_id(unit.seed, name) for name in (*unit.needs, *unit.after)} - set(ended)
            self._missing[unit.id] = len(names)
            for name in names:
                self._blocks.setdefault(name, []).append(unit)
            if not names:
                self.put(unit)

    def put(self, unit: Unit) -> None:
        """A unit may be worked on, or is to be worked on again."""
        heapq.heappush(self._ready, (-self._first[unit.id], self._place[unit.id], unit))

    def pop(self, near: Collection[int] = ()) -> Unit | None:
        """The unit to work on next; None while all that are left wait for others. near: seeds that go before others
        whose way is about as long."""
        if not self._ready:
            return None
        longest = self._ready[0]
        if longest[2].seed not in near:
            close = (each for each in self._ready if each[2].seed in near and each[0] <= _NEARLY * longest[0])
            if (other := min(close, default=None)) is not None:
                self._ready.remove(other)
                heapq.heapify(self._ready)
                return other[2]
        return heapq.heappop(self._ready)[2]

    def end(self, unit: Unit) -> None:
        """A unit has ended, so others may be worked on."""
        self.left -= 1
        for other in self._blocks.pop(unit.id, ()):
            self._missing[other.id] -= 1
            if not self._missing[other.id]:
                self.put(other)

    @property
    def ready(self) -> int:
        """Units that wait for a worker alone."""
        return len(self._ready)


def ways(units: Sequence[Unit], seconds: Mapping[str, float]) -> dict[str, float]:
    """For each unit the seconds of the longest way from its beginning to the end of the study; `units` in the order of
    the plan. The largest is the critical path."""
    way = dict.fromkeys((unit.id for unit in units), 0.0)
    for unit in reversed(units):
        way[unit.id] += seconds[unit.id]
        for name in (*unit.needs, *unit.after):
            other = unit_id(unit.seed, name)
            way[other] = max(way[other], way[unit.id])
    return way


def makespan(units: Sequence[Unit], seconds: Mapping[str, float], workers: int, ended: Collection[str] = ()) -> float:
    """Seconds that `workers` take for the units that haven't ended, each a unit at a time."""
    queue = Queue(units, ways(units, seconds), ended)
    running = list[tuple[float, int, Unit]]()
    now, number = 0.0, 0
    while queue.left:
        while len(running) < workers and (unit := queue.pop()) is not None:
            heapq.heappush(running, (now + seconds[unit.id], number, unit))
            number += 1
        now, _, unit = heapq.heappop(running)
        queue.end(unit)
    return now
