"""Short probes: how long, and what a whole pass would have shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from omni_thinker.rl.evaluate import Estimate
from omni_thinker.transfer.forecast import gain_share, smoothed
from omni_thinker.transfer.matrix import Column, TransferMatrix
from omni_thinker.types import TaskName

_DOUBT = 0.25
"""Standard error of what the learning curve adds, as a share of it."""


def probe_steps(stage: int, arms: int, steps: int, tasks: int, share: float) -> int:
    """Steps of one probe so that all `tasks` of them take at most `share` of all training steps, where `arms` others
    take `steps` each; at least 1, at most the whole `stage`."""
    if share >= 1:
        return stage
    return max(1, min(stage, math.floor(share / (1 - share) * arms * steps / tasks + 1e-9)))


def extrapolate(matrix: TransferMatrix, passes: Mapping[TaskName, float]) -> TransferMatrix:
    """The matrix that whole passes would show, from probes of so many passes each.

    On log-odds every change grows along the learning curve (`gain_share`), and its error with it. A probe of one pass
    stays as it is.
    """

    def column(c: Column) -> Column:
        return replace(c, after={i: _stretched(c.start, e, 1 / gain_share(passes[i])) for i, e in c.after.items()})

    return replace(
        matrix,
        after={
            i: {j: _stretched(matrix.start[j], e, 1 / gain_share(passes[i])) for j, e in row.items()}
            for i, row in matrix.after.items()
        },
        evaluations=tuple(map(column, matrix.evaluations)),
    )


def _stretched(start: Estimate, after: Estimate, factor: float) -> Estimate:
    if abs(factor - 1) < 1e-12:
        return after
    (x0, s0), (x1, s1) = _log_odds(start), _log_odds(after)
    p = 1 / (1 + math.exp(-(x0 + factor * (x1 - x0))))
    spread = math.hypot(factor * s1, (factor - 1) * s0, _DOUBT * (factor - 1) * (x1 - x0))
    return Estimate(p, after.n, max(after.stderr, spread * p * (1 - p)))


def _log_odds(estimate: Estimate) -> tuple[float, float]:
    p = smoothed(estimate)
    stderr = estimate.stderr if math.isfinite(estimate.stderr) else 0.5
    return math.log(p / (1 - p)), stderr / (p * (1 - p))
