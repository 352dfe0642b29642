"""What schedulers that learn have in common: shares of tasks become exact counts, and remember what is owed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.types import TaskName

Shares = Mapping[TaskName, float]
"""Shares of tasks, which add up to 1."""


class Adaptive(ABC):
    """Gives each task its share of every step's problems, exactly in the long run: what rounding owes a task is carried
    over. A subclass says what the shares are and what it learns.

    `quotas` is a pure function of the state; the state changes in `observe` alone."""

    def __init__(self, tasks: Sequence[TaskName], problems_per_step: int) -> None:
        self.tasks = tuple(tasks)
        self.problems_per_step = problems_per_step
        self._owed = dict.fromkeys(self.tasks, 0.0)

    @abstractmethod
    def shares(self) -> Shares:
        """The shares of the next step."""

    @abstractmethod
    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Learn from a step's metrics."""

    def quotas(self, step: int) -> dict[TaskName, int]:
        """Each problem in turn goes to the task that is owed most (ties to the first)."""
        owed = {task: self._owed[task] + share * self.problems_per_step for task, share in self._shares().items()}
        counts = dict.fromkeys(self.tasks, 0)
        for _ in range(self.problems_per_step):
            # Rounded, so that equal debts tie exactly instead of by the last bit of a product.
            task = max(self.tasks, key=lambda task: round(owed[task] - counts[task], 9))
            counts[task] += 1
        return {task: count for task, count in counts.items() if count}

    def _shares(self) -> Shares:
        """Raises ValueError for shares that can't be dealt out."""
        shares = self.shares()
        sound = isinstance(shares, Mapping) and set(shares) == set(self.tasks)
        if not sound or not all(share >= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
            expected = f"a share of at least 0 for each of {', '.join(self.tasks)}, adding up to 1"
            raise ValueError(f"shares() returned {shares!r:.200}, not {expected}")
        return shares

    def stage(self, step: int) -> None:
        return None

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        given = self.quotas(step)
        for task, share in self._shares().items():
            self._owed[task] += share * self.problems_per_step - given.get(task, 0)
        self.update(step, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"owed": dict(self._owed), **self.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._owed = dict(state["owed"])
        self.restore(state)

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The state as plain JSON, for `restore`."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None: ...


def learnability(metrics: Mapping[str, float], tasks: Sequence[TaskName]) -> dict[TaskName, float]:
    """Mean absolute advantage of each task that the step sampled."""
    return {task: value for task in tasks if (value := metrics.get(f"advantage/{task}")) is not None}
