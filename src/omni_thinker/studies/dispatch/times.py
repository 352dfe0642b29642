"""How long a study will take with so many workers, from given times or from those of another run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.runs.journal import unit_id
from omni_thinker.studies.dispatch.queue import makespan, ways
from omni_thinker.studies.units import WORK, Unit, WorkPlan

WORKERS = (1, 2, 4, 8, 64)
_KINDS = {"warmup": "warmup", "train": "step", "interim": "interim", "validation": "validation", "test": "test"}
"""Kinds of work by the kinds of rows in metrics.jsonl."""
_FAULTS = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
_LONGEST_S = 1e9
"""Of one step or evaluation: 30 years."""


def pace_from(path: Path) -> dict[str, float]:
    """Seconds of each kind of work: of a run's directory, the means of its rows; of a JSON file, what it says.

    Raises UserError for what is neither."""
    if path.is_dir():
        path = path / "metrics.jsonl"
        pace = _measured(path)
    else:
        pace = _given(path)
    if not all(0 <= seconds <= _LONGEST_S for seconds in pace.values()):
        raise UserError("has times below 0 or without end", file=path, key="--times")
    return pace


def forecast(work: WorkPlan, pace: Mapping[str, float]) -> dict[str, Any]:
    """The size of a study's graph, the longest way through it, and what some numbers of workers would take, in
    seconds."""
    seconds = {unit.id: unit.seconds(pace) for unit in work.units}
    return {
        "units": len(work.units),
        "pace": {kind: round(pace[kind], 3) for kind in WORK},
        "work_seconds": round(sum(seconds.values()), 1),
        "critical_seconds": round(max(ways(work.units, seconds).values()), 1),
        "critical_path": [unit.words for unit in longest(work, seconds)],
        "workers": {str(count): round(makespan(work.units, seconds, count), 1) for count in WORKERS},
    }


def longest(work: WorkPlan, seconds: Mapping[str, float]) -> list[Unit]:
    """The units of the critical path, first to last."""
    way, units = ways(work.units, seconds), {unit.id: unit for unit in work.units}
    blocks: dict[str, list[str]] = {}
    for unit in work.units:
        for name in (*unit.needs, *unit.after):
            blocks.setdefault(unit_id(unit.seed, name), []).append(unit.id)
    at = max(way, key=lambda name: way[name])
    path = [units[at]]
    while following := blocks.get(at):
        at = max(following, key=lambda name: way[name])
        path.append(units[at])
    return path


def _measured(path: Path) -> dict[str, float]:
    sums, counts = dict.fromkeys(WORK, 0.0), dict.fromkeys(WORK, 0)
    try:
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            kind = "check" if row["arm"] == "warmup" and row["kind"] == "validation" else _KINDS[row["kind"]]
            sums[kind] += row["seconds"]
            counts[kind] += 1
    except _FAULTS as exc:
        raise UserError(f"can't be read as a run's metrics: {exc}", file=path, key="--times") from None
    if missing := [kind for kind in ("step", "validation") if not counts[kind]]:
        raise UserError(f"has no {WORK[missing[0]]} to take times from", file=path, key="--times")
    pace = {kind: sums[kind] / counts[kind] for kind in WORK if counts[kind]}
    return {"warmup": 0.0, "check": 0.0, "interim": pace["validation"], "test": pace["validation"]} | pace


def _given(path: Path) -> dict[str, float]:
    wanted = f"must be a run's directory, or a JSON object with seconds for {', '.join(WORK)}"
    try:
        table = json.loads(path.read_text("utf-8"))
        return {kind: float(table.get(kind, 0.0) if kind == "interim" else table[kind]) for kind in WORK}
    except _FAULTS as exc:
        raise UserError(f"{wanted} ({type(exc).__name__}: {exc})", file=path, key="--times") from None
