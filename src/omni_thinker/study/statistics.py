"""Paired comparisons of arms: is a difference shown, or not?

The unit is the problem: both arms answer the same problems, so the difference is taken per problem first (averaged
over seeds) and problems are resampled within each task. The interval therefore speaks of new problems; with one
seed it says nothing of how another training run would have come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from omni_thinker.types import TaskName

MIN_PROBLEMS = 6
Values = Mapping[TaskName, Mapping[str, float]]
"""task -> problem id -> score."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`a - b` on a task or on `macro`, with an interval. `shown`: the interval excludes 0."""

    a: str
    b: str
    task: str
    difference: float
    low: float
    high: float
    n: int

    @property
    def shown(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "task": self.task,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "shown": self.shown,
        }


def compare_arms(
    arms: Mapping[str, Sequence[Values]], *, resamples: int, confidence: float, control: str = "joint"
) -> list[Comparison]:
    """Every pair of arms, later against earlier, on each task and on `macro`, the unweighted mean of tasks.

    `arms[name]` holds one table per seed, the seeds in one order. Intervals of the rivals of `control` against it are
    widened so that they hold all at once with `confidence` (Bonferroni): of many arms one would win by luck.
    """
    found = []
    against = rivals(list(arms), control)
    for earlier, later in combinations(arms, 2):
        pair = {earlier, later}
        many = len(against) if control in pair and pair & set(against) else 1
        level = 1 - (1 - confidence) / many
        differences = paired_differences(arms[later], arms[earlier])
        for task, values in [*((t, [d]) for t, d in differences.items()), ("macro", list(differences.values()))]:
            found.append(_compare(later, earlier, task, values, resamples, level))
    return found


def rivals(arms: Sequence[str], control: str = "joint") -> list[str]:
    """Arms that are compared with `control`: all but the start and single tasks, which answer other questions."""
    return [name for name in arms if name not in ("start", control) and not name.startswith("single:")]


def paired_differences(a: Sequence[Values], b: Sequence[Values]) -> dict[TaskName, NDArray[np.float64]]:
    """Per task, `a - b` of every problem that both scored, averaged over the seeds in which both did."""
    differences: dict[TaskName, dict[str, list[float]]] = {}
    for values_a, values_b in zip(a, b, strict=True):
        for task, own in values_a.items():
            for problem, value in own.items():
                if problem in values_b[task]:
                    differences.setdefault(task, {}).setdefault(problem, []).append(value - values_b[task][problem])
    return {task: np.array([np.mean(v) for v in own.values()]) for task, own in differences.items()}


def _compare(
    a: str, b: str, task: str, strata: list[NDArray[np.float64]], resamples: int, confidence: float
) -> Comparison:
    difference = float(np.mean([d.mean() for d in strata]))
    low, high = _interval(strata, resamples, confidence)
    return Comparison(a, b, task, difference, low, high, sum(len(d) for d in strata))


def _interval(strata: list[NDArray[np.float64]], resamples: int, confidence: float) -> tuple[float, float]:
    """Percentile bootstrap, each stratum resampled by itself.

    Fewer than six problems of a task show nothing, however alike: a sign test on five has p = 1/16. Resampling
    them would only repeat them.
    """
    if any(len(d) < MIN_PROBLEMS for d in strata):
        return -1.0, 1.0
    if all(np.ptp(d) == 0 for d in strata):
        same = float(np.mean([d.mean() for d in strata]))
        return same, same

    def statistic(*samples: NDArray[np.float64], axis: int = -1) -> Any:
        return np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0)

    result = bootstrap(
        strata,
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
