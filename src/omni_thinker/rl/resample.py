"""Quotas that are met although some groups say nothing: the ratio-preserving sampler (MT-GRPO, arXiv 2602.05547).

Groups whose samples all score alike carry no gradient. Were they only dropped, a task where most are would be trained
less than a scheduler asked for. They are replaced by fresh problems of their task, 1 / (1 - f) for each that is
missing, where f is the share of the task's groups that lately said nothing."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any

from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.types import TaskName

_DEVIATIONS = 1.5
"""Standard deviations above the mean that are covered by what is `likely`."""
STEP_DISCOUNT = 0.8
"""Weight of a step's counts one step later: the policy changes, and with it what tells its samples apart."""


class Resampler:
    """Remembers how often groups of a task carry no signal, and says how many problems to draw for those missing."""

    def __init__(self, most: int) -> None:
        """`most`: problems drawn for one that is missing; a task that has hardly any signal must not eat the budget."""
        self.most = most
        self._seen: dict[TaskName, float] = {}
        self._silent: dict[TaskName, float] = {}

    def begin_step(self) -> None:
        for counts in (self._seen, self._silent):
            for task in counts:
                counts[task] *= STEP_DISCOUNT

    def observe(self, groups: Sequence[ScoredGroup]) -> None:
        for group in groups:
            task = group.problem.task
            self._seen[task] = self._seen.get(task, 0.0) + 1
            self._silent[task] = self._silent.get(task, 0.0) + (not group.has_signal)

    def unanimous_rate(self, task: TaskName) -> float:
        """The share of the task's recent groups without signal, in [0, 1]; 0 where none has been seen."""
        observed = self._seen.get(task, 0.0)
        return self._silent[task] / observed if observed > 0 else 0.0

    def draws(self, missing: Mapping[TaskName, int]) -> dict[TaskName, int]:
        """How many problems of each task to sample so that about as many as are missing carry signal, within `most`."""
        return {
            task: min(self.most * count, ceil(count / max(1e-9, 1 - self.unanimous_rate(task)) - 1e-9))
            for task, count in missing.items()
        }

    def likely(self, quotas: Mapping[TaskName, int]) -> dict[TaskName, int]:
        """How many problems of each task `draws` is likely to ask for, once so many were sampled: seldom for more."""
        missing = dict[TaskName, int]()
        for task, quota in quotas.items():
            rate = self.unanimous_rate(task)
            most = ceil(quota * rate + _DEVIATIONS * sqrt(quota * rate * (1 - rate)) - 1e-9)
            missing[task] = min(quota, most)
        return self.draws({task: count for task, count in missing.items() if count})

    def state(self) -> dict[str, Any]:
        """The counts as plain JSON, for `restore`."""
        return {"seen": dict(self._seen), "silent": dict(self._silent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen, self._silent = dict(state["seen"]), dict(state["silent"])
