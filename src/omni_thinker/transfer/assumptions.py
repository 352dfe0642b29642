"""A1 and A2 put to the test: what stages of a real run did, against what the matrix said they would.

A1, constant transfer: training on i changes j by as much as it did from the start. A2, saturation: a stage brings its
own task to its single-task level. Both of arXiv 2507.14783.

Every evaluation asks the same problems. So where the probes were whole stages, differences are taken problem by
problem, and the places of one evaluated task are tested together (Hotelling's T squared), which knows how they hang
together. Tasks have different problems, so their p-values are combined by Fisher's method. Elsewhere the test is
chi-squared over the places as if they were independent, which is cautious: it seldom contradicts anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.result import Assumption, AssumptionCell
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.metrics import StageSeen, rank_correlation
from omni_thinker.types import TaskName

_SIGNIFICANCE = 0.05
_POWER_AT = 0.09
"""The miss, in accuracy, for which the power of a test is reported."""
_POWER_DRAWS = 2000
Scores = Mapping[TaskName, Mapping[str, float]]
"""task -> problem -> score."""


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """Every problem's score at the start, and after a whole stage on each task."""

    start: Scores
    after: Mapping[TaskName, Scores]


@dataclass(frozen=True, slots=True)
class _Place:
    """A stage and an evaluated task. misses: seen minus expected of each problem, where they can be paired."""

    task: TaskName
    cell: AssumptionCell
    misses: Mapping[str, float] | None


def check_assumptions(
    matrix: TransferMatrix, runs: Sequence[Sequence[StageSeen]], seed: int = 0, probes: ProbeScores | None = None
) -> tuple[Assumption, Assumption]:
    """(A1, A2) on the stages of some sequential runs from the matrix's start. A first stage repeats the matrix's own
    run, so it says nothing of A1 or A2 and is left out. probes: what the matrix was measured by, if by whole stages."""
    transfers: list[_Place] = []
    levels: list[_Place] = []
    for run in runs:
        for place in range(1, len(run)):
            before, stage = run[place - 1], run[place]
            row = matrix.after.get(stage.task, {})
            for j in matrix.tasks:
                if j not in row or j not in stage.accuracy:
                    continue
                where = f"stage {place + 1}, {stage.task} on {j}" if j != stage.task else f"stage {place + 1}, {j}"
                if j == stage.task:
                    levels.append(_level(row[j], stage, j, where, probes))
                elif j in before.accuracy:
                    transfers.append(_transfer(matrix.start[j], row[j], before, stage, j, where, probes))
    return _tested("A1", transfers, seed), _tested("A2", levels, seed)


def _transfer(
    start: Estimate,
    after: Estimate,
    before: StageSeen,
    stage: StageSeen,
    j: TaskName,
    where: str,
    probes: ProbeScores | None,
) -> _Place:
    now, then = stage.accuracy[j], before.accuracy[j]
    misses = None
    if probes is not None:
        signed = ((stage.scores, 1), (before.scores, -1), (probes.after[stage.task], -1), (probes.start, 1))
        misses = _sum(signed, j)
    stderr = _root(start.stderr, after.stderr, then.stderr, now.stderr)
    return _place(j, where, after.mean - start.mean, now.mean - then.mean, stderr, misses)


def _level(single: Estimate, stage: StageSeen, j: TaskName, where: str, probes: ProbeScores | None) -> _Place:
    now = stage.accuracy[j]
    misses = None if probes is None else _sum(((stage.scores, 1), (probes.after[j], -1)), j)
    return _place(j, where, single.mean, now.mean, _root(single.stderr, now.stderr), misses)


def _sum(signed: Sequence[tuple[Scores, int]], task: TaskName) -> dict[str, float] | None:
    """The signed sum of scores, of problems that all of them have; None where some have no scores."""
    tables = [(scores.get(task, {}), sign) for scores, sign in signed]
    problems = set.intersection(*(set(table) for table, _ in tables))
    return {p: sum(sign * table[p] for table, sign in tables) for p in sorted(problems)} or None


