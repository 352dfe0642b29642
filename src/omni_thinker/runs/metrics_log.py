"""metrics.jsonl read by columns: as objects a million lines would take many times the memory."""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from omni_thinker.runs.schema.base import adapter
from omni_thinker.runs.schema.logs import RENAMED, Metrics

Curve = NDArray[np.float64]
"""Points of a curve, [N, 2]: steps and values."""
_NUMBERS = {float, int}
_NUMBERS_OR_NULL = {float, int, type(None)}
_EXACT = 1 << 53
"""Steps below are kept exactly."""


class _Place(NamedTuple):
    """Where lines belong: one curve of a report."""

    seed: int
    unit: str
    arm: str
    kind: str
    stage: str | None


@dataclass(slots=True)
class _Block:
    """Lines of one place that have the same metrics, in the order in which they were written; null is NaN."""

    lines: "array[int]" = field(default_factory=lambda: array("q"))
    steps: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The lines of a block that count, by step. `order`: number of the line that had the step first."""

    place: _Place
    names: Mapping[str, int]
    steps: NDArray[np.float64]
    order: NDArray[np.int64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]


class MetricsLog(Sequence[Metrics]):
    """The lines by step, those of the same step as they were written.

    Runs from before there was a journal may hold a step twice: the later line counts. Objects are made only of the
    lines that are asked for; `curves` needs none."""

    def __init__(self) -> None:
        self._blocks = dict[_Place, dict[tuple[str, ...], _Block]]()
        self._size = 0

    def add(self, line: bytes) -> None:
        """One more line. Raises ValueError where it isn't JSON, ValidationError where it has another shape."""
        try:
            table = from_json(line)
        except ValueError:
            table = json.loads(line)  # takes what is rare: half a surrogate pair, other encodings
        if self._add_known(table):
            return
        row = adapter(Metrics).validate_python(table)
        blocks = self._blocks.setdefault(_Place(row.seed, row.unit, row.arm, row.kind, row.stage), {})
        self._append(blocks, tuple(row.metrics), row.step, row.seconds, array("d", row.metrics.values()))

    def _add_known(self, table: Any) -> bool:
        """Most lines: of a place that the schema has checked before, with numbers alone. False for any other."""
        try:
            metrics, step, seconds, seed = table["metrics"], table["step"], table["seconds"], table["seed"]
            place = _Place(seed, table.get("unit", ""), table["arm"], table["kind"], table["stage"])
            blocks = self._blocks.get(place)
            # True is 1 as a key, and no number to the schema.
            if blocks is None or type(seed) is not int or type(step) is not int or not 0 <= step < _EXACT:
                return False
            values = metrics.values()
            if not (types := set(map(type, values))) <= _NUMBERS:
                values = [math.nan if value is None else value for value in values]
            if not types <= _NUMBERS_OR_NULL or type(seconds) not in _NUMBERS:
                return False
            self._append(blocks, tuple(metrics), step, float(seconds), array("d", values))
        except (KeyError, TypeError, AttributeError, OverflowError):
            return False
        return True

    def _append(
        self,
        blocks: dict[tuple[str, ...], _Block],
        names: tuple[str, ...],
        step: int,
        seconds: float,
        values: "array[float]",
    ) -> None:
        if (block := blocks.get(names)) is None:
            block = blocks[names] = _Block()
        block.steps.append(step)
        block.seconds.append(seconds)
        block.lines.append(self._size)
        block.values.extend(values)
        self._size += 1

    def curves(self, arm: str, metric: str, kind: str) -> dict[int, Curve]:
        """The finite values of a metric for each seed, by step."""
        parts: dict[int, list[_Rows]] = {}
        for rows in self._rows:
            if rows.place.arm == arm and rows.place.kind == kind and metric in rows.names:
                parts.setdefault(rows.place.seed, []).append(rows)
        found = {}
        for seed in sorted(parts):
            steps, order, values = (
                np.concatenate(each)
                for each in zip(*((r.steps, r.order, r.values[:, r.names[metric]]) for r in parts[seed]), strict=True)
            )
            by_step = np.lexsort((order, steps))
            curve = np.stack([steps[by_step], values[by_step]], axis=1)
            curve = curve[np.isfinite(curve[:, 1])]
            if len(curve):
                found[seed] = curve
        return found

    def stages(self, arm: str, kind: str) -> dict[int, list[tuple[str, int]]]:
        """Stage and step of each seed's lines that belong to a stage, by step."""
        lines: dict[int, list[tuple[float, int, str]]] = {}
        for rows in self._rows:
            if rows.place.arm == arm and rows.place.kind == kind and rows.place.stage is not None:
                stage = rows.place.stage
                lines.setdefault(rows.place.seed, []).extend(
                    (step, order, stage) for step, order in zip(rows.steps.tolist(), rows.order.tolist(), strict=True)
                )
        return {seed: [(stage, int(step)) for step, _, stage in sorted(lines[seed])] for seed in sorted(lines)}

    def has(self, arm: str, kind: str) -> bool:
        return any(place.arm == arm and place.kind == kind for place in self._blocks)

    def arms(self, kind: str) -> list[str]:
        """Arms that have lines of a kind."""
        return list(dict.fromkeys(place.arm for place in self._blocks if place.kind == kind))

    def seconds(self, kind: str) -> float:
        """Sum over the lines of a kind."""
        return float(sum(rows.seconds.sum() for rows in self._rows if rows.place.kind == kind))

    def values(self, arm: str, metric: str, kind: str) -> NDArray[np.float64]:
        """All values of a metric, in no order; NaN where it was null."""
        found = [
            rows.values[:, rows.names[metric]]
            for rows in self._rows
            if rows.place.arm == arm and rows.place.kind == kind and metric in rows.names
        ]
        return np.concatenate(found) if found else np.zeros(0)

    def __len__(self) -> int:
        return sum(len(rows.steps) for rows in self._rows)

    @overload
    def __getitem__(self, at: int) -> Metrics: ...
    @overload
    def __getitem__(self, at: slice) -> list[Metrics]: ...
    def __getitem__(self, at: int | slice) -> Metrics | list[Metrics]:
        picked = self._places[at]
        return [self._row(*each) for each in picked] if isinstance(at, slice) else self._row(*picked)

    def __iter__(self) -> Iterator[Metrics]:
        return (self._row(*place) for place in self._places)

    def _row(self, block: int, at: int) -> Metrics:
        rows = self._rows[block]
        named = zip(rows.names, rows.values[at].tolist(), strict=True)
        values = {name: value for name, value in named if not math.isnan(value)}
        row: Metrics = adapter(Metrics).validate_python(
            rows.place._asdict() | {"step": int(rows.steps[at]), "seconds": float(rows.seconds[at]), "metrics": values}
        )
        return row

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Block and row of every line, in order, [N, 2]."""
        rows = self._rows
        if not rows:
            return np.zeros((0, 2), dtype=np.int64)
        places = np.concatenate(
            [np.stack([np.full(len(r.steps), n), np.arange(len(r.steps))], 1) for n, r in enumerate(rows)]
        )
        by_step = np.lexsort((np.concatenate([r.order for r in rows]), np.concatenate([r.steps for r in rows])))
        return np.asarray(places[by_step])

    @cached_property
    def _rows(self) -> list[_Rows]:
        """Once everything was added."""
        alike: dict[_Place, list[tuple[_Place, tuple[str, ...], _Block]]] = {}
        for place, blocks in self._blocks.items():
            rows = [(place, names, block) for names, block in blocks.items()]
            alike.setdefault(place._replace(unit=""), []).extend(rows)
        return [rows for blocks in alike.values() for rows in _counted(blocks)]


def _counted(blocks: Sequence[tuple[_Place, tuple[str, ...], _Block]]) -> Iterator[_Rows]:
    """The blocks of one curve without the lines whose step a later line has, too."""
    lines = np.concatenate([np.frombuffer(block.lines, dtype=np.int64) for _, _, block in blocks])
    steps = np.concatenate([np.frombuffer(block.steps) for _, _, block in blocks])
    by_line = np.argsort(lines)
    _, first, which = np.unique(steps[by_line], return_index=True, return_inverse=True)
    order = np.empty(len(lines), dtype=np.int64)
    order[by_line] = lines[by_line][first][which]
    last = np.zeros(len(first), dtype=np.int64)
    np.maximum.at(last, which, lines[by_line])
    counts = np.empty(len(lines), dtype=bool)
    counts[by_line] = last[which] == lines[by_line]
    begin = 0
    for place, names, block in blocks:
        own = slice(begin, begin := begin + len(block.steps))
        kept = np.flatnonzero(counts[own])
        values = np.frombuffer(block.values).reshape(-1, len(names)) if names else np.zeros((len(block.steps), 0))
        renamed = {_renamed(name): n for n, name in enumerate(names)}
        every = len(kept) == len(block.steps)
        yield _Rows(
            place,
            renamed,
            steps[own][kept],
            order[own][kept],
            np.frombuffer(block.seconds)[kept],
            values if every else values[kept],
        )


def _renamed(metric: str) -> str:
    """A metric of an earlier version under today's name."""
    name, slash, task = metric.partition("/")
    return RENAMED.get(name, name) + slash + task
