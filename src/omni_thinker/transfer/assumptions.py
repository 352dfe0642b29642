"""A1 and A2 put to the test: what stages of a real run did, against what the matrix said they would.

A1, constant transfer: training on i changes j by as much as it did from the start. A2, saturation: a stage brings its
own task to its single-task level. Both of arXiv 2507.14783."""

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from scipy.stats import chi2

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.result import Assumption, AssumptionCell
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.metrics import StageSeen, rank_correlation
from omni_thinker.types import TaskName

_SIGNIFICANCE = 0.05


def check_assumptions(
    matrix: TransferMatrix, runs: Sequence[Sequence[StageSeen]], seed: int = 0
) -> tuple[Assumption, Assumption]:
    """(A1, A2) on the stages of some sequential runs from the matrix's start. A first stage repeats the matrix's own
    run, so it says nothing of A1 or A2 and is left out."""
    transfers: list[AssumptionCell] = []
    levels: list[AssumptionCell] = []
    for run in runs:
        for place in range(1, len(run)):
            before, stage = run[place - 1], run[place]
            row = matrix.after.get(stage.task, {})
            for j in matrix.tasks:
                if j not in row or j not in stage.accuracy:
                    continue
                if j == stage.task:
                    levels.append(_level(row[j], stage, j, place))
                elif j in before.accuracy:
                    transfers.append(_transfer(matrix.start[j], row[j], before.accuracy[j], stage, j, place))
    return _tested("A1", transfers, seed), _tested("A2", levels, seed)


def _transfer(
    start: Estimate, after: Estimate, before: Estimate, stage: StageSeen, j: TaskName, place: int
) -> AssumptionCell:
    now = stage.accuracy[j]
    stderr = _root(start.stderr, after.stderr, before.stderr, now.stderr)
    where = f"stage {place + 1}, {stage.task} on {j}"
    return AssumptionCell(where, after.mean - start.mean, now.mean - before.mean, stderr)


def _level(single: Estimate, stage: StageSeen, j: TaskName, place: int) -> AssumptionCell:
    now = stage.accuracy[j]
    return AssumptionCell(f"stage {place + 1}, {j}", single.mean, now.mean, _root(single.stderr, now.stderr))


def _root(*stderrs: float) -> float:
    return float(sum(stderr**2 for stderr in stderrs) ** 0.5)


def _tested(name: Literal["A1", "A2"], cells: Sequence[AssumptionCell], seed: int) -> Assumption:
    """`p` is chi-squared over the cells. The same problems are asked throughout, so it is cautious."""
    known = [cell for cell in cells if isfinite(cell.stderr) and cell.stderr > 0]
    differences = [abs(cell.seen - cell.expected) for cell in cells]
    squares = sum(((cell.seen - cell.expected) / cell.stderr) ** 2 for cell in known)
    mean_difference = sum(differences) / len(differences) if differences else 0.0
    p = float(chi2.sf(squares, len(known))) if known else None
    rank = rank_correlation([(cell.expected, cell.seen) for cell in cells])
    return Assumption(
        seed=seed,
        assumption=name,
        cells=tuple(cells),
        mean_difference=mean_difference,
        p=p,
        rank_correlation=rank,
        words=_words(name, len(cells), mean_difference, p, rank),
    )


def _words(name: Literal["A1", "A2"], cells: int, mean_difference: float, p: float | None, rank: float | None) -> str:
    what = {"A1": "constant transfer (A1)", "A2": "saturation (A2)"}[name]
    if not cells or p is None:
        return f"There is nothing to test {what} on."
    away = f"stages missed what it says by {mean_difference:.3f} on average over {cells} cells"
    ranks = f", rank correlation {rank:.2f}" if rank is not None else ""
    if p < _SIGNIFICANCE:
        return f"This run speaks against {what}: {away}, more than evaluation noise makes (p = {p:.1g}){ranks}."
    return f"This run doesn't contradict {what}: {away}, which noise could make (p = {p:.2f}){ranks}."
