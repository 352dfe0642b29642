"""One task a step, in turn."""

from collections.abc import Sequence
from typing import Literal

from omni_thinker.schedulers.base import Config, Setting, Stateless
from omni_thinker.types import TaskName


class RoundRobin(Stateless):
    """Step n trains task n modulo the number of tasks: as even as joint training over time, but never mixed."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int) -> None:
        self.tasks = tuple(tasks)
        self.problems_per_step = problems_per_step

    def quotas(self, step: int) -> dict[TaskName, int]:
        return {self.tasks[step % len(self.tasks)]: self.problems_per_step}

    def stage(self, step: int) -> None:
        return None


class RoundRobinConfig(Config):
    """One task a step, in turn."""

    kind: Literal["round_robin"] = "round_robin"

    def build(self, setting: Setting) -> RoundRobin:
        return RoundRobin(setting.tasks, setting.problems_per_step)
