"""Units worked on in this process, one after another, in the order of the plan."""

import gc
import time
from collections.abc import Callable

from omni_thinker.runs.progress import Listener, Silent
from omni_thinker.runs.rundir import RunDir
from omni_thinker.studies.dispatch.crew import Ended, Order, Told
from omni_thinker.studies.setup import Setup
from omni_thinker.studies.units import Unit, WorkPlan
from omni_thinker.studies.walk import SeedWalk


class Here:
    """A crew of one. What it does goes to the run's directory directly, and errors are raised."""

    size = 1
    near: tuple[int, ...] = ()
    """The plan's order it is."""

    def __init__(self, setup: Setup, run: RunDir, work: WorkPlan, board: Callable[[Unit], Listener]) -> None:
        """board: who is told how far a unit is."""
        self._setup, self._run, self._work, self._board = setup, run, work, board
        self._walk: SeedWalk | None = None
        self._told = list[Told]()

    def start(self, order: Order) -> None:
        """Work on the unit until it has ended."""
        began, unit = time.monotonic(), order.unit
        if self._walk is None or self._walk.seed != unit.seed:
            self._walk = None
            gc.collect()  # the last seed's policy, before the next one is loaded
            self._walk = SeedWalk(self._setup, self._work, unit.seed)
        for each in order.inputs:
            if each.name not in self._walk.ran:
                self._walk.run(each, self._run.unit(each.seed, each.name), Silent())
        self._walk.run(unit, self._run.unit(unit.seed, unit.name), self._board(unit))
        self._told.append(Told(unit.id, order.attempt, Ended("here", time.monotonic() - began)))

    def wait(self) -> list[Told]:
        """The unit that has ended."""
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        """Nothing runs once `start` has come back."""

    def close(self) -> None:
        """Let go of the model."""
        self._walk = None
