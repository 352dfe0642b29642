"""PAC: Thompson sampling of learnability that grows with progress."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.recipe.types import Count, Positive, PositiveFloat
from omni_thinker.schedulers.adaptive import learnability
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.schedulers.tscl import slope
from omni_thinker.types import TaskName


class Pac:
    """A task's utility is (1 + its reward's slope, as a share of the steepest) * its mean absolute advantage. What is
    known of it is a normal distribution, whose variance grows by `drift` a step and shrinks with each utility seen
    (variance `noise`). Each problem of a step goes to the task whose draw is highest; the first `cold_start` steps are
    dealt out evenly.

    By its description in a paper that cites arXiv 2507.14783; how it normalises slopes is our reading."""

    def __init__(
        self,
        tasks: Sequence[TaskName],
        problems_per_step: int,
        *,
        seed: int,
        cold_start: int,
        window: int,
        drift: float,
        noise: float,
    ) -> None:
        self.tasks, self.problems_per_step, self.seed = tuple(tasks), problems_per_step, seed
        self.cold_start, self.window, self.drift, self.noise = cold_start, window, drift, noise
        self._rewards: dict[TaskName, list[tuple[int, float]]] = {task: [] for task in self.tasks}
        self.mean = dict.fromkeys(self.tasks, 0.0)
        self.variance = dict.fromkeys(self.tasks, 1.0)

    def quotas(self, step: int) -> dict[TaskName, int]:
        count = len(self.tasks)
        if step < self.cold_start:
            begin = step * self.problems_per_step
            drawn = [self.tasks[(begin + i) % count] for i in range(self.problems_per_step)]
        else:
            rng = np.random.default_rng((self.seed, step))
            spread = np.sqrt([self.variance[task] for task in self.tasks])
            draws = rng.normal([self.mean[task] for task in self.tasks], spread, (self.problems_per_step, count))
            drawn = [self.tasks[int(place)] for place in draws.argmax(axis=1)]
        counts = Counter(drawn)
        return {task: counts[task] for task in self.tasks if counts[task]}

    def stage(self, step: int) -> None:
        return None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        for task in self.tasks:
            self.variance[task] += self.drift
            if (reward := metrics.get(f"reward/{task}")) is not None:
                self._rewards[task] = [*self._rewards[task], (step, reward)][-self.window :]
        slopes = {task: slope(rewards) for task, rewards in self._rewards.items()}
        steepest = max(map(abs, slopes.values()))
        for task, measured in learnability(metrics, self.tasks).items():
            utility = (1 + (slopes[task] / steepest if steepest else 0.0)) * measured
            trust = self.variance[task] / (self.variance[task] + self.noise)
            self.mean[task] += trust * (utility - self.mean[task])
            self.variance[task] *= 1 - trust

    def state_dict(self) -> dict[str, Any]:
        rewards = {task: list(map(list, points)) for task, points in self._rewards.items()}
        return {"rewards": rewards, "mean": dict(self.mean), "variance": dict(self.variance)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rewards = {task: [(step, reward) for step, reward in points] for task, points in state["rewards"].items()}
        self.mean, self.variance = dict(state["mean"]), dict(state["variance"])


class PacConfig(Config):
    """Thompson sampling of learnability that grows with progress."""

    kind: Literal["pac"] = "pac"
    cold_start: Count | None = None
    """Steps of even shares; none: 50, or a quarter of the arm's where that is less."""
    window: Annotated[Positive, Field(ge=2)] = 10
    """Steps over which a reward's slope is measured."""
    drift: PositiveFloat = 0.01
    """What the variance of a task's utility grows by in a step."""
    noise: PositiveFloat = 0.1
    """Variance of one utility that was seen."""

    def build(self, setting: Setting) -> Pac:
        cold_start = min(50, setting.steps // 4) if self.cold_start is None else self.cold_start
        if self.cold_start is not None and cold_start >= setting.steps:
            raise UserError(f"must be fewer than the {setting.steps} steps of an arm", key=f"{setting.key}.cold_start")
        return Pac(
            setting.tasks,
            setting.problems_per_step,
            seed=setting.seed,
            cold_start=cold_start,
            window=self.window,
            drift=self.drift,
            noise=self.noise,
        )
