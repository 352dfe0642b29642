"""TAC: learnability times what a task's gradient does for the others (arXiv 2606.25178)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.recipe.types import PositiveFloat
from omni_thinker.rl.shares import softmax
from omni_thinker.schedulers.adaptive import Adaptive, Shares, learnability
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName


class Tac(Adaptive):
    """For each task, a moving average of its mean absolute advantage L and one of its alignment a, the mean cosine of
    its projected gradient with the other tasks' in the same step. Utility L x (1 + a) / 2; shares softmax(utility / T).

    The paper's abstract names both signals and their product; that a gradient which is no help and no harm (a = 0)
    counts half, and one that opposes all others nothing, is our reading. Both averages begin at 0."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int, *, rate: float, temperature: float) -> None:
        super().__init__(tasks, problems_per_step)
        self.rate, self.temperature = rate, temperature
        self.learnability = dict.fromkeys(self.tasks, 0.0)
        self.alignment = dict.fromkeys(self.tasks, 0.0)

    def utilities(self) -> dict[TaskName, float]:
        return {task: self.learnability[task] * (1 + self.alignment[task]) / 2 for task in self.tasks}

    def shares(self) -> Shares:
        return softmax(self.utilities(), self.temperature)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        for task, measured in learnability(metrics, self.tasks).items():
            self.learnability[task] += self.rate * (measured - self.learnability[task])
        for task in self.tasks:
            if (cosine := metrics.get(f"alignment/{task}")) is not None:
                self.alignment[task] += self.rate * (cosine - self.alignment[task])

    def state(self) -> dict[str, Any]:
        return {"learnability": dict(self.learnability), "alignment": dict(self.alignment)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.learnability, self.alignment = dict(state["learnability"]), dict(state["alignment"])


class TacConfig(Config):
    """Learnability times how far a task's gradient points where the others' do (arXiv 2606.25178)."""

    kind: Literal["tac"] = "tac"
    rate: Annotated[PositiveFloat, Field(le=1.0)] = 0.5
    """Weight of the last step in the moving averages."""
    temperature: PositiveFloat = 0.1
    """Of the softmax."""

    def build(self, setting: Setting) -> Tac:
        return Tac(setting.tasks, setting.problems_per_step, rate=self.rate, temperature=self.temperature)
