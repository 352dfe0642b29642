"""Learning the priors of the hierarchical forecaster from an atlas.

First what single runs show directly: means and spreads of the shared part, the own gain and the specific effects, of
the highest posterior over the matrices of all seats. Then what only mixtures, sequences and merges show: dilution,
retention, what a merge keeps, luck, the learning curve. These are such that the forecasts of all cases have the least
mean CRPS, a proper score of a distribution against what came (Gneiting and Raftery 2007), with the hand-set priors as a
prior: a case's evaluation weighs as much as one observation. SciPy's L-BFGS does both."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log

import numpy as np

from omni_thinker.errors import UserError
from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.schema.priors import Beta, Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import Array, measured
from omni_thinker.transfer.hierarchical import Hierarchical, fit_hyper
from omni_thinker.transfer.latents import Measured
from omni_thinker.transfer.priors.cases import Case, cases_of, matrices_of
from omni_thinker.transfer.priors.named import HAND

LEAST_CASES = 20
"""Fewest evaluations that priors are learned from."""
_DRAWS = 300
_TIGHTNESS = (0.35, 0.6, 1.0)
"""How sure one may be of what single runs show, in multiples of the hand-set doubt."""
_SHARE_SPREADS = (1.0, 0.7)
"""Doubt of a hand-set share: of the log-odds of its mean, and of the log of its weight."""
_LOG_SPREADS = (0.5, 0.5, 0.5, 0.4, 0.6)
"""Doubt of the logarithms of both kinds of luck, response, curve and recovery."""
_DOUBT = np.array([*_SHARE_SPREADS * 3, *_LOG_SPREADS])
"""Of all that is searched over, in the order of `_numbers`."""


def learn(
    matrices: Sequence[TransferMatrix],
    cases: Sequence[Case],
    *,
    name: str,
    begin: Priors = HAND,
    on_try: Callable[[float], None] | None = None,
) -> Priors:
    """Priors called `name`, from matrices of single runs and from what other runs came to.

    begin: what they are drawn to where the atlas says little. on_try: called with the mean CRPS of each try. Raises
    UserError where there are fewer than `LEAST_CASES` evaluations."""
    from scipy.optimize import minimize

    if len(cases) < LEAST_CASES:
        raise UserError(
            f"priors are learned from {LEAST_CASES} evaluations of mixtures, sequences and merges at least; these rows "
            f"have {len(cases)} whose tasks were all trained alone from the same start"
        )
    hyper = fit_hyper([Measured.of(matrix.columns(), matrix.tasks) for matrix in matrices], begin)
    told = [_around(begin, hyper, tightness) for tightness in _TIGHTNESS]
    tries = [(made.score(made.priors), made) for made in (_Cases.of(cases, priors) for priors in told)]
    unit, fit = min(tries, key=lambda scored: scored[0])
    start = _numbers(fit.priors)

    def cost(numbers: Array) -> float:
        score = fit.score(_priors(fit.priors, numbers))
        if on_try:
            on_try(score)
        return float(fit.count * score / (unit or 1.0) + 0.5 * (((numbers - start) / _DOUBT) ** 2).sum())

    bounds = [(at - 4 * width, at + 4 * width) for at, width in zip(start, _DOUBT, strict=True)]
    found = minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40, "eps": 1e-3})
    return replace(_priors(fit.priors, np.asarray(found.x)), name=name)


def learn_from(rows: Sequence[AtlasRow], *, name: str, on_try: Callable[[float], None] | None = None) -> Priors:
    """Priors called `name`, from the rows of an atlas. Raises UserError as `learn` does."""
    return learn(list(matrices_of(rows).values()), cases_of(rows), name=name, on_try=on_try)


def crps(draws_C_N: Array, seen_C: Array) -> Array:
    """Continuous ranked probability score of draws against what was seen, [C]; in the units of the draws, 0 at best."""
    count = draws_C_N.shape[1]
    ranked = np.sort(draws_C_N, axis=1)
    places = 2 * np.arange(1, count + 1) - count - 1
    return np.asarray(np.abs(ranked - seen_C[:, None]).mean(axis=1) - (ranked @ places) / count**2)


@dataclass(frozen=True, slots=True)
class _Cases:
    """Forecasters of some cases, whose latents were drawn under `priors`."""

    priors: Priors
    forecasters: tuple[Hierarchical, ...]
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, cases: Iterable[Case], priors: Priors) -> "_Cases":
        cases = tuple(cases)
        made = {id(case.matrix): case.matrix for case in cases}
        known = {key: Hierarchical(matrix, _DRAWS, priors=priors) for key, matrix in made.items()}
        return cls(priors, tuple(known[id(case.matrix)] for case in cases), cases)

    @property
    def count(self) -> int:
        """Accuracies that were forecast."""
        return sum(len(case.seen) for case in self.cases)

    def score(self, priors: Priors) -> float:
        """Mean CRPS over all accuracies, in accuracy."""
        under = {id(predict): predict.under(priors) for predict in self.forecasters}
        scores = [
            crps(
                measured(predict, under[id(predict)].by_column(case.plan)),
                np.array([case.seen[column.name].mean for column in predict.columns]),
            )
            for predict, case in zip(self.forecasters, self.cases, strict=True)
        ]
        return float(np.concatenate(scores).mean())


def _around(begin: Priors, hyper: Array, tightness: float) -> Priors:
    """`begin`, around what single runs show. hyper: as of `fit_hyper`."""
    shared, shared_spread, own, own_spread, specific_spread = map(float, hyper)
    return replace(
        begin,
        shared=(shared, begin.shared[1] * tightness),
        shared_spread=(shared_spread, begin.shared_spread[1] * tightness),
        own=(own, begin.own[1] * tightness),
        own_spread=(own_spread, begin.own_spread[1] * tightness),
        specific_spread=(specific_spread, begin.specific_spread[1] * tightness),
    )


def _numbers(priors: Priors) -> Array:
    """What is searched over, on scales without bounds: dilution, retention, merged, then logarithms of the rest."""
    shares = [value for beta in (priors.dilution, priors.retention, priors.merged) for value in _free(beta)]
    return np.array([*shares, *map(log, (*priors.luck, priors.response, priors.curve, priors.recovery))])


def _priors(like: Priors, numbers: Array) -> Priors:
    values = [float(number) for number in numbers]
    dilution, retention, merged = (_beta(*values[at : at + 2]) for at in (0, 2, 4))
    least, per_spread, response, curve, recovery = map(exp, values[6:])
    return replace(
        like,
        dilution=dilution,
        retention=retention,
        merged=merged,
        luck=(least, per_spread),
        response=response,
        curve=curve,
        recovery=recovery,
    )


def _free(beta: Beta) -> tuple[float, float]:
    """Log-odds of the mean, and log of the weight."""
    a, b = beta
    return log(a / b), log(a + b)


def _beta(odds: float, weight: float) -> Beta:
    mean = 1 / (1 + exp(-odds))
    return exp(weight) * mean, exp(weight) * (1 - mean)
