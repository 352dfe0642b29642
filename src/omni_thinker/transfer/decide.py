"""Is a planned sequence better than training jointly, can the data tell, and what would?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import NormalDist
from typing import Any

import numpy as np

from omni_thinker.rl.evaluate import Estimate
from omni_thinker.transfer.forecast import Forecaster, Joint, Stage
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.matrix import Column, Row, TransferMatrix
from omni_thinker.transfer.search import Objective

SURE = 0.95


@dataclass(frozen=True, slots=True)
class Decision:
    """`gain`: of the sequence over joint training in the objective, +- `stderr`; `probability` that it is above 0.

    `more_problems`: evaluation problems a task and cell that would settle it at the same gain, 0 where it is settled,
    None where no number would: what is left is not evaluation noise.
    """

    gain: float
    stderr: float
    probability: float
    settled: bool
    more_problems: int | None

    @property
    def words(self) -> str:
        if self.settled:
            better, worse = ("The sequence", "joint training") if self.gain > 0 else ("Joint training", "the sequence")
            return f"{better} is forecast to beat {worse} by {abs(self.gain):.3f} +- {self.stderr:.3f}."
        words = (
            f"Against joint training the data can't tell: the expected gain of the sequence is {self.gain:+.3f} +- "
            f"{self.stderr:.3f} (probability {self.probability:.2f})"
        )
        if self.more_problems is None:
            return f"{words}; no number of evaluation problems would settle it, only running both, with several seeds."
        return f"{words}; about {self.more_problems} more evaluation problems a task would settle it."

    def to_json(self) -> dict[str, Any]:
        return {
            "gain_over_joint": self.gain,
            "stderr": self.stderr,
            "probability": self.probability,
            "settled": self.settled,
            "more_problems": self.more_problems,
        }


def decide(
    matrix: TransferMatrix,
    predict: Forecaster,
    objective: Objective,
    stages: Sequence[Stage],
    joint: Joint,
    *,
    seed: int = 0,
) -> Decision:
    """Compare a sequence with joint training, draw by draw."""
    gain_N = objective.of(predict(stages)) - objective.of(predict(joint))
    means = [float(objective.of(predict.by_task(predict.expected(own))).mean()) for own in (stages, joint)]
    gain, stderr = means[0] - means[1], float(gain_N.std())
    probability = float((gain_N > 0).mean() + 0.5 * (gain_N == 0).mean())
    settled = max(probability, 1 - probability) >= SURE
    more: int | None = 0 if settled else None
    if not settled and isinstance(predict, Hierarchical):
        more = _more_problems(matrix, objective, stages, joint, gain, stderr, seed)
    return Decision(gain, stderr, probability, settled, more)


def _more_problems(
    matrix: TransferMatrix,
    objective: Objective,
    stages: Sequence[Stage],
    joint: Joint,
    gain: float,
    stderr: float,
    seed: int,
) -> int | None:
    """How many more problems bring the doubt down to where `gain` would be sure, or None."""
    sure = NormalDist().inv_cdf(SURE)
    allowed = (gain / sure) ** 2
    exact = Hierarchical(_sharper(matrix, 1e6), 1000, seed)
    floor = float((objective.of(exact(stages)) - objective.of(exact(joint))).var())
    noise = stderr**2 - floor
    counts = [column.start.n for column in matrix.columns() if column.start.n]
    if noise <= 0 or floor >= allowed or not counts:
        return None
    now = float(np.mean(counts))
    return max(1, ceil(now * (noise / (allowed - floor) - 1)))


def _sharper(matrix: TransferMatrix, times: float) -> TransferMatrix:
    """The same matrix as if it had been measured on so many times the problems."""

    def cell(estimate: Estimate) -> Estimate:
        return Estimate(estimate.mean, int(max(1, estimate.n) * times), estimate.stderr / times**0.5)

    def row(cells: Row) -> Row:
        return {name: cell(estimate) for name, estimate in cells.items()}

    columns = tuple(Column(c.name, c.task, cell(c.start), row(c.after)) for c in matrix.evaluations)
    return replace(
        matrix, start=row(matrix.start), after={i: row(r) for i, r in matrix.after.items()}, evaluations=columns
    )
