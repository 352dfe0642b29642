"""What transfer would be if accuracies were straight lines: K policy gradients at the start instead of K runs.

To first order a run on i that moves the weights along `direction_i` changes j by `step` x <gradient_j, direction_i>.
Sketches keep that product. Influence by inner products of gradients is that of TracIn (arXiv 2002.08484), and of TAC
(2606.25178) within a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, hypot, log

import numpy as np

from omni_thinker.runs.schema.base import Estimate, Row
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import Array
from omni_thinker.transfer.matrix import smoothed
from omni_thinker.types import TaskName

_RELATIVE_ERROR = 0.5
"""Standard error of a straight line over a whole stage, as a share of what it says."""
_LARGEST_MOVE = 4.0
"""Largest change along a tangent, in log-odds."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """Sketches of at least two batches of one task: the gradient of minus its accuracy, and the direction in which such
    a gradient moves the weights (down); [B, D] each."""

    gradient_B_D: Array
    direction_B_D: Array


def first_order(start: Row, gradients: Mapping[TaskName, Gradients], steps: Mapping[TaskName, float]) -> TransferMatrix:
    """The matrix that straight lines from the start give. `steps[i]`: the sum of the learning rates of a run on i.

    Raises ValueError where a task has fewer than two batches: a batch's product with itself is mostly noise."""
    tasks = tuple(gradients)
    if any(len(batches.gradient_B_D) < 2 for batches in gradients.values()):
        raise ValueError("two batches a task are needed")
    after: dict[TaskName, Row] = {}
    for i in tasks:
        row: dict[TaskName, Estimate] = {}
        for j in tasks:
            change, stderr = _product(gradients[j].gradient_B_D, gradients[i].direction_B_D, same=i == j)
            row[j] = _moved(start[j], steps[i] * change, steps[i] * stderr)
        after[i] = row
    return TransferMatrix(tasks, start, after)


def _product(gradient_B_D: Array, direction_B_D: Array, *, same: bool) -> tuple[float, float]:
    """The mean product over pairs of batches, and its standard error: of the batches, and of the sketch."""
    products = gradient_B_D @ direction_B_D.T
    if same:
        np.fill_diagonal(products, np.nan)
    rows, columns = np.nanmean(products, axis=1), np.nanmean(products, axis=0)
    sketched = np.linalg.norm(gradient_B_D.mean(axis=0)) * np.linalg.norm(direction_B_D.mean(axis=0))
    variance = rows.var(ddof=1) / len(rows) + columns.var(ddof=1) / len(columns)
    return float(np.nanmean(products)), float(np.sqrt(variance + sketched**2 / gradient_B_D.shape[1]))


def _moved(start: Estimate, change: float, stderr: float) -> Estimate:
    """`change` of accuracy at the start's slope, on log-odds, so that it stays within 0 and 1."""
    p = smoothed(start)
    slope = p * (1 - p)
    moved = max(-_LARGEST_MOVE, min(_LARGEST_MOVE, change / slope))
    after = 1 / (1 + exp(-(log(p / (1 - p)) + moved)))
    doubt = min(0.5, hypot(stderr, _RELATIVE_ERROR * change) * after * (1 - after) / slope)
    return Estimate(min(1.0, max(0.0, start.mean + after - p)), start.n, hypot(start.stderr, doubt))
