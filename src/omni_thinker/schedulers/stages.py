"""A curriculum: one task after another."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.recipe.schedulers import refuse_unknown
from omni_thinker.schedulers.base import Config, Parts, Setting, Stateless
from omni_thinker.types import TaskName


class Stages(Stateless):
    """`stages` are (task, steps) in order; a task may come again."""

    def __init__(self, stages: Sequence[tuple[TaskName, int]], problems_per_step: int) -> None:
        self.stages = tuple(stages)
        self.problems_per_step = problems_per_step
        self._parts = Parts([steps for _, steps in self.stages])
        self.pace, self.is_last = self._parts.pace, self._parts.is_last

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.stages)

    def left(self, done: int) -> tuple[TaskName, ...]:
        """The tasks of the stages after the first `done`."""
        return tuple(task for task, _ in self.stages[done:])

    def reorder(self, done: int, tasks: Sequence[TaskName]) -> None:
        """Put the stages after the first `done` in the order of `tasks`; each keeps its steps.

        Raises ValueError unless `tasks` are just these."""
        if sorted(tasks) != sorted(self.left(done)) or len(set(tasks)) < len(tasks):
            raise ValueError(f"{list(tasks)} is no order of the stages left, {list(self.left(done))}")
        steps = dict(self.stages[done:])
        self.stages = (*self.stages[:done], *((task, steps[task]) for task in tasks))
        self._parts.lengths = tuple(steps for _, steps in self.stages)

    def quotas(self, step: int) -> dict[TaskName, int]:
        return {self.stage(step): self.problems_per_step}

    def stage(self, step: int) -> TaskName:
        """Raises IndexError past the end."""
        return self.stages[self._parts.at(step)[0]][0]


class SequenceConfig(Config):
    """Stages in the order that is written; a task may come again, which refreshes it (arXiv 2606.02398)."""

    kind: Literal["sequence"] = "sequence"
    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    """`task` or `task:length`, in multiples of the others' length."""

    @property
    def ends(self) -> int:
        return len(self.stages)

    def check(self, tasks: Sequence[str], key: str) -> None:
        if not all(_is_length(stage) for stage in self.stages):
            raise UserError("a stage is `task` or `task:length` with a length above 0", key=key)
        refuse_unknown([stage.partition(":")[0] for stage in self.stages], tasks, key)

    def build(self, setting: Setting) -> Stages:
        return Stages(read_stages(self.stages, setting.steps), setting.problems_per_step)


def read_stages(stages: Sequence[str], steps: int) -> list[tuple[TaskName, int]]:
    """`task` or `task:length` as (task, steps): lengths in proportion, exactly `steps` in all (largest remainders)."""
    lengths = [(task, float(length or 1)) for task, _, length in (stage.partition(":") for stage in stages)]
    whole = sum(length for _, length in lengths)
    exact = [steps * length / whole for _, length in lengths]
    counts = [int(length) for length in exact]
    for place in sorted(range(len(lengths)), key=lambda i: counts[i] - exact[i])[: steps - sum(counts)]:
        counts[place] += 1
    return [(task, count) for (task, _), count in zip(lengths, counts, strict=True)]


def _is_length(stage: str) -> bool:
    _, colon, length = stage.partition(":")
    try:
        return not colon or 0 < float(length) < 1e6
    except ValueError:
        return False
