"""One scheduler after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.schedulers.base import Scheduler
from omni_thinker.types import TaskName


class Phases:
    """`phases` are (scheduler, steps) in order; each counts its own steps from 0, and learns from them alone."""

    def __init__(self, phases: Sequence[tuple[Scheduler, int]]) -> None:
        self.phases = tuple(phases)

    def quotas(self, step: int) -> Mapping[TaskName, int]:
        scheduler, own = self._at(step)
        return scheduler.quotas(own)

    def stage(self, step: int) -> TaskName | None:
        scheduler, own = self._at(step)
        return scheduler.stage(own)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        scheduler, own = self._at(step)
        scheduler.observe(own, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"phases": [scheduler.state_dict() for scheduler, _ in self.phases]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for (scheduler, _), own in zip(self.phases, state["phases"], strict=True):
            scheduler.load_state_dict(own)

    def _at(self, step: int) -> tuple[Scheduler, int]:
        """Raises IndexError past the end."""
        for scheduler, steps in self.phases:
            if step < steps:
                return scheduler, step
            step -= steps
        raise IndexError("past the end of the last phase")
