"""The transfer matrix: what RL on each task did to every task, measured on the validation split.

`runs.schema.transfer` has its keys. People write such files by hand, so every entry is checked here, and cells may
leave out `n` and `stderr`."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.runs.read import check_version
from omni_thinker.runs.schema.base import Estimate, Row
from omni_thinker.runs.schema.transfer import Column, Entropies, TransferMatrix
from omni_thinker.types import TaskName

UNKNOWN_N = 200
"""Problems that a cell is taken to stand for where it doesn't say."""
_MOST_NATS = 50.0
_MOST_PROBLEMS = 10**12


def smoothed(estimate: Estimate) -> float:
    """An accuracy kept away from 0 and 1 by half an answer."""
    n = estimate.n or UNKNOWN_N
    return (estimate.mean * n + 0.5) / (n + 1)


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

    def cells(rows: Sequence[Row]) -> Row:
        return {j: cell([row[j] for row in rows]) for j in rows[0] if all(j in row for row in rows)}

    return TransferMatrix(
        first.tasks,
        cells([m.start for m in matrices]),
        {i: cells([m.after[i] for m in matrices]) for i in first.tasks},
        tuple(
            Column(c.name, c.task, cell([o.start for o in alike]), cells([o.after for o in alike]))
            for c, alike in zip(first.evaluations, zip(*(m.evaluations for m in matrices), strict=True), strict=True)
        ),
        _pooled_entropy([m.entropy for m in matrices if m.entropy is not None]),
    )


def _pooled_entropy(seeds: Sequence[Entropies]) -> Entropies | None:
    if not seeds:
        return None

    def means(rows: Sequence[Mapping[TaskName, float]]) -> dict[TaskName, float]:
        return {task: fmean(row[task] for row in rows) for task in rows[0] if all(task in row for row in rows)}

    after = {i: means([seed.after[i] for seed in seeds]) for i in seeds[0].after if all(i in s.after for s in seeds)}
    return Entropies(means([seed.start for seed in seeds]), after)


