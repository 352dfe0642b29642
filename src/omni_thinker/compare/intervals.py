"""Intervals for the difference of two arms, over problems alone (one seed) or over training runs and problems.

One seed: the percentile bootstrap over problems, within each task. It says nothing about another training run.

Several seeds: the variance of a difference is that of its seeds plus that of its problems. Each is estimated from the
pair's own scores, since arms may differ in how much they spread, and each gets Student's quantile for its own degrees
of freedom: half = sqrt(sum of t^2 * variance). Such intervals hold at least as often as they promise, whatever the two
variances are (Banerjee, Sankhya A 22, 1960).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

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


def over_problems(strata: Sequence[Array], resamples: int, confidence: float) -> Bounds:
    """The interval of the mean of the strata's means, by percentile bootstrap, each stratum [P] resampled by itself."""
    if any(len(d) < MIN_PROBLEMS for d in strata):
        return NOTHING
    if all(np.ptp(d) == 0 for d in strata):
        same = float(np.mean([d.mean() for d in strata]))
        return Bounds(same, same, None)

    def statistic(*samples: Array, axis: int = -1) -> Array:
        return np.asarray(np.mean([np.mean(sample, axis=axis) for sample in samples], axis=0))

    from scipy.stats import bootstrap  # half a second of imports that a study needs at its end alone

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
    detectable = _half([(float(result.standard_error) ** 2, sum(map(len, strata)))], confidence, POWER)
    return Bounds(low, high, detectable)


def student_over_problems(strata: Sequence[Array], confidence: float) -> Bounds:
    """Student's interval for the mean of the strata's means, each [P]."""
    if any(len(d) < MIN_PROBLEMS for d in strata):
        return NOTHING
    mean = float(np.mean([d.mean() for d in strata]))
    variance = sum(float(d.var(ddof=1)) / len(d) for d in strata) / len(strata) ** 2
    parts = [(variance, sum(len(d) - 1 for d in strata))]
    half = _half(parts, confidence)
    return Bounds(mean - half, mean + half, _half(parts, confidence, POWER) or None)


def over_seeds_and_problems(
    difference: float, strata: Sequence[Array], confidence: float, typical: float = 0.0
) -> Bounds:
    """Of `difference`, the mean of the strata's means. A stratum is a task, [S, P]: problems of two seeds or more.

    typical: `seed_variance` of all pairs of the study on average. Where this pair's is smaller, by luck, what the study
    can detect is taken from there.
    """
    if any(d.shape[1] < MIN_PROBLEMS for d in strata):
        return NOTHING
    of_answers = sum(_noise(d) / d.size for d in strata) / len(strata) ** 2
    # Scores are coarse: seeds that agree to the last digit still hold the noise of single answers.
    of_seeds = seed_variance(strata) or of_answers
    # What single answers add is in the spread of seeds already.
    of_problems = sum(float(d.mean(0).var(ddof=1)) / d.shape[1] for d in strata) / len(strata) ** 2 - of_answers
    if of_seeds == 0 and of_problems <= 0:
        return Bounds(difference, difference, None)
    seeds, problems = strata[0].shape[0] - 1, (max(0.0, of_problems), sum(d.shape[1] - 1 for d in strata))
    half = _half([(of_seeds, seeds), problems], confidence)
    detectable = _half([(max(of_seeds, typical), seeds), problems], confidence, POWER)
    # Scores lie in [0, 1], so differences in [-1, 1].
    return Bounds(max(-1.0, difference - half), min(1.0, difference + half), detectable if detectable <= 1 else None)


def seed_variance(strata: Sequence[Array]) -> float:
    """Variance of the mean of the strata's means that comes of training runs and single answers, from its spread over
    two seeds or more."""
    by_seed_S = np.mean([d.mean(1) for d in strata], axis=0)
    return float(by_seed_S.var(ddof=1)) / len(by_seed_S)


def expected_detectable(problems: Sequence[int], seeds: int, samples: int, confidence: float, *, rivals: int) -> float:
    """The smallest difference of macro averages that a study is likely to see, before it is run; in [0, 1].

    `problems` of each task, answered `samples` times; `rivals` arms are compared with one control. Supposes answers
    about as uncertain as coins of 0.4, arms that differ by 0.1 from problem to problem, and runs by 0.015 from seed to
    seed: on the safe side of what a study of seven arms and three seeds found (coins of 0.13 in these terms, 0.03 and
    0.013).
    """
    coin, by_problem, by_seed = 0.24, 0.1, 0.015
    answers = 2 * coin / (samples * seeds)
    of_answers = sum(answers / count for count in problems) / len(problems) ** 2
    of_problems = sum(2 * by_problem**2 / count for count in problems) / len(problems) ** 2
    freedom = max(1, sum(problems) - len(problems))
    confidence = 1 - (1 - confidence) / max(1, rivals)
    if seeds == 1:
        return min(1.0, _half([(of_problems + of_answers, freedom)], confidence, POWER))
    of_seeds = 2 * by_seed**2 / seeds + of_answers
    return min(1.0, _half([(of_seeds, seeds - 1), (of_problems, freedom)], confidence, POWER))


def _noise(d_S_P: Array) -> float:
    """Variance of a single entry beyond its seed's and its problem's effects."""
    seeds, problems = d_S_P.shape
    residuals = d_S_P - d_S_P.mean(1, keepdims=True) - d_S_P.mean(0) + d_S_P.mean()
    return float((residuals**2).sum() / ((seeds - 1) * (problems - 1)))


def _half(variances: Sequence[tuple[float, int]], confidence: float, power: float | None = None) -> float:
    """Half the width of an interval, from each variance and its degrees of freedom. With `power`: the difference that
    is shown with this probability."""

    from scipy.stats import t as student

    def width(quantile: float) -> float:
        return sqrt(sum(float(student.ppf(quantile, freedom)) ** 2 * variance for variance, freedom in variances))

    return width((1 + confidence) / 2) + (width(power) if power is not None else 0.0)
