"""What a matrix and a run say, each quantity under its own name.

transfer[i -> j] is one run's effect; forgetting and backward transfer are of a whole sequence (Lopez-Paz and Ranzato,
arXiv 1706.08840; Chaudhry et al., arXiv 1801.10112): three different things."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import Row
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.types import TaskName

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class StageSeen:
    """A stage of a run that has ended, and every task's accuracy on validation after it.

    scores: of every problem, by task and problem, where they are known."""

    task: TaskName
    accuracy: Row
    scores: Mapping[TaskName, Mapping[str, float]] = field(default_factory=dict)


def transfer(matrix: TransferMatrix) -> dict[TaskName, dict[TaskName, float]]:
    """transfer[i][j]: change of accuracy on j by RL on i alone. What wasn't measured is missing."""
    return {i: {j: cell.mean - matrix.start[j].mean for j, cell in row.items()} for i, row in matrix.after.items()}


def to_rows(matrix: TransferMatrix) -> list[dict[str, str | int | float | None]]:
    """One row for each evaluation and run (`trained` None: the start), as `pandas.DataFrame` takes them. `transfer` is
    the change from the start."""
    rows: list[dict[str, str | int | float | None]] = []
    for column in matrix.columns():
        for trained, cell in ((None, column.start), *column.after.items()):
            change = None if trained is None else cell.mean - column.start.mean
            row = {"evaluation": column.name, "task": column.task, "trained": trained, "transfer": change}
            rows.append({**row, "mean": cell.mean, "n": cell.n, "stderr": cell.stderr})
    return rows


def to_frame(matrix: TransferMatrix) -> "pandas.DataFrame":
    """`to_rows` as a pandas table. Raises UserError where pandas, an extra, is missing."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise UserError("tables need pandas; run: pip install pandas") from None
    return DataFrame(to_rows(matrix))


def to_csv(matrix: TransferMatrix) -> str:
    """`to_rows` as a table with a head."""
    stream = io.StringIO()
    rows = to_rows(matrix)
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def shared(matrix: TransferMatrix) -> dict[TaskName, float | None]:
    """What RL on the other tasks does to a task on average: the part that any run brings. None where no other was
    measured."""
    table = transfer(matrix)
    return {
        j: fmean(effects) if (effects := [row[j] for i, row in table.items() if i != j and j in row]) else None
        for j in matrix.tasks
    }


def specific(matrix: TransferMatrix) -> dict[TaskName, dict[TaskName, float]]:
    """Transfer beyond the shared part."""
    common = shared(matrix)
    return {i: {j: value - (common[j] or 0.0) for j, value in row.items()} for i, row in transfer(matrix).items()}


def backward_transfer(run: Sequence[StageSeen]) -> float | None:
    """Mean over all tasks but the last of their accuracy at the end less that right after their own stage."""
    changes = [run[-1].accuracy[stage.task].mean - stage.accuracy[stage.task].mean for stage in run[:-1]]
    return fmean(changes) if changes else None


def forward_transfer(start: Row, run: Sequence[StageSeen]) -> float | None:
    """Mean over all tasks but the first of their accuracy right before their own stage less that at the start."""
    changes = [
        run[place - 1].accuracy[stage.task].mean - start[stage.task].mean for place, stage in enumerate(run) if place
    ]
    return fmean(changes) if changes else None


def forgetting(run: Sequence[StageSeen]) -> Mapping[TaskName, float]:
    """Each task's best accuracy after any stage less that at the end; >= 0."""
    return {
        task: max(stage.accuracy[task].mean for stage in run) - run[-1].accuracy[task].mean for task in run[-1].accuracy
    }


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's; None with fewer than three pairs, or where one side is all alike."""
    from scipy.stats import spearmanr  # a second of imports that a plan has no use for

    # Differences of the same two shares may differ in the last bit; they are ties all the same.
    sides = [[round(value, 9) for value in side] for side in zip(*pairs, strict=True)]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in sides):
        return None
    return float(spearmanr(*sides).statistic)
