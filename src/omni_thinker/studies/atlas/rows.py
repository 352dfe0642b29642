"""Rows of an atlas: what identifies a run, and the rows of one that has ended."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

from omni_thinker import __version__
from omni_thinker.recipe import Recipe
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.runs.files import write_whole
from omni_thinker.runs.json_text import to_json
from omni_thinker.runs.machine import machine
from omni_thinker.runs.read import read_atlas
from omni_thinker.runs.resume import Pools, digests
from omni_thinker.runs.schema.atlas import AtlasRow, AtlasStage
from omni_thinker.runs.schema.base import VERSION
from omni_thinker.runs.tape import Entry
from omni_thinker.schedulers.stages import read_stages
from omni_thinker.studies.atlas.design import Cell, Run
from omni_thinker.studies.budget import Cost
from omni_thinker.studies.session import evaluation_key
from omni_thinker.studies.training import costs_of
from omni_thinker.types import TaskName

NAME = "atlas.jsonl"
PACKAGES = ("torch", "transformers", "reasoning-gym")
_TABLES = {"model", "engine", "tasks", "warmup", "rl", "evaluation", "judge"}
_OF_MACHINE = {"seconds": 0.0, "cpu": "", "threads": 0}
START = Run("start", "start", ())
"""The model before RL, as a run."""


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers, where they are installed."""
    found = {"omni-thinker": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes the rows of one atlas. problems: a digest of all problems. threads: that compute."""

    problems: str
    versions: Mapping[str, str]
    cpu: str
    threads: int

    @classmethod
    def of(cls, pools: Pools, threads: int) -> "Writer":
        """pools: the problems of each split and task."""
        return cls(_digest(digests(pools)), versions(), machine().cpu, threads)

    def key(self, cell: Cell, seed: int, run: Run) -> str:
        """Digest of all that decides a run's numbers but for the machine."""
        recipe = cell.recipe.model_dump(mode="json", include=_TABLES)
        study = {"steps": cell.recipe.study.steps, "reads": _reads(cell.recipe, run)} if run.kind != "start" else {}
        trained = [run.kind, run.tasks, run.weights, run.scale]
        return _digest([VERSION, recipe, study, trained, seed, self.problems, dict(self.versions)])

    def rows(self, cell: Cell, seed: int, run: Run, entries: Mapping[str, Sequence[Entry]]) -> list[AtlasRow]:
        """All rows of a run that has ended. entries: its lines of the journal and those of its experts, by name."""
        moves = {entry.key: entry.value for entry in entries[run.name] if entry.kind == "move"}
        spent = _costs(run, seed, entries)
        rows = [
            self._row(cell, seed, run, at, spent[at.steps] if at.steps else Cost(), Evaluation(**moves[at.key]))
            for at in _looks(cell.recipe, seed, run, max(spent))
        ]
        return [*(replace(row, whole=False) for row in rows[:-1]), *rows[-1:]]

    def _row(self, cell: Cell, seed: int, run: Run, at: "_Look", cost: Cost, seen: Evaluation) -> AtlasRow:
        merges = run.kind == "merge"
        return AtlasRow(
            version=VERSION,
            key=self.key(cell, seed, run),
            id=id_of(cell, seed, run),
            kind=run.kind,
            start=cell.start,
            warmup_steps=cell.recipe.warmup.steps,
            seed=seed,
            stages=at.stages,
            merged=run.tasks if merges else (),
            scale=run.scale if merges else None,
            steps=at.steps,
            whole=True,
            samples=cost.samples,
            tokens_sampled=cost.tokens_sampled,
            tokens_trained=cost.tokens_trained,
            seconds=round(cost.seconds, 3),
            accuracy=seen.estimates(),
            entropy=seen.entropy(),
            model=cell.recipe.model.name,
            versions=self.versions,
            cpu=self.cpu,
            threads=self.threads,
        )


def id_of(cell: Cell, seed: int, run: Run) -> str:
    """How people call a run of an atlas."""
    return f"{cell.start}/{seed}/{run.name}"


@dataclass(frozen=True, slots=True)
class _Look:
    """An evaluation: after how many steps, of which stages, and its key in the journal."""

    steps: int
    stages: tuple[AtlasStage, ...]
    key: str


def _reads(recipe: Recipe, run: Run) -> tuple[int, ...]:
    return recipe.study.schedulers[run.name].reads if run.kind == "single" else ()


def _looks(recipe: Recipe, seed: int, run: Run, whole: int) -> Iterator[_Look]:
    """The evaluations of a run, in order. whole: its steps."""

    def key(step: int, stage: TaskName | None) -> str:
        return evaluation_key(seed, run.name, "validation", step, stage)

    if run.kind in ("start", "merge"):
        yield _Look(whole, (), key(whole, None))
    elif run.kind == "mixture":
        total = sum(run.weights)
        shares = {task: weight / total for task, weight in zip(run.tasks, run.weights, strict=True)}
        yield _Look(whole, (AtlasStage(shares, whole),), key(whole, None))
    else:
        for read in sorted(_reads(recipe, run)):
            yield _Look(read, (AtlasStage({run.tasks[0]: 1.0}, read),), key(read, None))
        stages = read_stages(
            [f"{task}:{length:g}" for task, length in zip(run.tasks, run.weights or (1.0,), strict=True)],
            recipe.study.steps,
        )
        ends = accumulate(steps for _, steps in stages)
        for place, (end, (task, _)) in enumerate(zip(ends, stages, strict=True)):
            ended = tuple(AtlasStage({name: 1.0}, steps) for name, steps in stages[: place + 1])
            yield _Look(end, ended, key(end, task))


def _costs(run: Run, seed: int, entries: Mapping[str, Sequence[Entry]]) -> dict[int, Cost]:
    """What a run had cost after each number of steps; of a merge, what its parts cost."""
    if run.kind == "merge":
        spent = sum((costs_of(entries[name], seed, name)[-1] for name in run.experts), Cost())
        return {spent.steps: spent}
    return {0: Cost(), **{cost.steps: cost for cost in costs_of(entries[run.name], seed, run.name)}}


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Rows:
    """The file of an atlas, to which rows are appended as runs end."""

    def __init__(self, path: Path, known: Sequence[AtlasRow] = ()) -> None:
        """known: rows of an earlier atlas, which are taken over. Raises UserError where rows can't be read."""
        self._path = path
        rows = read_atlas(path) if path.exists() else []
        of_before = {row.key for row in rows}
        rows += [row for row in known if row.key not in of_before]
        # written anew, for a kill may have left a line or a run half written
        write_whole(path, lambda partial: partial.write_text("".join(map(_line, rows)), "utf-8"))
        self.known = {row.key for row in rows}
        """Keys of runs that have their rows."""

    def add(self, rows: Sequence[AtlasRow]) -> None:
        """The rows of a run, unless they are there."""
        if rows and rows[0].key not in self.known:
            self._append(rows)

    def _append(self, rows: Sequence[AtlasRow]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(map(_line, rows)))
            stream.flush()
            os.fsync(stream.fileno())
        self.known |= {row.key for row in rows}


def _line(row: AtlasRow) -> str:
    return to_json(row) + "\n"


def differences(row: AtlasRow, other: AtlasRow) -> list[str]:
    """Names of the fields that differ, but for those that depend on the machine."""
    return [
        name
        for name in AtlasRow.__slots__
        if name not in _OF_MACHINE and repr(getattr(row, name)) != repr(getattr(other, name))
    ]
