"""A curriculum: one task after another."""

from __future__ import annotations

from collections.abc import Sequence

from omni_thinker.schedulers.base import Stateless
from omni_thinker.types import TaskName


class Stages(Stateless):
    """`stages` are (task, steps) in order; a task may come again."""

    def __init__(self, stages: Sequence[tuple[TaskName, int]], problems_per_step: int) -> None:
        self.stages = tuple(stages)
        self.problems_per_step = problems_per_step

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.stages)

    def left(self, done: int) -> tuple[TaskName, ...]:
        """The tasks of the stages after the first `done`."""
        return tuple(task for task, _ in self.stages[done:])

    def reorder(self, done: int, tasks: Sequence[TaskName]) -> None:
        """Put the stages after the first `done` in the order of `tasks`; each keeps its steps.

        Raises ValueError unless `tasks` are just these.
        """
        if sorted(tasks) != sorted(self.left(done)) or len(set(tasks)) < len(tasks):
            raise ValueError(f"{list(tasks)} is no order of the stages left, {list(self.left(done))}")
        steps = dict(self.stages[done:])
        self.stages = (*self.stages[:done], *((task, steps[task]) for task in tasks))

    def quotas(self, step: int) -> dict[TaskName, int]:
        return {self.stage(step): self.problems_per_step}

    def stage(self, step: int) -> TaskName:
        """Raises IndexError past the end."""
        for task, steps in self.stages:
            if step < steps:
                return task
            step -= steps
        raise IndexError("past the end of the curriculum")


def even_stages(order: Sequence[TaskName], steps: int) -> list[tuple[TaskName, int]]:
    """Share `steps` evenly over the tasks of `order`; what is left over goes to the first ones."""
    each, left = divmod(steps, len(order))
    return [(task, each + (1 if i < left else 0)) for i, task in enumerate(order)]
