"""Joint training: fixed shares of every task in every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from omni_thinker.schedulers.base import Stateless
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
