"""How often a judge agrees with people: how a user picks one."""

import asyncio
import gzip
import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.judging.base import Judge, Verdict
from omni_thinker.judging.tally import POINTS as _POINTS

_TEXTS = ("prompt", "response_1", "response_2")
_ROWS_AT_ONCE = 64
_MOST_BYTES = 1 << 30
Row = Mapping[str, Any]


def read_pairs(path: Path, limit: int | None = None) -> list[Row]:
    """Rows of `id`, `prompt`, `response_1`, `response_2`, `label` (1 or 2 for the better one, 0 for a tie), and if
    wanted `votes` (the same, one for each annotator). Gzipped where the name ends in .gz.

    Raises UserError for a row that is none, naming its line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
        lines = data.decode("utf-8-sig").split("\n")
    except (OSError, ValueError, EOFError, zlib.error) as exc:
        raise UserError(f"can't be read: {exc}", file=path, key="--pairs") from None
    if len(data) > _MOST_BYTES:
        raise UserError(f"more than {_MOST_BYTES:,} bytes in all", file=path, key="--pairs")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            rows.append(_row(line, number, path))
    if not rows:
        raise UserError("no rows", file=path, key="--pairs")
    return rows[:limit]


def _row(line: str, number: int, path: Path) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise UserError(f"line {number} is not JSON: {exc}", file=path) from None
    if not isinstance(row, dict) or any(name not in row for name in _TEXTS) or row.get("label") not in (0, 1, 2):
        raise UserError(f"line {number} needs {', '.join(_TEXTS)} and a label of 1, 2 or 0", file=path)
    meta = row.get("meta")
    votes: Any = row.get("votes") or (meta.get("annotators") if isinstance(meta, dict) else None) or []
    # A few published rows hold a bare true instead of a text.
    return {
        **row,
        **{name: str(row[name]) for name in _TEXTS},
        "votes": [vote for vote in votes if vote in (0, 1, 2)] if isinstance(votes, list) else [],
    }


async def measure(judge: Judge, rows: Sequence[Row]) -> dict[str, Any]:
    """Agreement, seconds, how often verdicts keep when the answers swap seats, and what the judge counts of itself."""
    began = time.perf_counter()
    limit = asyncio.Semaphore(_ROWS_AT_ONCE)

    async def one(row: Row) -> Verdict:
        async with limit:
            return (await judge.compare(row["prompt"], [row["response_1"]], row["response_2"]))[0]

    verdicts = await asyncio.gather(*map(one, rows))
    measured = {"judge": judge.name, **summarise(rows, verdicts)}
    metrics = {name.removeprefix("judge/"): value for name, value in judge.metrics().items()}
    if judge.local:  # a judge behind an API has been asked in both seats already
        swapped = [{**row, "response_1": row["response_2"], "response_2": row["response_1"]} for row in rows]
        mirrored = await asyncio.gather(*map(one, swapped))
        same = [
            _POINTS[a.outcome] + _POINTS[b.outcome] == 1.0
            for a, b in zip(verdicts, mirrored, strict=True)
            if a.outcome in _POINTS and b.outcome in _POINTS
        ]
        metrics["consistent"] = sum(same) / max(1, len(same))
    seconds = round(time.perf_counter() - began, 1)
    return {**measured, **{name: value for name, value in metrics.items() if name not in measured}, "seconds": seconds}


def summarise(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """`agreement` is over pairs that people decided; a judge's tie counts as half, an error not at all.

    `balanced` is the mean of the agreement where people preferred the longer text and where they preferred the shorter
    one: a judge that only counts words gets 0.5 there. `ceiling`: how often two annotators agree, given their votes."""
    decided = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row["label"] in (1, 2)]
    scored = []
    for row, verdict in decided:
        if verdict.outcome in _POINTS:
            first = _POINTS[verdict.outcome]
            scored.append((first if row["label"] == 1 else 1.0 - first, _longer_preferred(row)))
    points = [point for point, _ in scored]
    longer = [point for point, long in scored if long is True]
    shorter = [point for point, long in scored if long is False]
    share, balanced = _mean(points), _balanced(longer, shorter)
    pairs = [a == b for row in rows for a, b in combinations(row.get("votes", ()), 2)]
    halves = [_mean(longer), _mean(shorter)]
    return {
        "pairs": len(points),
        "people_undecided": len(rows) - len(decided),
        "errors": len(decided) - len(points),
        "first_error": next((v.reason for _, v in decided if v.outcome not in _POINTS), None),
        "agreement": share,
        "interval_95": wilson(share, len(points)) if share is not None else None,
        "longer_preferred": halves[0],
        "shorter_preferred": halves[1],
        "balanced": balanced[0] if balanced else None,
        "balanced_interval_95": balanced[1:] if balanced else None,
        "tie_rate": _mean([float(point == 0.5) for point in points]),
        "ceiling": _mean([float(same) for same in pairs]),
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share, halves included; (0, 1) for an empty sample."""
    if count == 0:
        return 0.0, 1.0
    z2 = 1.959964**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _balanced(longer: Sequence[float], shorter: Sequence[float]) -> tuple[float, float, float] | None:
    """The mean of two means and its 95 % interval (normal; the halves are independent)."""
    if len(longer) < 2 or len(shorter) < 2:
        return None
    mean = (fmean(longer) + fmean(shorter)) / 2
    half = 1.959964 * math.sqrt(variance(longer) / len(longer) + variance(shorter) / len(shorter)) / 2
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _longer_preferred(row: Row) -> bool | None:
    first, second = len(row["response_1"]), len(row["response_2"])
    return None if first == second else (first > second) == (row["label"] == 1)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
