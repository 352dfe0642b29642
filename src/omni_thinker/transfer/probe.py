"""Probes that are cheaper than a whole pass: how long, what a pass would have shown, and how true they were."""

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.result import Agreement
from omni_thinker.runs.schema.transfer import Column, Entropies, TransferMatrix
from omni_thinker.transfer.forecast import gain_share
from omni_thinker.transfer.matrix import smoothed
from omni_thinker.transfer.metrics import rank_correlation
from omni_thinker.types import TaskName

_RELATIVE_ERROR = 0.25
"""Standard error of what the learning curve adds, as a share of it."""


def extrapolate(matrix: TransferMatrix, passes: Mapping[TaskName, float]) -> TransferMatrix:
    """The matrix that whole passes would show, from probes of so many passes each.

    On log-odds every change grows along the learning curve (`gain_share`), and its error with it. A probe of one pass
    stays as it is."""

    def column(c: Column) -> Column:
        return replace(c, after={i: _stretched(c.start, e, 1 / gain_share(passes[i])) for i, e in c.after.items()})

    return replace(
        matrix,
        after={
            i: {j: _stretched(matrix.start[j], e, 1 / gain_share(passes[i])) for j, e in row.items()}
            for i, row in matrix.after.items()
        },
        evaluations=tuple(map(column, matrix.evaluations)),
        entropy=None if matrix.entropy is None else _stretched_entropy(matrix.entropy, passes),
    )


def _stretched_entropy(entropy: Entropies, passes: Mapping[TaskName, float]) -> Entropies:
    def far(i: TaskName, j: TaskName) -> float:
        return max(0.0, entropy.start[j] + entropy.change(i, j) / gain_share(passes[i]))

    return Entropies(entropy.start, {i: {j: far(i, j) for j in row} for i, row in entropy.after.items()})


def agreement(probe: TransferMatrix, full: TransferMatrix) -> Agreement | None:
    """Over the cells that both have; None where there is none."""
    cells = [(i, j) for i in full.tasks for j in full.tasks if j in full.after[i] and j in probe.after.get(i, {})]
    pairs = {cell: (probe.effect(*cell), full.effect(*cell)) for cell in cells}
    if not pairs:
        return None
    others = [pair for (i, j), pair in pairs.items() if i != j]
    away = fmean(abs(probed - measured) for probed, measured in pairs.values())
    return Agreement(len(pairs), rank_correlation(list(pairs.values())), rank_correlation(others), away)


def _stretched(start: Estimate, after: Estimate, factor: float) -> Estimate:
    if abs(factor - 1) < 1e-12:
        return after
    (x0, s0), (x1, s1) = _log_odds(start), _log_odds(after)
    p = 1 / (1 + math.exp(-(x0 + factor * (x1 - x0))))
    spread = math.hypot(factor * s1, (factor - 1) * s0, _RELATIVE_ERROR * (factor - 1) * (x1 - x0))
    # Smoothing is for the log-odds alone: where nothing changed, nothing is added.
    mean = min(1.0, max(0.0, after.mean + p - smoothed(after)))
    return Estimate(mean, after.n, max(after.stderr, spread * p * (1 - p)))


def _log_odds(estimate: Estimate) -> tuple[float, float]:
    p = smoothed(estimate)
    stderr = estimate.stderr if math.isfinite(estimate.stderr) else 0.5
    return math.log(p / (1 - p)), stderr / (p * (1 - p))
