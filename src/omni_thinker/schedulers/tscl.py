"""TSCL: the task that is learned, or forgotten, fastest (teacher-student curriculum learning, arXiv 1707.00183)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.recipe.types import Positive, Share
from omni_thinker.schedulers.adaptive import Adaptive, Shares
from omni_thinker.schedulers.base import Config, Setting
from omni_thinker.types import TaskName


class Tscl(Adaptive):
    """The paper's window algorithm: each task's slope is that of a straight line through its last `window` rewards over
    the steps they came from; the task with the steepest slope, up or down, gets 1 - explore of a step, and `explore` is
    shared evenly. Until each task has two rewards, and where nothing changes, all shares are even."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int, *, window: int, explore: float) -> None:
        super().__init__(tasks, problems_per_step)
        self.window, self.explore = window, explore
        self._seen: dict[TaskName, list[tuple[int, float]]] = {task: [] for task in self.tasks}

    def slopes(self) -> dict[TaskName, float]:
        return {task: slope(rewards) for task, rewards in self._seen.items()}

    def shares(self) -> Shares:
        even = 1 / len(self.tasks)
        if any(len(rewards) < 2 for rewards in self._seen.values()):
            return dict.fromkeys(self.tasks, even)
        slopes = self.slopes()
        if not any(slopes.values()):
            return dict.fromkeys(self.tasks, even)
        steepest = max(self.tasks, key=lambda task: abs(slopes[task]))
        return {task: self.explore * even + (1 - self.explore) * (task == steepest) for task in self.tasks}

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        for task in self.tasks:
            if (reward := metrics.get(f"reward/{task}")) is not None:
                self._seen[task] = [*self._seen[task], (step, reward)][-self.window :]

    def state(self) -> dict[str, Any]:
        return {"seen": {task: list(map(list, points)) for task, points in self._seen.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = {task: [(step, reward) for step, reward in points] for task, points in state["seen"].items()}


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Slope of the least-squares line through the points; 0 for fewer than two."""
    if len(points) < 2:
        return 0.0
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0


class TsclConfig(Config):
    """The task whose reward changes fastest (arXiv 1707.00183)."""

    kind: Literal["tscl"] = "tscl"
    window: Annotated[Positive, Field(ge=2)] = 10
    """Steps over which a reward's slope is measured."""
    explore: Share = 0.3
    """Share of a step that all tasks get evenly."""

    def build(self, setting: Setting) -> Tscl:
        return Tscl(setting.tasks, setting.problems_per_step, window=self.window, explore=self.explore)