def _place(
    task: TaskName, where: str, expected: float, seen: float, stderr: float, misses: Mapping[str, float] | None
) -> _Place:
    if misses is not None and len(misses) > 1:
        stderr = float(np.std(list(misses.values()), ddof=1)) / len(misses) ** 0.5
    return _Place(task, AssumptionCell(where, expected, seen, stderr), misses)


def _root(*stderrs: float) -> float:
    return float(sum(stderr**2 for stderr in stderrs) ** 0.5)


def _tested(name: Literal["A1", "A2"], places: Sequence[_Place], seed: int) -> Assumption:
    cells = [place.cell for place in places]
    differences = [abs(cell.seen - cell.expected) for cell in cells]
    mean_difference = sum(differences) / len(differences) if differences else 0.0
    p, power = _paired_test(places) if places and all(place.misses for place in places) else (_chi_squared(cells), None)
    rank = rank_correlation([(cell.expected, cell.seen) for cell in cells])
    return Assumption(
        seed=seed,
        assumption=name,
        cells=tuple(cells),
        mean_difference=mean_difference,
        p=p,
        power=power,
        rank_correlation=rank,
        words=_words(name, len(cells), mean_difference, p, power, rank),
    )


def _chi_squared(cells: Sequence[AssumptionCell]) -> float | None:
    from scipy.stats import chi2  # which a study needs at its end alone

    known = [cell for cell in cells if isfinite(cell.stderr) and cell.stderr > 0]
    squares = sum(((cell.seen - cell.expected) / cell.stderr) ** 2 for cell in known)
    return float(chi2.sf(squares, len(known))) if known else None


def _paired_test(places: Sequence[_Place]) -> tuple[float | None, float | None]:
    """p over all places, and the power of the test if each were off by `_POWER_AT`; None where nothing varies."""
    from scipy.stats import chi2, f

    rng = np.random.default_rng(0)
    log_p, log_p_off, tasks = 0.0, np.zeros(_POWER_DRAWS), 0
    for task in dict.fromkeys(place.task for place in places):
        tables = [place.misses or {} for place in places if place.task == task]
        problems = sorted(set.intersection(*(set(table) for table in tables)))
        misses_C_P = np.array([[table[p] for p in problems] for table in tables])
        if len(problems) < 3:
            continue
        variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(misses_C_P)))
        free = variances > 1e-9 * max(variances.max(), 1e-9)
        count, rank = len(problems), min(int(free.sum()), len(problems) // 2)
        if not rank:
            continue
        free[: len(free) - rank] = False  # the directions that vary most, where there are nearly as many as problems
        scale = (count - rank) / (rank * (count - 1))
        along = (axes.T @ misses_C_P.mean(1))[free] ** 2 / variances[free]
        log_p += float(f.logsf(count * along.sum() * scale, rank, count - rank))
        off = count * _POWER_AT**2 * float((1 / variances[free]).sum())  # misses of either sign, on average over signs
        draws = rng.noncentral_chisquare(rank, off, _POWER_DRAWS) / rank
        draws /= rng.chisquare(count - rank, _POWER_DRAWS) / (count - rank)
        log_p_off += f.logsf(draws, rank, count - rank)
        tasks += 1
    if not tasks:
        return None, None
    power = float(np.mean(chi2.sf(-2 * log_p_off, 2 * tasks) < _SIGNIFICANCE))
    return float(chi2.sf(-2 * log_p, 2 * tasks)), power


def _words(
    name: Literal["A1", "A2"],
    cells: int,
    mean_difference: float,
    p: float | None,
    power: float | None,
    rank: float | None,
) -> str:
    what = {"A1": "constant transfer (A1)", "A2": "saturation (A2)"}[name]
    if not cells or p is None:
        return f"There is nothing to test {what} on."
    away = f"stages missed what it says by {mean_difference:.3f} on average over {cells} cells"
    ranks = f", rank correlation {rank:.2f}" if rank is not None else ""
    sees = "unpaired, so a cautious test" if power is None else f"misses of 9 points are seen in {power:.0%}"
    if p < _SIGNIFICANCE:
        return f"This run speaks against {what}: {away}, more than evaluation noise makes (p = {p:.1g}; {sees}){ranks}."
    return f"This run doesn't contradict {what}: {away}, which noise could make (p = {p:.2f}; {sees}){ranks}."
