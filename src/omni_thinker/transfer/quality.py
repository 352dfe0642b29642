"""Forecasts held against what came of them, beside two forecasts that take no method."""

from collections.abc import Callable, Sequence
from statistics import fmean

from omni_thinker.runs.schema.result import ForecastErrors, ForecastOutcome, ForecastQuality
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.metrics import rank_correlation
from omni_thinker.types import TaskName

LEVEL = 0.8
"""Coverage that the intervals promise."""


def constant_gain(matrix: TransferMatrix) -> dict[TaskName, float]:
    """Every task ends at its start plus the mean gain of a stage on the task itself; in [0, 1]."""
    gains = [matrix.after[task][task].mean - matrix.start[task].mean for task in matrix.tasks]
    return {task: min(1.0, max(0.0, matrix.start[task].mean + fmean(gains))) for task in matrix.tasks}


def own_level(matrix: TransferMatrix) -> dict[TaskName, float]:
    """Every task ends where training on it alone ended."""
    return {task: matrix.after[task][task].mean for task in matrix.tasks}


def forecast_quality(rows: Sequence[ForecastOutcome]) -> ForecastQuality | None:
    """Errors on the test and the validation split, and how well forecasts rank arms; None without forecasts."""
    if not rows or any(row.test is None for row in rows):
        return None
    within: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in rows:
        within.setdefault((row.seed, row.task), []).append((row.forecast, row.test or 0.0))
    ranks = [rank for pairs in within.values() if (rank := rank_correlation(pairs)) is not None]
    test, validation = _errors(rows, lambda row: row.test or 0.0), _errors(rows, lambda row: row.outcome)
    rank = fmean(ranks) if ranks else None
    return ForecastQuality(test=test, validation=validation, rank=rank, words=_words(test, validation, rank))


def _errors(rows: Sequence[ForecastOutcome], reached: Callable[[ForecastOutcome], float]) -> ForecastErrors:
    return ForecastErrors(
        n=len(rows),
        inside=sum(row.low <= reached(row) <= row.high for row in rows),
        forecast=fmean(abs(row.forecast - reached(row)) for row in rows),
        naive=fmean(abs((row.naive or 0.0) - reached(row)) for row in rows),
        constant=fmean(abs((row.constant or 0.0) - reached(row)) for row in rows),
    )


def _words(test: ForecastErrors, validation: ForecastErrors, rank: float | None) -> str:
    better = test.forecast < min(test.naive, test.constant)
    beside = f"{test.constant:.3f} for the start plus a constant gain and {test.naive:.3f} for each task's own level"
    words = (
        f"{test.inside} of {test.n} forecasts held on the test split ({validation.inside} on validation, which the "
        f"matrix was measured on; {LEVEL:.0%} was promised). Mean error on test {test.forecast:.3f}, beside {beside}"
        f"{'' if better else ': no better than these'}."
    )
    if rank is None:
        return words
    ranks = "rank arms" if rank > 0.3 else "do not rank arms"
    return f"{words} Within a task and seed forecasts {ranks} (mean rank correlation {rank:.2f})."
