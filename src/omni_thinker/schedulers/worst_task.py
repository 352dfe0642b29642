"""MT-GRPO's weights: more for the tasks that are worst and gain least (arXiv 2602.05547)."""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.recipe.types import NonNegative, PositiveFloat, Share
from omni_thinker.schedulers.adaptive import Adaptive, Shares
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName

_LEAST = -27.0
"""Log of the smallest weight relative to the largest, so that a task that was all but gone can come back."""


class WorstTask(Adaptive):
    """Mirror descent on the simplex: w_k <- w_k * exp(-rate * (improvement_k + level * reward_k)), renormalised, and
    mixed with `floor` of even shares so that no task is given up. Rewards are moving averages that keep the share
    `memory` of what was; the improvement is the change of that average. Its ratio-preserving sampler is the refill
    that lies under every scheduler here (`rl.refill_rounds`).

    `level` = 0.2 is what the authors' code uses for three tasks. The paper's rule weighs the loss; here the weights are
    shares of problems, which costs no samples that are then weighed down. So `rate` is larger than theirs, for runs of
    tens of steps instead of hundreds.
    """

    def __init__(
        self,
        tasks: Sequence[TaskName],
        problems_per_step: int,
        *,
        rate: float,
        floor: float,
        level: float,
        memory: float,
    ) -> None:
        super().__init__(tasks, problems_per_step)
        self.rate, self.floor, self.level, self.memory = rate, floor, level, memory
        self.logits = dict.fromkeys(self.tasks, 0.0)
        self._reward: dict[TaskName, float] = {}

    def shares(self) -> Shares:
        most = max(self.logits.values())
        weights = {task: exp(logit - most) for task, logit in self.logits.items()}
        even, total = self.floor / len(self.tasks), sum(weights.values())
        return {task: even + (1 - self.floor) * weight / total for task, weight in weights.items()}

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        for task in self.tasks:
            if (reward := metrics.get(f"reward/{task}")) is not None:
                before = self._reward.get(task, reward)
                average = self.memory * before + (1 - self.memory) * reward
                self.logits[task] -= self.rate * (average - before + self.level * average)
                self._reward[task] = average
        most = max(self.logits.values())
        self.logits = {task: max(logit - most, _LEAST) for task, logit in self.logits.items()}

    def state(self) -> dict[str, Any]:
        return {"logits": dict(self.logits), "reward": dict(self._reward)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.logits, self._reward = dict(state["logits"]), dict(state["reward"])


class WorstTaskConfig(Config):
    """More for the tasks that are worst and gain least (MT-GRPO, arXiv 2602.05547)."""

    kind: Literal["worst_task"] = "worst_task"
    rate: Annotated[PositiveFloat, Field(le=100.0)] = 2.0
    """Size of a step of mirror descent."""
    floor: Share = 0.1
    """Share of a step that all tasks get evenly."""
    level: NonNegative = 0.2
    """Weight of a task's reward beside its improvement; 0 balances improvement alone."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0, strict=True)] = 0.5
    """Share of the past in the average of rewards, against noise."""

    def build(self, setting: Setting) -> WorstTask:
        return WorstTask(
            setting.tasks,
            setting.problems_per_step,
            rate=self.rate,
            floor=self.floor,
            level=self.level,
            memory=self.memory,
        )
