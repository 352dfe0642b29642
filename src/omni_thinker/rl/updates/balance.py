"""How much of an update each task is: left as it comes, or held at a share.

Norms of tasks' gradients differ by more than ten times, and don't follow what there is to gain (arXiv 2510.19178).
Token weights are multiplied by one factor a task, so that a batch's loss stays a sum over its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from omni_thinker.errors import UserError
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import TaskName

Kind = Literal["none", "tokens", "gradient"]
DISCOUNT = 0.8
"""Weight of a norm one step later."""
MOST = 100.0
"""Largest factor, and its inverse the smallest: what was measured on little must not run away."""


class Balance:
    """Factors of tasks in a batch. With "gradient" they come from norms of earlier steps, at factor 1."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._norms: dict[TaskName, float] = {}

    def factors(self, batch: Sequence[TrainGroup], shares: Mapping[TaskName, float]) -> dict[TaskName, float]:
        """What each task's token weights are multiplied by, so that its part of the whole is its share. The whole stays
        as it is. 1 for all where a task has none to go by yet."""
        tasks = dict.fromkeys(group.task for group in batch)
        sizes = self._sizes(batch) if self.kind == "tokens" else {t: self._norms.get(t, 0.0) for t in tasks}
        if self.kind == "none" or len(tasks) < 2 or min(sizes.values()) <= 0:
            return dict.fromkeys(tasks, 1.0)
        whole, total = sum(sizes.values()), sum(shares[task] for task in tasks)
        wanted = {task: whole * shares[task] / total / sizes[task] for task in tasks}
        return {task: min(MOST, max(1 / MOST, factor)) for task, factor in wanted.items()}

    def observe(self, norms: Mapping[TaskName, float], factors: Mapping[TaskName, float]) -> None:
        """Norms of tasks' gradients in an update that was made with `factors`.

        Raises UserError where the policy measured none of several."""
        if self.kind != "gradient":
            return
        if len(factors) > 1 and not norms:
            raise UserError("this policy doesn't say each task's gradient", key="rl.balance")
        for task, norm in norms.items():
            if norm > 0:
                plain = norm / factors[task]
                before = self._norms.get(task, plain)
                self._norms[task] = DISCOUNT * before + (1 - DISCOUNT) * plain

    def state(self) -> Any:
        """The norms as plain JSON, for `restore`."""
        return dict(self._norms)

    def restore(self, state: Any) -> None:
        self._norms = dict(state)

    @staticmethod
    def _sizes(batch: Sequence[TrainGroup]) -> dict[TaskName, float]:
        sizes: dict[TaskName, float] = {}
        for group in batch:
            own = sum(w * sample.drawn for w, sample in zip(group.weights, group.samples, strict=True))
            sizes[group.task] = sizes.get(group.task, 0.0) + own
        return sizes


def weighed(batch: Sequence[TrainGroup], factors: Mapping[TaskName, float]) -> list[TrainGroup]:
    """The batch with token weights times their task's factor."""
    return [
        group
        if factors[group.task] == 1
        else replace(group, weights=tuple(weight * factors[group.task] for weight in group.weights))
        for group in batch
    ]
