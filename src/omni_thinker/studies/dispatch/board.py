"""What people see of a study while it runs: units done, running and waiting, and the time left.

The same stands in `status.json` of the run's directory, for `omni-thinker status`."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from omni_thinker.runs.progress import Listener, Progress
from omni_thinker.runs.rundir import RunDir
from omni_thinker.runs.scoreboard import Scoreboard
from omni_thinker.studies.dispatch.crew import Did
from omni_thinker.studies.dispatch.picture import arms_table, units_table
from omni_thinker.studies.dispatch.queue import makespan
from omni_thinker.studies.dispatch.status import STATUS
from omni_thinker.studies.units import UNITS, Unit, WorkPlan
from omni_thinker.types import TaskName

_EVERY_S = 0.5
_SHOWN = 3
"""Running units that a log's line has room for."""
_LEFT_EVERY_S = 10.0
"""For how long a forecast of the time left is counted down, instead of made anew."""


class Board:
    """Told what happens to units."""

    def __init__(self, run: RunDir, work: WorkPlan, progress: Progress, tasks: Sequence[TaskName] = ()) -> None:
        self._run, self._work, self._progress, self._tasks = run, work, progress, tasks
        self.workers: Callable[[], int] = lambda: 1
        """Units at a time."""
        self._ended = set[str]()
        self._running = dict[str, float]()
        """When each running unit began."""
        self._lines = dict[str, str]()
        self._drawn = self._left_at = 0.0
        self._left = 0.0
        self._scores = Scoreboard(run.path / "metrics.jsonl")
        self._arms = Counter[str]()
        for unit in work.units:
            if unit.arm:
                self._arms[unit.arm] += unit.steps
        if progress.console.is_terminal:
            self._picture: RenderableType = Text("")
            # It is drawn by a thread of its own, from what this one has put together.
            progress.picture = lambda: self._picture

    def known(self, unit: Unit) -> None:
        """The unit had ended before."""
        self._ended.add(unit.id)
        for kind, count in unit.work.items():
            self._progress.skip(kind, count)

    def began(self, unit: Unit) -> None:
        """A worker has the unit."""
        self._running[unit.id] = time.monotonic()
        self._lines[unit.id] = f"{unit.name}: begins"
        self.draw()

    def ended(self, unit: Unit) -> None:
        """The unit has ended."""
        self._running.pop(unit.id, None)
        self._ended.add(unit.id)
        self._lines.pop(unit.id, None)
        self.draw()

    def broke(self, unit: Unit, why: str) -> None:
        """The unit has to be worked on again."""
        self._running.pop(unit.id, None)
        self._progress.say(f"{unit.words}: {why}")

    def said(self, unit: Unit, text: str, *, moment: bool) -> None:
        """A worker's line: of the `moment`, or one that stays."""
        if moment:
            self._lines[unit.id] = text
        elif self.workers() > 1:
            self._progress.say(f"{unit.seed} | {text}")
        else:
            self._progress.say(text)

    def did(self, unit: Unit, did: Did) -> None:
        """Work was done, or won't be needed."""
        if did.skipped:
            self._progress.skip(did.kind, did.count)
        else:
            self._progress.unit(did.kind, did.seconds, did.count)

    def listener(self, unit: Unit) -> Listener:
        """For a unit that is worked on in this process."""
        return _OfUnit(self, self._progress, unit)

    def draw(self, *, now: bool = False) -> None:
        """Show the state of things, and write it down; at most once in a while, unless `now`."""
        if not now and time.monotonic() - self._drawn < _EVERY_S:
            return
        self._drawn = time.monotonic()
        table = self.table()
        self._run.write_json(STATUS, table)
        if self._progress.console.is_terminal:
            self._picture = self._paint(table)
        if self.workers() > 1:
            running = table["running"]
            shown = [f"{unit['seed']} {unit['line']}" for unit in running[:_SHOWN]]
            shown += [f"{len(running) - _SHOWN} more"] if len(running) > _SHOWN else []
            self._progress.show(" | ".join([f"{table['done']} of {len(self._work.units)} units done", *shown]))

    def _paint(self, table: dict[str, Any]) -> RenderableType:
        """For a terminal: every arm so far, and with several workers what these are at."""
        self._scores.update()
        units = {unit.id: unit for unit in self._work.units}
        running = {units[name].arm for name in self._running}
        arms = arms_table(self._scores, self._arms, self._tasks, running)
        return Group(units_table(table), arms) if self.workers() > 1 else arms

    def table(self) -> dict[str, Any]:
        """The state of things as plain JSON."""
        kinds: dict[str, Counter[str]] = {}
        for unit in self._work.units:
            state = "done" if unit.id in self._ended else "running" if unit.id in self._running else "waiting"
            kinds.setdefault(UNITS[unit.kind], Counter(done=0, running=0, waiting=0))[state] += 1
        units = {unit.id: unit for unit in self._work.units}
        running = [
            {
                "seed": units[name].seed,
                "unit": units[name].name,
                "line": self._lines.get(name, ""),
                "seconds": round(time.monotonic() - began, 1),
            }
            for name, began in self._running.items()
        ]
        return {
            "at": round(time.time(), 1),
            "done": len(self._ended),
            "units": {kind: dict(counts) for kind, counts in kinds.items()},
            "running": running,
            "workers": self.workers(),
            "seconds_left": round(self.left(), 1),
        }

    def left(self) -> float:
        """Seconds to the end of the study, by what finished work took."""
        if len(self._ended) == len(self._work.units):
            return 0.0
        if self.workers() == 1:
            return self._progress.left()
        if time.monotonic() - self._left_at > _LEFT_EVERY_S or not self._left_at:
            self._left_at = time.monotonic()
            each = self._progress.pace()
            seconds = {unit.id: unit.seconds(each) for unit in self._work.units}
            for name, began in self._running.items():
                seconds[name] = max(0.0, seconds[name] - (time.monotonic() - began))
            self._left = makespan(self._work.units, seconds, max(1, self.workers()), self._ended)
        return max(0.0, self._left - (time.monotonic() - self._left_at))


class _OfUnit:
    """Hands on what a unit tells, and keeps the board up to date meanwhile."""

    def __init__(self, board: Board, progress: Progress, unit: Unit) -> None:
        self._board, self._progress, self._unit = board, progress, unit

    def say(self, text: str) -> None:
        self._progress.say(text)

    def show(self, text: str, *, always: bool = False) -> None:
        self._board.said(self._unit, text, moment=True)
        self._progress.show(text, always=always)
        self._board.draw()

    def unit(self, kind: str, seconds: float, count: int = 1) -> None:
        self._progress.unit(kind, seconds, count)

    def skip(self, kind: str, count: int) -> None:
        self._progress.skip(kind, count)
