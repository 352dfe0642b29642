"""Runs of an atlas as cases: what was known before a run, what it trained, and what it came to.

Known are the start and the single runs of the run's own tasks, from the same start with the same seed: what a study of
these tasks would have measured before it planned."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from omni_thinker.runs.schema.atlas import AtlasKind, AtlasRow
from omni_thinker.runs.schema.base import Row
from omni_thinker.runs.schema.transfer import Entropies, TransferMatrix
from omni_thinker.transfer.forecast import Joint, Merge, Stage, Stages
from omni_thinker.types import TaskName

Seat = tuple[str, str, int, int]
"""Model, name of the start, steps of its warm-up, and seed: what runs must share to be compared."""


@dataclass(frozen=True, slots=True)
class Case:
    """One evaluation of a run. matrix: over the tasks that the run trains in all. seen: their accuracies then."""

    id: str
    kind: AtlasKind
    seat: Seat
    matrix: TransferMatrix
    plan: Stages | Joint | Merge
    seen: Row
    whole: bool
    """Whether it is the last evaluation of its run."""


def seat_of(row: AtlasRow) -> Seat:
    """What a run must share with another to be compared with it."""
    return row.model, row.start, row.warmup_steps, row.seed


def matrices_of(rows: Iterable[AtlasRow]) -> dict[Seat, TransferMatrix]:
    """The matrix of each seat, over all tasks that were trained alone there."""
    begun = dict[Seat, AtlasRow]()
    alone = dict[Seat, dict[TaskName, AtlasRow]]()
    for row in filter(_fits, rows):
        if row.kind == "start":
            begun[seat_of(row)] = row
        elif row.kind == "single" and row.whole:
            alone.setdefault(seat_of(row), {})[_only(row)] = row
    return {seat: _matrix(begun[seat], runs) for seat, runs in alone.items() if seat in begun}


def restricted(matrix: TransferMatrix, tasks: Sequence[TaskName]) -> TransferMatrix:
    """What the same runs say of some of its tasks."""
    entropy = matrix.entropy
    return TransferMatrix(
        tuple(tasks),
        {j: matrix.start[j] for j in tasks},
        {i: {j: matrix.after[i][j] for j in tasks} for i in tasks},
        entropy=entropy
        and Entropies(
            {j: entropy.start[j] for j in tasks if j in entropy.start},
            {i: {j: entropy.after[i][j] for j in tasks if j in entropy.after[i]} for i in tasks},
        ),
    )


def cases_of(rows: Sequence[AtlasRow]) -> list[Case]:
    """Every evaluation of a mixture, a sequence or a merge whose single runs are known, in the order of the rows. Rows
    that lack what their kind has are left out, and so are runs on tasks that weren't scored."""
    rows = [row for row in rows if _fits(row)]
    matrices = matrices_of(rows)
    passes = {seat_of(row): row.steps for row in rows if row.kind == "single" and row.whole}
    last = {row.key: row for row in rows if row.whole}
    cases, known = list[Case](), dict[str, TransferMatrix]()
    for row in rows:
        seat = seat_of(row)
        if row.kind in ("start", "single") or seat not in matrices or row.key not in last:
            continue
        tasks = _trained(last[row.key])
        if not set(tasks) <= set(matrices[seat].tasks) & _scored(row):
            continue
        if row.key not in known:
            known[row.key] = restricted(matrices[seat], tasks)
        seen = {task: row.accuracy[task] for task in tasks}
        plan = plan_of(row, passes[seat])
        cases.append(Case(row.id, row.kind, seat, known[row.key], plan, seen, row.whole))
    return cases


def plan_of(row: AtlasRow, pass_steps: int) -> Stages | Joint | Merge:
    """What a row's run had trained. pass_steps: RL steps of a single run."""
    if row.kind == "merge":
        return Merge(1.0 if row.scale is None else row.scale)
    if row.kind == "mixture":
        (stage,) = row.stages
        return Joint(_whole(stage.shares), stage.steps / pass_steps)
    return tuple(Stage(next(iter(stage.shares)), stage.steps / pass_steps) for stage in row.stages)


def without(cases: Iterable[Case], tasks: Collection[TaskName]) -> list[Case]:
    """The cases in whose runs none of these tasks was trained."""
    return [case for case in cases if not set(tasks) & set(case.matrix.tasks)]


def _whole(shares: Mapping[TaskName, float]) -> dict[TaskName, float]:
    total = sum(shares.values())
    return {task: share / total for task, share in shares.items()}


def _trained(row: AtlasRow) -> tuple[TaskName, ...]:
    named = row.merged or tuple(task for stage in row.stages for task in stage.shares)
    return tuple(dict.fromkeys(named))


def _fits(row: AtlasRow) -> bool:
    """Whether a row has stages, or merged tasks, as its kind has."""
    if row.kind == "start":
        return True
    if row.kind == "merge":
        return bool(row.merged)
    if not row.stages or row.steps < 1 or not all(sum(stage.shares.values()) > 0 for stage in row.stages):
        return False
    return len(row.stages) == 1 if row.kind == "mixture" else all(len(stage.shares) == 1 for stage in row.stages)


def _scored(row: AtlasRow) -> set[TaskName]:
    return {task for task, seen in row.accuracy.items() if isfinite(seen.mean)}


def _only(row: AtlasRow) -> TaskName:
    return _trained(row)[0]


def _matrix(begun: AtlasRow, runs: Mapping[TaskName, AtlasRow]) -> TransferMatrix:
    scored = set.intersection(_scored(begun), *map(_scored, runs.values()))
    tasks = tuple(task for task in begun.accuracy if task in runs and task in scored)
    return TransferMatrix(
        tasks,
        {task: begun.accuracy[task] for task in tasks},
        {task: {other: runs[task].accuracy[other] for other in tasks} for task in tasks},
        entropy=Entropies(begun.entropy, {task: runs[task].entropy for task in tasks}),
    )
