"""Is a planned sequence better than training jointly, can the data tell, and what would?"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from statistics import NormalDist

import numpy as np

from omni_thinker.runs.schema.base import Estimate, Row
from omni_thinker.runs.schema.plan import Decision
from omni_thinker.runs.schema.transfer import Column, TransferMatrix
from omni_thinker.transfer.forecast import Forecaster, Joint, Stage
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.search import EXACT, Objective, expected_score

SETTLED_PROBABILITY = 0.95
_DRAWS, _FEWER_DRAWS = 1000, 400
"""Of the noise that no measuring takes away; fewer for many tasks, as draws take tasks^2 numbers each."""


def decision_words(decision: Decision) -> str:
    """The decision in a sentence."""
    gain, stderr = decision.gain_over_joint, decision.stderr
    if decision.settled:
        better, worse = ("The sequence", "joint training") if gain > 0 else ("Joint training", "the sequence")
        return f"{better} is forecast to beat {worse} by {abs(gain):.3f} +- {stderr:.3f}."
    words = (
        f"Against joint training the data can't tell: the expected gain of the sequence is {gain:+.3f} +- "
        f"{stderr:.3f} (probability {decision.probability:.2f})"
    )
    if decision.more_problems is None:
        return f"{words}; no number of evaluation problems would settle it, only running both, with several seeds."
    return f"{words}; about {decision.more_problems} more evaluation problems a task would settle it."


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
    gain = expected_score(predict, objective, stages) - expected_score(predict, objective, joint)
    stderr = float(gain_N.std())
    probability = float((gain_N > 0).mean() + 0.5 * (gain_N == 0).mean())
    settled = max(probability, 1 - probability) >= SETTLED_PROBABILITY
    more: int | None = 0 if settled else None
    if not settled and isinstance(predict, Hierarchical):
        sharper = Hierarchical(
            _sharper(matrix, 1e6), _DRAWS if len(matrix.tasks) <= EXACT else _FEWER_DRAWS, seed, priors=predict.priors
        )
        more = _more_problems(matrix, sharper, objective, stages, joint, gain, stderr)
    return Decision(gain, stderr, probability, settled, more)


def _more_problems(
    matrix: TransferMatrix,
    exact: Forecaster,
    objective: Objective,
    stages: Sequence[Stage],
    joint: Joint,
    gain: float,
    stderr: float,
) -> int | None:
    """How many more problems bring the doubt down to where `gain` would be sure, or None. exact: the forecaster of a
    matrix without noise."""
    sure = NormalDist().inv_cdf(SETTLED_PROBABILITY)
    allowed = (gain / sure) ** 2
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
