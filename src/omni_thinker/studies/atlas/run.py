"""Running an atlas: its rounds as units of ordinary studies, and a row for each evaluation as runs end."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from omni_thinker.errors import UserError
from omni_thinker.policy.engines import choose_engines
from omni_thinker.recipe import Recipe
from omni_thinker.runs.files import remove
from omni_thinker.runs.journal import unit_id
from omni_thinker.runs.lock import Lock
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.read import read_atlas
from omni_thinker.runs.resume import dated
from omni_thinker.runs.rundir import RunDir
from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.unit_run import models_of
from omni_thinker.studies.atlas.design import Cell, Round, Run, design
from omni_thinker.studies.atlas.hours import OutOfTime, within
from omni_thinker.studies.atlas.rows import NAME, START, Rows, Writer, differences, id_of
from omni_thinker.studies.crews.make import Where
from omni_thinker.studies.dispatch.times import pace_from
from omni_thinker.studies.estimate import SECONDS
from omni_thinker.studies.setup import Setup, prepare
from omni_thinker.studies.study import open_study, walk_units
from omni_thinker.studies.units import Unit, WorkPlan, plan_work
from omni_thinker.studies.weights import slug


def run_atlas(
    pool: Recipe,
    out: Path,
    *,
    hours: float | None = None,
    known: Path | None = None,
    only: Sequence[str] = (),
    where: Where | None = None,
) -> dict[str, Any]:
    """Run the atlas of a recipe into `out`, or what is left of it there.

    hours: after so many it stops, and can be resumed. known: atlas.jsonl of an earlier atlas, whose runs aren't run
    again. only: ids of runs to repeat, which are compared with the rows of `known`. Returns how many runs are left,
    whether the hours were spent, and the ids of repeated runs with the fields that differ.

    Raises UserError for whatever can be checked beforehand, and for ids that the atlas doesn't have."""
    where = where or Where()
    where.check()
    rounds = _chosen(design(pool), only)
    before = [] if known is None else read_atlas(known)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UserError(f"can't be the directory of an atlas: {exc.strerror or exc}", file=out, key="--out") from None
    with Progress(SECONDS) as progress, closing(_Held(out)):
        progress.show("checking tasks, rewards and every row")
        setup = prepare(pool, resumed=out)
        setup.keep_drawn(out)
        rows = Rows(out / NAME, () if only else before)
        atlas = _Atlas(out, setup, rows, Writer.of(setup.pools, _threads(pool, where)), progress, where)
        spent = False
        try:
            with within(hours) as check:
                for each in rounds:
                    atlas.run(each, check)
        except OutOfTime:
            spent = True
            progress.say(f"{hours:g} hours are spent")
    left = sum(len(atlas.lacking(each)) for each in rounds)
    return {
        "out": str(out),
        "rows": len(read_atlas(out / NAME)),
        "runs_left": left,
        "out_of_time": spent,
        "different": _compared(read_atlas(out / NAME), before) if only and known is not None and not left else {},
    }


def describe_atlas(pool: Recipe, times: Path | None = None, jobs: int = 1) -> dict[str, Any]:
    """What an atlas is made of, and the hours that it takes at the pace of `times` (`pace_from`). Writes nothing."""
    pace, rounds = SECONDS if times is None else pace_from(times), design(pool)
    seconds, kinds = 0.0, dict[str, int]()
    work = dict[str, int]()
    begun = set[tuple[str, int]]()
    for each in rounds:
        units = list(work_of(each).units)
        if (each.cell.name, each.seed) in begun:
            units = [unit for unit in units if unit.kind not in ("warmup", "start")]
        begun.add((each.cell.name, each.seed))
        seconds += sum(unit.seconds(pace) for unit in units)
        for unit in units:
            work |= {kind: work.get(kind, 0) + count for kind, count in unit.work.items()}
        for run in each.runs:
            kinds[run.kind] = kinds.get(run.kind, 0) + 1
    return {
        "name": pool.name,
        "tasks": list(pool.tasks),
        "starts": pool.atlas.starts,
        "seeds": list(pool.study.seeds),
        "runs": kinds,
        "work": work,
        "hours": round(seconds / 3600 / jobs, 2),
        "guessed": times is None,
    }


def work_of(each: Round, recipe: Recipe | None = None) -> WorkPlan:
    """The units of a round, with those that they need. recipe: the cell's, as it is run."""
    plan = plan_work(recipe or each.cell.recipe)
    named = {unit.name: unit for unit in plan.of_seed(each.seed) if unit.kind not in ("plan", "test")}
    wanted = dict[str, Unit]()

    def add(name: str) -> None:
        for needed in named[name].needs:
            add(needed)
        wanted.setdefault(name, named[name])

    for name in ("start", *(run.name for run in each.runs)):
        add(name)
    return WorkPlan(tuple(wanted.values()), plan.probes, plan.experts)