def load_matrix(path: Path) -> TransferMatrix:
    """Read `transfer.json`; `path` is the file, or a run's directory. Raises UserError naming the file and the key."""
    path = path / "transfer.json" if path.is_dir() else path
    try:
        table = json.loads(path.read_text("utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise UserError("no such transfer matrix", file=path) from None
    except (OSError, ValueError, RecursionError) as exc:
        raise UserError(f"not a transfer matrix in JSON: {exc}", file=path) from None
    return parse_matrix(table, path)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON; ValueError for a key that appears twice, of which JSON would silently keep the last."""
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!a:.60} appears twice")
    return table


def parse_matrix(table: Any, source: object) -> TransferMatrix:
    """A checked matrix from plain JSON. Raises UserError naming `source` and the first bad key."""
    if not isinstance(table, dict):
        raise UserError("a transfer matrix is a JSON object", file=source)
    check_version(table, source)
    tasks = table.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, str) for task in tasks):
        raise UserError("must be a list of task names", file=source, key="tasks")
    if bad := [task for task in tasks if not _is_name(task)]:
        raise UserError(f"{bad[0]!a} isn't a name: use text without ',', '=', ':'", file=source, key="tasks")
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
    after = {i: _row(table["after"].get(i), tasks, source, f"after.{i}", may_lack=True) for i in tasks}
    evaluations = _evaluations(table.get("evaluations", {}), tasks, source)
    return TransferMatrix(tuple(tasks), start, after, evaluations, _entropy(table.get("entropy"), tasks, source))


def _entropy(table: Any, tasks: Sequence[str], source: object) -> Entropies | None:
    if table is None:
        return None
    if not isinstance(table, dict) or not isinstance(table.get("after"), dict):
        raise UserError('the entropies are {"start", "after"}', file=source, key="entropy")
    if unknown := set(table["after"]) - set(tasks):
        raise UserError(f"{min(unknown)!r} is not among the tasks", file=source, key="entropy.after")
    after = {i: _nats(row, tasks, source, f"entropy.after.{i}") for i, row in table["after"].items()}
    return Entropies(_nats(table.get("start"), tasks, source, "entropy.start"), after)


def _nats(row: Any, tasks: Sequence[str], source: object, key: str) -> dict[TaskName, float]:
    if not isinstance(row, dict):
        raise UserError("missing or not a table", file=source, key=key)
    for task, value in row.items():
        if task not in tasks:
            raise UserError(f"{task!r} is not among the tasks", file=source, key=key)
        if not _is_number(value) or not 0 <= value <= _MOST_NATS:
            raise UserError(
                f"an entropy is 0 to {_MOST_NATS:g} nats, got {value!r:.40}", file=source, key=f"{key}.{task}"
            )
    return {task: float(value) for task, value in row.items()}


def _evaluations(table: Any, tasks: Sequence[str], source: object) -> tuple[Column, ...]:
    if not isinstance(table, dict):
        raise UserError("not a table", file=source, key="evaluations")
    columns = []
    for name, row in table.items():
        if not _is_name(name):
            raise UserError(f"{name!a:.60} isn't a name", file=source, key="evaluations")
        key = f"evaluations.{name}"
        if not isinstance(row, dict) or not isinstance(row.get("task"), str) or not isinstance(row.get("after"), dict):
            raise UserError('an evaluation is {"task", "start", "after"}', file=source, key=key)
        if name in tasks:
            raise UserError("has the name of a task", file=source, key=key)
        if unknown := set(row["after"]) - set(tasks):
            raise UserError(f"{min(unknown)!r} is not among the tasks", file=source, key=f"{key}.after")
        after = {
            i: parse_cell(cell, source, f"{key}.after.{i}") for i, cell in row["after"].items() if cell is not None
        }
        columns.append(Column(name, row["task"], parse_cell(row.get("start"), source, f"{key}.start"), after))
    return tuple(columns)


def _row(row: Any, tasks: Sequence[str], source: object, key: str, *, may_lack: bool = False) -> dict[str, Estimate]:
    """`may_lack`: null is a cell that was not measured. One that isn't there at all was forgotten."""
    if not isinstance(row, dict):
        raise UserError("missing or not a table", file=source, key=key)
    if unknown := set(row) - set(tasks):
        raise UserError(f"{sorted(unknown)[0]!r} is not among the tasks", file=source, key=key)
    lacking = {task for task in tasks if may_lack and task in row and row[task] is None}
    return {task: parse_cell(row.get(task), source, f"{key}.{task}") for task in tasks if task not in lacking}


def parse_cell(cell: Any, source: object, key: str) -> Estimate:
    """A checked {"mean", "n", "stderr"}. Raises UserError naming `source` and `key`."""
    if not isinstance(cell, dict) or "mean" not in cell:
        raise UserError('missing; a cell is {"mean", "n", "stderr"}', file=source, key=key)
    if unknown := set(cell) - {"mean", "n", "stderr"}:
        raise UserError(f'{min(unknown)!r:.60} is unknown; a cell is {{"mean", "n", "stderr"}}', file=source, key=key)
    mean, n, stderr = cell["mean"], cell.get("n", 0), cell.get("stderr", 0.0)
    if not _is_number(mean) or not 0 <= mean <= 1:
        raise UserError(f"an accuracy lies in [0, 1], got {mean!r:.40}", file=source, key=f"{key}.mean")
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= _MOST_PROBLEMS:
        raise UserError(f"n is a whole number from 0 to {_MOST_PROBLEMS}, got {n!r:.40}", file=source, key=f"{key}.n")
    if "stderr" not in cell:  # that of so many right or wrong answers
        share = smoothed(Estimate(mean, n, 0.0))
        stderr = math.sqrt(share * (1 - share) / (n or UNKNOWN_N))
    elif stderr is None:
        stderr = math.inf  # one problem: its error is not known
    elif not _is_number(stderr) or not 0 <= stderr <= 1:
        raise UserError(f"a standard error lies in [0, 1], got {stderr!r:.40}", file=source, key=f"{key}.stderr")
    return Estimate(float(mean), n, float(stderr))


def _is_name(text: str) -> bool:
    """Printable, and free of what separates names on the command line."""
    return text == text.strip() != "" and text.isprintable() and not set(text) & set(",=:")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300  # false for NaN and infinity; isfinite overflows on huge whole numbers
