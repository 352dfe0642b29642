"""Intervals for the difference of two arms, over problems alone (one seed) or over training runs and problems.

One seed: the percentile bootstrap over problems, within each task; it says nothing of another training run.

Several seeds: what a bootstrap over seeds and problems would tend to, without what it gets wrong at two or three seeds.
The variance of a difference is that of its seeds plus that of its problems, less what both hold (the noise of single
answers). Spread over seeds is pooled over arms, as in a block design, since two seeds of one pair say next to nothing;
quantiles are Student's t with Satterthwaite's degrees of freedom."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap
from scipy.stats import t as student

Array = NDArray[np.float64]

MIN_TRUSTED_DF = 3
"""A spread of fewer degrees of freedom is not trusted by itself."""

MIN_PROBLEMS = 6
"""Fewer problems of a task show nothing, however alike: a sign test on five has p = 1/16."""
POWER = 0.9
"""Power of a study at the smallest difference that it is said to see."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`detectable`: the smallest true difference whose interval would leave out 0 nine times in ten; None where the
    data can't say."""

    low: float
    high: float
    detectable: float | None


NOTHING = Bounds(-1.0, 1.0, None)


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """Variance of an arm's score from seed to seed beyond what all arms share, and its degrees of freedom."""

    variance: float
    freedom: int

    @classmethod
    def of(cls, scores_A_S: Array) -> "SeedSpread":
        """Estimate the spread from the scores of at least two arms over the same two or more seeds."""
        arms, seeds = scores_A_S.shape
        residual_A_S = scores_A_S - scores_A_S.mean(1, keepdims=True) - scores_A_S.mean(0) + scores_A_S.mean()
        freedom = (arms - 1) * (seeds - 1)
        return cls(float((residual_A_S**2).sum()) / freedom, freedom)


def over_problems(strata: Sequence[Array], resamples: int, confidence: float) -> Bounds:
    """The interval of the mean of the strata's means, by percentile bootstrap, each stratum [P] resampled by itself."""
    if any(len(d) < MIN_PROBLEMS for d in strata):
        return NOTHING
    if all(np.ptp(d) == 0 for d in strata):
        same = float(np.mean([d.mean() for d in strata]))
        return Bounds(same, same, None)

    def statistic(*samples: Array, axis: int = -1) -> Array:
        return np.asarray(np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0))

    result = bootstrap(
        list(strata),
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    low, high = map(float, result.confidence_interval)
    return Bounds(low, high, _detectable(float(result.standard_error), sum(map(len, strata)), confidence))


def over_seeds_and_problems(
    difference: float, strata: Sequence[Array], spread: SeedSpread, confidence: float
) -> Bounds:
    """The interval of `difference`, the mean of the strata's means. A stratum is a task, [S, P]: problems of every
    seed."""
    seeds = strata[0].shape[0]
    if any(d.shape[1] < MIN_PROBLEMS for d in strata):
        return NOTHING
    of_seeds = 2 * spread.variance / seeds
    of_problems = sum(float(d.mean(0).var(ddof=1)) / d.shape[1] for d in strata) / len(strata) ** 2
    shared = sum(_noise(d) / d.size for d in strata) / len(strata) ** 2
    variance = max(of_seeds, of_problems, of_seeds + of_problems - shared)
    if variance == 0:
        return Bounds(difference, difference, None)
    problems = sum(d.shape[1] - 1 for d in strata)
    freedom = _freedom(variance, of_seeds, spread.freedom, of_problems, problems)
    half = float(student.ppf((1 + confidence) / 2, freedom)) * sqrt(variance)
    detectable = _detectable(sqrt(variance), freedom, confidence)
    # Scores lie in [0, 1], so differences in [-1, 1].
    return Bounds(max(-1.0, difference - half), min(1.0, difference + half), detectable if detectable <= 1 else None)


def expected_detectable(
    problems: Sequence[int], seeds: int, arms: int, samples: int, confidence: float, *, rivals: int
) -> float:
    """The smallest difference of macro averages that a study is likely to see, before it is run; in [0, 1].

    `problems` of each task, answered `samples` times, by `arms` trained arms of which `rivals` are compared with one
    control. Supposes answers about as uncertain as coins of 0.4, arms that differ by 0.1 from problem to problem, and
    runs by 0.015 from seed to seed: on the safe side of what a study of seven arms and three seeds found (coins of 0.13
    in these terms, 0.03 and 0.013)."""
    coin, by_problem, by_seed = 0.24, 0.1, 0.015
    per_problem = 2 * (by_problem**2 + coin / (samples * seeds))
    of_problems = sum(per_problem / count for count in problems) / len(problems) ** 2
    of_seeds = 2 * by_seed**2 / seeds
    variance = of_problems + of_seeds
    problem_freedom = sum(problems) - len(problems)
    freedom: float = max(1, problem_freedom)
    if seeds > 1 and problem_freedom > 0:
        pooled = max(1, (arms - 1) * (seeds - 1))
        freedom = _freedom(variance, of_seeds, pooled, of_problems, problem_freedom)
    detectable = _detectable(sqrt(variance), freedom, 1 - (1 - confidence) / max(1, rivals))
    return min(1.0, detectable)


def _freedom(variance: float, of_seeds: float, seeds: int, of_problems: float, problems: int) -> float:
    """Satterthwaite's degrees of freedom of a variance made of two parts, with those of each.

    Where only one of the two counts, no fewer than it has itself; but a spread of a few degrees may be near 0 by luck,
    and must not be taken for none."""
    least = min(seeds, problems)
    if seeds < MIN_TRUSTED_DF:
        return least
    return max(variance**2 / (of_seeds**2 / seeds + of_problems**2 / problems), least)


def _noise(d_S_P: Array) -> float:
    """Variance of a single entry beyond its seed's and its problem's effects."""
    seeds, problems = d_S_P.shape
    residual_S_P = d_S_P - d_S_P.mean(1, keepdims=True) - d_S_P.mean(0) + d_S_P.mean()
    return float((residual_S_P**2).sum() / ((seeds - 1) * (problems - 1)))


def _detectable(stderr: float, freedom: float, confidence: float) -> float:
    quantile, power = student.ppf((1 + confidence) / 2, freedom), student.ppf(POWER, freedom)
    return float(stderr * (quantile + power))
