"""Joint training: fixed shares of every task in every step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp, log
from typing import Literal

from pydantic import Field

from omni_thinker.recipe.schedulers import refuse_unknown
from omni_thinker.recipe.types import PositiveFloat
from omni_thinker.schedulers.base import Config, Setting, Stateless
from omni_thinker.types import TaskName


class Mixture(Stateless):
    """Shares in proportion to `weights`: each problem goes to the task furthest behind its share (ties to the
    first), so a task that is due less than one problem a step still gets its turn."""

    def __init__(self, weights: Mapping[TaskName, float], problems_per_step: int) -> None:
        total = sum(weights.values())
        self.shares = {task: weight / total for task, weight in weights.items()}
        self.problems_per_step = problems_per_step
        self._turns: list[TaskName] = []
        self._given: Counter[TaskName] = Counter()

    def quotas(self, step: int) -> dict[TaskName, int]:
        begin, end = step * self.problems_per_step, (step + 1) * self.problems_per_step
        while len(self._turns) < end:
            self._turns.append(self._next())
        counts = Counter(self._turns[begin:end])
        return {task: counts[task] for task in self.shares if counts[task]}

    def stage(self, step: int) -> None:
        return None

    def _next(self) -> TaskName:
        turn = len(self._turns) + 1
        # Rounded, so that equal shares tie exactly instead of by the last bit of a product.
        task = max(self.shares, key=lambda task: round(self.shares[task] * turn - self._given[task], 9))
        self._given[task] += 1
        return task


class UniformConfig(Config):
    """The same share for every task, whatever their weights."""

    kind: Literal["uniform"] = "uniform"

    def build(self, setting: Setting) -> Mixture:
        return Mixture(dict.fromkeys(setting.tasks, 1.0), setting.problems_per_step)


class ProportionalConfig(Config):
    """Shares in proportion to each task's training problems to the power of 1 / `temperature` (arXiv 1907.05019): 1 is
    proportional, large ones are even."""

    kind: Literal["proportional"] = "proportional"
    temperature: PositiveFloat = 1.0
    """1: in proportion to the number of training problems; large: even."""

    def build(self, setting: Setting) -> Mixture:
        logs = {task: log(setting.sizes[task]) / self.temperature for task in setting.tasks}
        most = max(logs.values())
        return Mixture({task: exp(value - most) for task, value in logs.items()}, setting.problems_per_step)


class WeightedConfig(Config):
    """Fixed shares: by the tasks' weights, as in joint training, or by `weights` of its own."""

    kind: Literal["weighted"] = "weighted"
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Weights of its own; tasks without one aren't trained. Empty: the tasks' weights."""

    def check(self, tasks: Sequence[str], key: str) -> None:
        refuse_unknown(list(self.weights), tasks, f"{key}.weights")

    def build(self, setting: Setting) -> Mixture:
        return Mixture(self.weights or setting.weights, setting.problems_per_step)
