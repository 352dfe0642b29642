"""DUMP: an upper confidence bound on learnability (arXiv 2504.09710)."""

from collections.abc import Mapping, Sequence
from math import log, sqrt
from typing import Any, Literal

from omni_thinker.recipe.types import Positive, PositiveFloat
from omni_thinker.rl.shares import softmax
from omni_thinker.schedulers.adaptive import Adaptive, Shares
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName


class Dump(Adaptive):
    """Mean absolute advantage over the last `window` problems of a task, plus bonus * sqrt(2 ln(N + 1) / (n + 1)) for
    the n problems of it among all N; shares softmax(bound / T). A task without problems yet counts as 0.

    The bonus is in units of advantage; the paper's is 1."""

    def __init__(
        self, tasks: Sequence[TaskName], problems_per_step: int, *, window: int, bonus: float, temperature: float
    ) -> None:
        super().__init__(tasks, problems_per_step)
        self.window, self.bonus, self.temperature = window, bonus, temperature
        self._seen: dict[TaskName, list[tuple[float, int]]] = {task: [] for task in self.tasks}
        """A step's mean and how many problems it is of, oldest first."""
        self._count = dict.fromkeys(self.tasks, 0)

    def bounds(self) -> dict[TaskName, float]:
        total = sum(self._count.values())
        return {
            task: _mean(self._seen[task]) + self.bonus * sqrt(2 * log(total + 1) / (self._count[task] + 1))
            for task in self.tasks
        }

    def shares(self) -> Shares:
        return softmax(self.bounds(), self.temperature)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        for task in self.tasks:
            if (mean := metrics.get(f"advantage/{task}")) is None:
                continue
            count = int(metrics[f"problems/{task}"])
            self._count[task] += count
            self._seen[task] = _newest([*self._seen[task], (mean, count)], self.window)

    def state(self) -> dict[str, Any]:
        seen = {task: list(map(list, steps)) for task, steps in self._seen.items()}
        return {"seen": seen, "count": dict(self._count)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = {task: [(mean, count) for mean, count in steps] for task, steps in state["seen"].items()}
        self._count = dict(state["count"])


def _mean(steps: Sequence[tuple[float, int]]) -> float:
    total = sum(count for _, count in steps)
    return sum(mean * count for mean, count in steps) / total if total else 0.0


def _newest(steps: Sequence[tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """The last `most` problems; of the oldest step only as many as still fit."""
    newest: list[tuple[float, int]] = []
    for mean, count in reversed(steps):
        fits = min(count, most)
        if not fits:
            break
        newest.append((mean, fits))
        most -= fits
    return newest[::-1]


class DumpConfig(Config):
    """An upper confidence bound on learnability (arXiv 2504.09710)."""

    kind: Literal["dump"] = "dump"
    window: Positive = 300
    """Problems of a task whose learnability is averaged."""
    bonus: PositiveFloat = 1.0
    """Weight of the bonus for tasks that were trained rarely."""
    temperature: PositiveFloat = 0.1
    """Of the softmax."""

    def build(self, setting: Setting) -> Dump:
        return Dump(
            setting.tasks, setting.problems_per_step, window=self.window, bonus=self.bonus, temperature=self.temperature
        )
