"""Paired comparisons of arms: is a difference shown, or not?

The unit is the problem: both arms answer the same problems, so the difference is taken per problem first. With one
seed the interval speaks of new problems and says nothing of how another training run would have come out; with
several it speaks of both (`intervals`)."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from omni_thinker.arms import rivals
from omni_thinker.compare.intervals import NOTHING, Array, Bounds, SeedSpread, over_problems, over_seeds_and_problems
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.runs.schema.result import Comparison
from omni_thinker.types import TaskName

Values = Mapping[TaskName, Mapping[str, float]]
"""task -> problem id -> score."""


def compare_arms(
    arms: Mapping[str, Sequence[Values]], *, resamples: int, confidence: float, control: str = "joint"
) -> list[Comparison]:
    """Every pair of arms, later against earlier, on each task and on `macro`.

    `arms[name]` holds one table per seed, the seeds in one order. Intervals of the rivals of `control` against it are
    widened so that they hold all at once with `confidence` (Bonferroni): of many arms one would win by luck."""
    comparisons = []
    against = rivals(list(arms), control)
    seeds = _Seeds(arms, [*against, control])
    for earlier, later in combinations(arms, 2):
        pair = {earlier, later}
        many = len(against) if control in pair and pair & set(against) else 1
        level = 1 - (1 - confidence) / many
        matched = paired_differences(arms[later], arms[earlier])
        for task in (*matched, MACRO):
            strata = list(matched.values()) if task == MACRO else [matched[task]]
            means = [np.nanmean(d, axis=0) for d in strata]
            difference = float(np.mean([d.mean() for d in means]))
            interval = _interval(difference, strata, means, seeds.spread(task, pair), resamples, level)
            count = sum(len(d) for d in means)
            shown = interval.low > 0 or interval.high < 0
            ends = (interval.low, interval.high, count, interval.detectable)
            comparisons.append(Comparison(later, earlier, task, difference, *ends, shown=shown))
    return comparisons


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


class _Seeds:
    """How much arms' scores spread from seed to seed. Arms trained on all tasks are pooled; pairs with others (the
    start, single tasks) take the spread over all arms."""

    def __init__(self, arms: Mapping[str, Sequence[Values]], trained: Sequence[str]) -> None:
        self.trained = [name for name in arms if name in trained]
        self.scores = {name: [_task_means(values) for values in seeds] for name, seeds in arms.items()}
        self.known: dict[tuple[str, bool], SeedSpread | None] = {}

    def spread(self, task: str, pair: set[str]) -> SeedSpread | None:
        """The spread between seeds, or None with one seed."""
        inside = pair <= set(self.trained)
        if (task, inside) not in self.known:
            names = self.trained if inside else list(self.scores)
            table = np.array([[means.get(task, np.nan) for means in self.scores[name]] for name in names])
            usable = table.shape[1] > 1 and not np.isnan(table).any()
            self.known[task, inside] = SeedSpread.of(table) if usable else None
        return self.known[task, inside]


def _task_means(values: Values) -> dict[str, float]:
    means = {task: float(np.mean(list(of_problem.values()))) for task, of_problem in values.items() if of_problem}
    return {**means, MACRO: float(np.mean(list(means.values())))} if len(means) == len(values) else means


def _interval(
    difference: float,
    strata: Sequence[Array],
    means: Sequence[Array],
    spread: SeedSpread | None,
    resamples: int,
    confidence: float,
) -> Bounds:
    if strata[0].shape[0] == 1:
        return over_problems(means, resamples, confidence)
    if spread is None:
        return NOTHING  # a task without a single score in some seed
    whole = [d[:, ~np.isnan(d).any(axis=0)] for d in strata]
    return over_seeds_and_problems(difference, whole, spread, confidence)
