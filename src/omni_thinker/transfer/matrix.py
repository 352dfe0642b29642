"""The transfer matrix: what RL on each task did to every task, measured on the validation split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.rl.evaluate import Estimate
from omni_thinker.types import TaskName

Row = Mapping[TaskName, Estimate]
VERSION = 1


@dataclass(frozen=True, slots=True)
class TransferMatrix:
    """`start[j]` and `after[i][j]`: accuracy on j at the start, and after RL on i alone."""

    tasks: tuple[TaskName, ...]
    start: Row
    after: Mapping[TaskName, Row]

    def effect(self, trained: TaskName, on: TaskName) -> float:
        """transfer[trained -> on]: change of accuracy, in [-1, 1]."""
        return self.after[trained][on].mean - self.start[on].mean

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "tasks": list(self.tasks),
            "start": _row_to_json(self.start),
            "after": {trained: _row_to_json(row) for trained, row in self.after.items()},
        }


def pool(matrices: Sequence[TransferMatrix]) -> TransferMatrix:
    """Several seeds as one: means of means; the error joins each seed's own with the spread between seeds."""
    first = matrices[0]

    def cell(estimates: Sequence[Estimate]) -> Estimate:
        k = len(estimates)
        mean = sum(e.mean for e in estimates) / k
        within = sum(e.stderr**2 for e in estimates) / k**2
        between = sum((e.mean - mean) ** 2 for e in estimates) / (k * (k - 1)) if k > 1 else 0.0
        # The spread between seeds already holds the evaluation noise; the larger of the two is the honest one.
        return Estimate(mean, sum(e.n for e in estimates), math.sqrt(max(within, between)))

    return TransferMatrix(
        first.tasks,
        {j: cell([m.start[j] for m in matrices]) for j in first.tasks},
        {i: {j: cell([m.after[i][j] for m in matrices]) for j in first.tasks} for i in first.tasks},
    )


def load_matrix(path: Path) -> TransferMatrix:
    """Read `transfer.json`. Raises UserError naming the file and the key."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError("no such transfer matrix", file=path) from None
    except (OSError, ValueError, RecursionError) as exc:
        raise UserError(f"not a transfer matrix in JSON: {exc}", file=path) from None
    return parse_matrix(table, path)


def parse_matrix(table: Any, source: object) -> TransferMatrix:
    """A checked matrix from plain JSON. Raises UserError naming `source` and the first bad key."""
    if not isinstance(table, dict):
        raise UserError("a transfer matrix is a JSON object", file=source)
    if table.get("version", VERSION) != VERSION:
        raise UserError(f"version {table['version']!r} is not known here", file=source, key="version")
    tasks = table.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise UserError("must be a list of task names", file=source, key="tasks")
    if len(set(tasks)) != len(tasks):
        raise UserError("names a task twice", file=source, key="tasks")
    if len(tasks) < 2:
        raise UserError("one task has no order; name at least two", file=source, key="tasks")
    for key in ("start", "after"):
        if not isinstance(table.get(key), dict):
            raise UserError("missing or not a table", file=source, key=key)
        if unknown := set(table[key]) - set(tasks):
            raise UserError(f"{sorted(unknown)[0]!r} is not among the tasks", file=source, key=key)
    start = _row(table["start"], tasks, source, "start")
    after = {i: _row(table["after"].get(i), tasks, source, f"after.{i}") for i in tasks}
    return TransferMatrix(tuple(tasks), start, after)


def _row(row: Any, tasks: Sequence[str], source: object, key: str) -> dict[str, Estimate]:
    if not isinstance(row, dict):
        raise UserError("missing or not a table", file=source, key=key)
    if unknown := set(row) - set(tasks):
        raise UserError(f"{sorted(unknown)[0]!r} is not among the tasks", file=source, key=key)
    return {task: _cell(row.get(task), source, f"{key}.{task}") for task in tasks}


def _cell(cell: Any, source: object, key: str) -> Estimate:
    if not isinstance(cell, dict) or "mean" not in cell:
        raise UserError('missing; a cell is {"mean", "n", "stderr"}', file=source, key=key)
    mean, n, stderr = cell["mean"], cell.get("n", 0), cell.get("stderr", 0.0)
    if not _is_number(mean) or not 0 <= mean <= 1:
        raise UserError(f"an accuracy lies in [0, 1], got {mean!r}", file=source, key=f"{key}.mean")
    if stderr is None:
        stderr = math.inf  # one problem: its error is not known
    elif not _is_number(stderr) or stderr < 0:
        raise UserError(f"a standard error is a number >= 0, got {stderr!r}", file=source, key=f"{key}.stderr")
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise UserError(f"n is a whole number >= 0, got {n!r}", file=source, key=f"{key}.n")
    return Estimate(float(mean), n, float(stderr))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN and infinity; isfinite overflows on huge whole numbers


def _row_to_json(row: Row) -> dict[str, Any]:
    return {task: estimate.to_json() for task, estimate in row.items()}