@dataclass(frozen=True, slots=True)
class _Atlas:
    """An atlas whose directory is open."""

    out: Path
    setup: Setup
    rows: Rows
    writer: Writer
    progress: Progress
    where: Where

    def lacking(self, each: Round) -> tuple[Run, ...]:
        """The runs of a round that have no rows yet."""
        return tuple(run for run in each.runs if not self._has(each.cell, each.seed, run))

    def run(self, each: Round, check: Callable[[], None]) -> None:
        """Run what is left of a round. check: called as units end; raises where the time is up."""
        if not (lacking := self.lacking(each)):
            return
        each = replace(each, runs=lacking)
        folder, progress = self.out / each.cell.name, self.progress
        resume = (folder / "recipe.toml").exists()
        recipe, _ = choose_engines(dated(each.cell.recipe, folder if resume else None))
        setup, work = replace(self.setup, recipe=recipe), work_of(each, recipe)
        progress.expect(work.total)
        progress.say(f"{each.cell.name}, seed {each.seed}: {len(lacking)} runs into {folder}")
        with open_study(setup, folder, resume=resume, where=self.where) as (run, owner):
            setup.keep_drawn(run.path)
            run.journal.cut()

            def on_end(unit: Unit) -> None:
                self._ended(each, run, unit)
                check()

            def begun() -> None:
                ended = run.journal.ended()
                for unit in work.units:
                    if unit.id in ended:
                        on_end(unit)

            walk_units(run, setup, work, progress, self.where, owner, begun=begun, on_end=on_end)
            if all(self._has(each.cell, each.seed, one) for one in each.cell.runs[each.seed]):
                shutil.rmtree(models_of(run.path, each.seed), ignore_errors=True)

    def _has(self, cell: Cell, seed: int, run: Run) -> bool:
        return self.writer.key(cell, seed, run) in self.rows.known

    def _ended(self, each: Round, run_dir: RunDir, unit: Unit) -> None:
        """Write the rows of a unit, and remove weights that no other needs."""
        if unit.kind == "warmup":
            return
        cell, seed = each.cell, each.seed
        run = START if unit.name == START.name else cell.run(unit.name)
        names = (run.name, *run.experts)
        entries = {name: run_dir.journal.entries(unit_id(seed, name)) for name in names}
        self.rows.add(self.writer.rows(cell, seed, run, entries))
        merges = [one for one in cell.runs[seed] if one.kind == "merge" and not self._has(cell, seed, one)]
        needed = {"start", *(name for merge in merges for name in merge.experts)}
        for name in names:
            if name not in needed:
                remove(models_of(run_dir.path, seed) / "state" / f"{slug(name)}.safetensors")


class _Held:
    """The directory of an atlas, while one process works on it."""

    def __init__(self, out: Path) -> None:
        self._lock = Lock(out)

    def close(self) -> None:
        """Let another take it."""
        self._lock.release()


def _chosen(rounds: Sequence[Round], only: Sequence[str]) -> list[Round]:
    """The rounds, with no other runs than `only` names, where it names any."""
    if not only:
        return list(rounds)
    ids = {id_of(each.cell, each.seed, run) for each in rounds for run in each.runs}
    if unknown := [name for name in only if name not in ids]:
        raise UserError(f"no run {unknown[0]!r:.80}; its id is START/SEED/NAME, such as {min(ids)}", key="--only")
    chosen = [
        replace(each, runs=tuple(run for run in each.runs if id_of(each.cell, each.seed, run) in only))
        for each in rounds
    ]
    return [each for each in chosen if each.runs]


def _compared(rows: Sequence[AtlasRow], known: Sequence[AtlasRow]) -> dict[str, list[str]]:
    """The ids of runs with the fields that differ from those of `known`; none where all are alike."""
    before = {(row.id, row.steps): row for row in known}
    found = dict[str, list[str]]()
    for row in rows:
        other = before.get((row.id, row.steps))
        if fields := ["no such row"] if other is None else differences(row, other):
            found[f"{row.id} after {row.steps} steps"] = fields
    return found


def _threads(pool: Recipe, where: Where) -> int:
    """Threads of each process that computes, as its crew sets them."""
    if where.cluster:
        return pool.cluster.cores
    if where.alone:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or max(1, cores // where.jobs))
