"""SEC: the self-evolving curriculum, a bandit on learnability (arXiv 2505.14970)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.recipe.types import PositiveFloat
from omni_thinker.rl.shares import softmax
from omni_thinker.schedulers.adaptive import Adaptive, Shares, learnability
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName


class Sec(Adaptive):
    """Q_k <- rate * (mean absolute advantage of k) + (1 - rate) * Q_k, where k was sampled; shares softmax(Q / T).

    Every Q begins at 0. The paper draws each problem's category; here shares become exact counts."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int, *, rate: float, temperature: float) -> None:
        super().__init__(tasks, problems_per_step)
        self.rate, self.temperature = rate, temperature
        self.values = dict.fromkeys(self.tasks, 0.0)

    def shares(self) -> Shares:
        return softmax(self.values, self.temperature)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        for task, measured in learnability(metrics, self.tasks).items():
            self.values[task] = self.rate * measured + (1 - self.rate) * self.values[task]

    def state(self) -> dict[str, Any]:
        return {"values": dict(self.values)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state["values"])


class SecConfig(Config):
    """A bandit on learnability (arXiv 2505.14970)."""

    kind: Literal["sec"] = "sec"
    rate: Annotated[PositiveFloat, Field(le=1.0)] = 0.5
    """Weight of the last step in the moving average."""
    temperature: PositiveFloat = 0.2
    """Of the softmax."""

    def build(self, setting: Setting) -> Sec:
        return Sec(setting.tasks, setting.problems_per_step, rate=self.rate, temperature=self.temperature)
