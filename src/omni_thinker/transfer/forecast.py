"""What an order of single-task stages is forecast to end at, from the transfer matrix.

Two assumptions of arXiv 2507.14783: the effect of training on i upon j does not depend on the checkpoint it starts
from (A1), and one pass over a task brings it to the level of single-task training (A2). Then the final accuracy on j
depends only on *which* tasks come after j. All forecasters share that form; forecasts are draws from the matrix's
measurement noise, so that every number has an interval. How well the assumptions hold is for the study to show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from omni_thinker.errors import UserError
from omni_thinker.transfer.matrix import TransferMatrix
from omni_thinker.types import TaskName

Array = NDArray[np.float64]
DRAWS = 2000
EDGE = 1e-3
"""Accuracies are kept this far from 0 and 1 where log-odds or ratios are taken."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval (of evaluation noise; what the assumptions miss is not in it)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Array) -> Interval:
        low, high = np.quantile(draws, [0.025, 0.975])
        return cls(float(draws.mean()), float(low), float(high))

    def to_json(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class MatrixDraws:
    """The matrix as measured (draw 0) and as it might have been: start[j] and after[i, j], each [draws]."""

    start: Mapping[TaskName, Array]
    after: Mapping[tuple[TaskName, TaskName], Array]

    @classmethod
    def of(cls, matrix: TransferMatrix, draws: int = DRAWS, seed: int = 0) -> MatrixDraws:
        rng = np.random.default_rng(seed)

        def cell(mean: float, stderr: float) -> Array:
            spread = stderr if np.isfinite(stderr) else 0.5
            noisy = np.clip(rng.normal(mean, spread, draws), 0.0, 1.0)
            noisy[0] = mean
            return noisy

        return cls(
            {j: cell(e.mean, e.stderr) for j, e in matrix.start.items()},
            {(i, j): cell(e.mean, e.stderr) for i, row in matrix.after.items() for j, e in row.items()},
        )


Forecaster = Callable[[MatrixDraws, TaskName, Iterable[TaskName]], Array]
"""(draws, task, tasks trained after it) -> final accuracy on the task, [draws]."""


def naive(m: MatrixDraws, task: TaskName, later: Iterable[TaskName]) -> Array:
    """Nothing transfers: each task ends at its own single-task accuracy."""
    return m.after[task, task]


def additive(m: MatrixDraws, task: TaskName, later: Iterable[TaskName]) -> Array:
    """clip(s[j] + sum of transfer[i -> j])."""
    total = m.after[task, task] + sum((m.after[i, task] - m.start[task] for i in later), np.zeros(1))
    return np.clip(total, 0.0, 1.0)


def relative(m: MatrixDraws, task: TaskName, later: Iterable[TaskName]) -> Array:
    """s[j] x product of (1 + transfer[i -> j] / start[j])."""
    product = m.after[task, task]
    for i in later:
        product = product * m.after[i, task] / np.maximum(m.start[task], EDGE)
    return np.clip(product, 0.0, 1.0)


def logit(m: MatrixDraws, task: TaskName, later: Iterable[TaskName]) -> Array:
    """The additive forecast on log-odds: no clipping, and effects near 0 and 1 shrink."""
    total = _log_odds(m.after[task, task])
    for i in later:
        total = total + _log_odds(m.after[i, task]) - _log_odds(m.start[task])
    return np.asarray(1.0 / (1.0 + np.exp(-total)))


def _log_odds(accuracy: Array) -> Array:
    p = np.clip(accuracy, EDGE, 1 - EDGE)
    return np.asarray(np.log(p / (1 - p)))


FORECASTERS: Mapping[str, Forecaster] = {"naive": naive, "additive": additive, "relative": relative, "logit": logit}


def forecast_order(forecaster: Forecaster, draws: MatrixDraws, order: Sequence[TaskName]) -> dict[TaskName, Array]:
    """Final accuracy of every task under `order`, [draws] each."""
    return {task: forecaster(draws, task, order[k + 1 :]) for k, task in enumerate(order)}


def check_order(order: Sequence[TaskName], tasks: Sequence[TaskName]) -> None:
    """Raises UserError unless `order` names every task once."""
    if unknown := [task for task in order if task not in tasks]:
        raise UserError(f"unknown task {unknown[0]!r}; the matrix has {', '.join(tasks)}", key="--order")
    if len(set(order)) != len(order):
        raise UserError("an order names each task once", key="--order")
    if missing := [task for task in tasks if task not in order]:
        raise UserError(f"leaves out {missing[0]!r}", key="--order")
