"""Paired comparisons of arms: is a difference shown, or not?

The unit is the problem: both arms answer the same problems, so the difference is taken per problem first. With one
seed the interval speaks of new problems and says nothing of how another training run would have come out; with
several it speaks of both (`intervals`)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from omni_thinker.arms import QUESTIONS, rivals
from omni_thinker.compare.intervals import (
    Array,
    Bounds,
    over_problems,
    over_seeds_and_problems,
    seed_variance,
    student_over_problems,
)
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.runs.schema.result import Comparison
from omni_thinker.types import TaskName

Values = Mapping[TaskName, Mapping[str, float]]
"""task -> problem id -> score."""
MIN_TAIL_RESAMPLES = 10
"""Resamples beyond each end of an interval, for a bootstrap to know where it ends."""
Family = Literal["control", "questions", "others"]


def compare_arms(
    arms: Mapping[str, Sequence[Values]], *, resamples: int, confidence: float, control: str = "joint"
) -> list[Comparison]:
    """Every pair of arms, later against earlier, on each task and on `macro`.

    `arms[name]` holds one table per seed, the seeds in one order. Of many comparisons one would show something by luck,
    so what is shown holds for a whole family at once with `confidence` (Bonferroni): the rivals of `control` against
    it, the other pairs of `QUESTIONS`, and all other rows. Intervals of the first two families are widened accordingly.
    """
    pairs = list(combinations(arms, 2))
    matched = {(earlier, later): paired_differences(arms[later], arms[earlier]) for earlier, later in pairs}
    rows = [(pair, task) for pair, tasks in matched.items() for task in (*tasks, MACRO)]
    families = {row: _family(*row, set(rivals(list(arms), control)), control) for row in rows}
    sizes = Counter(families.values())
    differences = {(pair, task): _Difference.of(matched[pair], task) for pair, task in rows}
    typical = {
        task: float(np.mean([d.seed_variance for (_, other), d in differences.items() if other == task]))
        for task in {task for _, task in rows}
    }
    comparisons = []
    for (earlier, later), task in rows:
        row = ((earlier, later), task)
        family, difference = families[row], differences[row]
        strict = 1 - (1 - confidence) / sizes[family]
        level = confidence if family == "others" else strict
        bounds = difference.bounds(resamples, level, typical[task])
        excluded = bounds.low > 0 or bounds.high < 0
        strict_bounds = difference.bounds(resamples, strict, typical[task]) if family == "others" else bounds
        shown = excluded and (strict_bounds.low > 0 or strict_bounds.high < 0)
        ends = (difference.mean, bounds.low, bounds.high, difference.problems, strict_bounds.detectable)
        hint = excluded and not shown
        comparisons.append(Comparison(later, earlier, task, *ends, shown=shown, family=family, hint=hint))
    return comparisons


def _family(pair: tuple[str, str], task: str, against: set[str], control: str) -> Family:
    if task != MACRO:
        return "others"
    if control in pair and set(pair) & against:
        return "control"
    return "questions" if pair in QUESTIONS or pair[::-1] in QUESTIONS else "others"


@dataclass(frozen=True, slots=True)
class _Difference:
    """Two arms on a task or on all. strata: [S, P] of each task; means: [P] of each, over seeds."""

    strata: Sequence[Array]
    means: Sequence[Array]

    @classmethod
    def of(cls, by_task: Mapping[TaskName, Array], task: str) -> "_Difference":
        strata = list(by_task.values()) if task == MACRO else [by_task[task]]
        means = [np.nanmean(d, axis=0) for d in strata]
        whole = [d[:, ~np.isnan(d).any(axis=0)] for d in strata]  # none of a task without a score in some seed
        return cls(whole if strata[0].shape[0] > 1 else [m[None] for m in means], means)

    @property
    def mean(self) -> float:
        return float(np.mean([d.mean() for d in self.means]))

    @property
    def problems(self) -> int:
        return sum(map(len, self.means))

    @property
    def seed_variance(self) -> float:
        """0 with one seed, and where a task has no problem that all seeds scored."""
        known = self.strata[0].shape[0] > 1 and all(d.shape[1] for d in self.strata)
        return seed_variance(self.strata) if known else 0.0

    def bounds(self, resamples: int, confidence: float, typical: float) -> Bounds:
        """One seed: by bootstrap over problems where so many resamples have some in the tails, else by Student."""
        if self.strata[0].shape[0] > 1:
            return over_seeds_and_problems(self.mean, self.strata, confidence, typical)
        if resamples * (1 - confidence) / 2 >= MIN_TAIL_RESAMPLES - 1e-9:
            return over_problems(self.means, resamples, confidence)
        return student_over_problems(self.means, confidence)


def paired_differences(a: Sequence[Values], b: Sequence[Values]) -> dict[TaskName, Array]:
    """Per task, `a - b` of every problem that both scored in some seed; [S, P], NaN where one lacks a score."""
    rows = list(zip(a, b, strict=True))
    differences = {}
    for task in dict.fromkeys(task for of_seed, _ in rows for task in of_seed):
        both = [{p: v - y[task][p] for p, v in x.get(task, {}).items() if p in y.get(task, {})} for x, y in rows]
        problems = dict.fromkeys(problem for of_seed in both for problem in of_seed)
        if problems:
            differences[task] = np.array([[of_seed.get(problem, np.nan) for problem in problems] for of_seed in both])
    return differences
