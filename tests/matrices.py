"""Transfer matrices that tests share."""

from __future__ import annotations

import numpy as np

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import Array


def matrix(start: list[float], after: list[list[float]], stderr: float = 0.0, n: int = 50) -> TransferMatrix:
    """`after[i][j]`: accuracy on task j after RL on task i."""
    names = tuple("abcdefghijklmnopqrst"[: len(start)])
    return TransferMatrix(
        names,
        {t: Estimate(v, n, stderr) for t, v in zip(names, start, strict=True)},
        {
            i: {j: Estimate(v, n, stderr) for j, v in zip(names, row, strict=True)}
            for i, row in zip(names, after, strict=True)
        },
    )


def from_effects(effects: Array, start: float = 0.4, own: float = 0.6) -> TransferMatrix:
    """All tasks alike but for what they do to each other; accuracies may leave [0, 1], as sums of them do."""
    count = len(effects)
    names = tuple(f"t{k}" for k in range(count))
    after = start + np.where(np.eye(count, dtype=bool), own - start, effects)
    return TransferMatrix(
        names,
        {t: Estimate(start, 50, 0.0) for t in names},
        {i: {j: Estimate(float(after[a, b]), 50, 0.0) for b, j in enumerate(names)} for a, i in enumerate(names)},
    )


# a: start .2, itself .6; b hurts it by .1, c hurts it by .2. And so on.
START = [0.2, 0.4, 0.5]
AFTER = [[0.6, 0.5, 0.4], [0.1, 0.8, 0.6], [0.0, 0.2, 0.9]]
MATRIX = matrix(START, AFTER)
