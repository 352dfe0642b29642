"""A1 and A2 put to the test: what stages of a real run did, against what the matrix said they would.

A1, constant transfer: training on i changes j by as much as it did from the start. A2, saturation: a stage brings its
own task to its single-task level. Both of arXiv 2507.14783.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from scipy.stats import chi2

from omni_thinker.rl.evaluate import Estimate
from omni_thinker.transfer.matrix import TransferMatrix
from omni_thinker.transfer.metrics import StageSeen, rank_correlation
from omni_thinker.types import TaskName

_SURE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """`cells`: (where, expected, seen, standard error of the difference). `p`: of a difference this large by evaluation
    noise alone (chi-squared over the cells; the same problems are asked throughout, so it is cautious). `rank`:
    Spearman's correlation of expected and seen."""

    name: Literal["A1", "A2"]
    cells: tuple[tuple[str, float, float, float], ...]
    mean_difference: float
    p: float | None
    rank: float | None

    @property
    def words(self) -> str:
        what = {"A1": "constant transfer (A1)", "A2": "saturation (A2)"}[self.name]
        if not self.cells or self.p is None:
            return f"There is nothing to test {what} on."
        away = f"stages missed what it says by {self.mean_difference:.3f} on average over {len(self.cells)} cells"
        ranks = f", rank correlation {self.rank:.2f}" if self.rank is not None else ""
        if self.p < _SURE:
            return (
                f"This run speaks against {what}: {away}, more than evaluation noise makes (p = {self.p:.1g}){ranks}."
            )
        return f"This run doesn't contradict {what}: {away}, which noise could make (p = {self.p:.2f}){ranks}."

    def to_json(self) -> dict[str, Any]:
        keys = ("where", "expected", "seen", "stderr")
        return {
            "assumption": self.name,
            "cells": [dict(zip(keys, cell, strict=True)) for cell in self.cells],
            "mean_difference": self.mean_difference,
            "p": self.p,
            "rank_correlation": self.rank,
            "words": self.words,
        }


def check_assumptions(matrix: TransferMatrix, runs: Sequence[Sequence[StageSeen]]) -> tuple[Verdict, Verdict]:
    """(A1, A2) on the stages of some sequential runs from the matrix's start. A first stage repeats the matrix's own
    run, so it says nothing of A1 or A2 and is left out."""
    transfers: list[tuple[str, float, float, float]] = []
    levels: list[tuple[str, float, float, float]] = []
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
    return _verdict("A1", transfers), _verdict("A2", levels)


def _transfer(
    start: Estimate, after: Estimate, before: Estimate, stage: StageSeen, j: TaskName, place: int
) -> tuple[str, float, float, float]:
    now = stage.accuracy[j]
    stderr = _root(start.stderr, after.stderr, before.stderr, now.stderr)
    where = f"stage {place + 1}, {stage.task} on {j}"
    return where, after.mean - start.mean, now.mean - before.mean, stderr


def _level(single: Estimate, stage: StageSeen, j: TaskName, place: int) -> tuple[str, float, float, float]:
    now = stage.accuracy[j]
    return f"stage {place + 1}, {j}", single.mean, now.mean, _root(single.stderr, now.stderr)


def _root(*stderrs: float) -> float:
    return float(sum(stderr**2 for stderr in stderrs) ** 0.5)


def _verdict(name: Literal["A1", "A2"], cells: Sequence[tuple[str, float, float, float]]) -> Verdict:
    told = [cell for cell in cells if isfinite(cell[3]) and cell[3] > 0]
    differences = [abs(seen - expected) for _, expected, seen, _ in cells]
    squares = sum(((seen - expected) / stderr) ** 2 for _, expected, seen, stderr in told)
    return Verdict(
        name,
        tuple(cells),
        sum(differences) / len(differences) if differences else 0.0,
        float(chi2.sf(squares, len(told))) if told else None,
        rank_correlation([(c[1], c[2]) for c in cells]),
    )
