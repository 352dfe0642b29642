"""MT-GRPO's weights: more for the tasks that gain least (arXiv 2602.05547)."""

from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.recipe.types import PositiveFloat, Share
from omni_thinker.schedulers.adaptive import Adaptive, Shares
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName

_LEAST_WEIGHT = 1e-12
"""Smallest weight, from which a task can still recover."""


class WorstTask(Adaptive):
    """Mirror descent on the simplex: w_k <- w_k * exp(-rate * (reward_k - reward_k when last seen)), renormalised, and
    mixed with `floor` of even shares so that no task is given up. Its ratio-preserving sampler is the refill that lies
    under every scheduler here (`rl.refill_rounds`).

    The paper's rule weighs the loss; here the weights are shares of problems, which costs no samples that are then
    weighed down."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int, *, rate: float, floor: float) -> None:
        super().__init__(tasks, problems_per_step)
        self.rate, self.floor = rate, floor
        self.weights = dict.fromkeys(self.tasks, 1 / len(self.tasks))
        self._reward: dict[TaskName, float] = {}

    def shares(self) -> Shares:
        even = self.floor / len(self.tasks)
        return {task: even + (1 - self.floor) * weight for task, weight in self.weights.items()}

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        logs = {task: log(max(weight, _LEAST_WEIGHT)) for task, weight in self.weights.items()}
        for task in self.tasks:
            if (reward := metrics.get(f"reward/{task}")) is not None:
                logs[task] -= self.rate * (reward - self._reward.get(task, reward))
                self._reward[task] = reward
        most = max(logs.values())
        total = sum(exp(log_weight - most) for log_weight in logs.values())
        self.weights = {task: exp(log_weight - most) / total for task, log_weight in logs.items()}

    def state(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "reward": dict(self._reward)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.weights, self._reward = dict(state["weights"]), dict(state["reward"])


class WorstTaskConfig(Config):
    """More for the tasks that gain least (MT-GRPO, arXiv 2602.05547)."""

    kind: Literal["worst_task"] = "worst_task"
    rate: Annotated[PositiveFloat, Field(le=100.0)] = 2.0
    floor: Share = 0.1

    def build(self, setting: Setting) -> WorstTask:
        return WorstTask(setting.tasks, setting.problems_per_step, rate=self.rate, floor=self.floor)
