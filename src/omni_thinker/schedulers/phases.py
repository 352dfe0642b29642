"""One scheduler after another."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.recipe.schedulers import refuse_unknown
from omni_thinker.schedulers.base import Config, Parts, Scheduler, Setting
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.types import TaskName


class Phases:
    """`phases` are (scheduler, steps) in order; each counts its own steps from 0, and learns from them alone."""

    def __init__(self, phases: Sequence[tuple[Scheduler, int]]) -> None:
        self.phases = tuple(phases)
        self._parts = Parts([steps for _, steps in self.phases])
        self.pace, self.is_last = self._parts.pace, self._parts.is_last

    def quotas(self, step: int) -> Mapping[TaskName, int]:
        scheduler, phase_step = self._at(step)
        return scheduler.quotas(phase_step)

    def stage(self, step: int) -> TaskName | None:
        scheduler, phase_step = self._at(step)
        return scheduler.stage(phase_step)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        scheduler, phase_step = self._at(step)
        scheduler.observe(phase_step, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"phases": [scheduler.state_dict() for scheduler, _ in self.phases]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for (scheduler, _), phase_state in zip(self.phases, state["phases"], strict=True):
            scheduler.load_state_dict(phase_state)

    def _at(self, step: int) -> tuple[Scheduler, int]:
        """Raises IndexError past the end."""
        part, phase_step = self._parts.at(step)
        return self.phases[part][0], phase_step


class FirstConfig(Config):
    """Some tasks first, then all of them: math first, or what a judge scores first (arXiv 2512.13607)."""

    kind: Literal["first"] = "first"
    tasks: tuple[str, ...] = ()
    """Empty: those that a judge scores."""
    share: Annotated[float, Field(gt=0.0, lt=1.0, strict=True)] = 0.25
    """Share of all steps."""

    def check(self, tasks: Sequence[str], key: str) -> None:
        refuse_unknown(self.tasks, tasks, key)

    def build(self, setting: Setting) -> Phases:
        weights, per_step, steps = setting.weights, setting.problems_per_step, setting.steps
        chosen = self.tasks or tuple(task for task in weights if task in setting.judged)
        if not chosen:
            raise UserError("no task is scored by a judge; name the tasks that come first", key=setting.key)
        begin = max(1, min(steps - 1, round(self.share * steps)))
        first = Mixture({task: weights[task] for task in chosen}, per_step)
        return Phases([(first, begin), (Mixture(weights, per_step), steps - begin)])
