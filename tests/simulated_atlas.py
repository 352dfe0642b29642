"""The rows of an atlas whose truth is known: the real design, with made-up learners in place of RL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omni_thinker.recipe import Recipe
from omni_thinker.runs.schema.atlas import AtlasKind, AtlasRow, AtlasStage
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.schedulers.stages import read_stages
from omni_thinker.studies.atlas.design import Run, design
from omni_thinker.transfer.forecast import Array, gain_share


@dataclass(frozen=True)
class Truth:
    """In log-odds. kept: share of an own gain that a later stage leaves. mixed: share that a mixture brings. added:
    what a merge brings. luck: spread of a run."""

    kept: float = 0.7
    mixed: float = 0.6
    added: float = 0.5
    luck: float = 0.1
    specific: float = 0.15
    problems: int = 120
    shared: float = 0.4
    """The most that any training lifts a task by."""


def atlas_row(
    seat: tuple[str, int],
    name: str,
    kind: AtlasKind,
    accuracy: Mapping[str, float],
    stages: tuple[AtlasStage, ...],
    *,
    whole: bool,
    merged: tuple[str, ...] = (),
    scale: float | None = None,
    n: int = 400,
    entropy: Mapping[str, float] | None = None,
) -> AtlasRow:
    """An evaluation on n problems of each task. seat: the start's name, and the seed."""
    start, seed = seat
    seen = {task: Estimate(p, n, float(np.sqrt((p * (1 - p) + 1e-3) / n))) for task, p in accuracy.items()}
    return AtlasRow(
        version=1,
        key=f"{start} {seed} {name}",
        id=f"{start}/{seed}/{name}",
        kind=kind,
        start=start,
        warmup_steps=20,
        seed=seed,
        stages=stages,
        merged=merged,
        scale=scale,
        steps=sum(stage.steps for stage in stages),
        whole=whole,
        samples=0,
        tokens_sampled=0,
        tokens_trained=0,
        seconds=0.0,
        accuracy=seen,
        entropy=entropy or dict.fromkeys(accuracy, 1.0),
        model="simulated",
        versions={},
        cpu="",
        threads=1,
    )


def simulated_rows(pool: Recipe, truth: Truth, seed: int = 0) -> list[AtlasRow]:
    """The rows of all runs of the pool's design, in its order."""
    rng = np.random.default_rng(seed)
    tasks, seats = list(pool.tasks), dict[tuple[str, int], _Learner]()
    shared_C, own_C = rng.uniform(0.0, truth.shared, len(tasks)), rng.uniform(0.3, 1.5, len(tasks))
    specific_K_C = rng.normal(0.0, truth.specific, (len(tasks), len(tasks)))
    np.fill_diagonal(specific_K_C, 0.0)
    begin_C = rng.uniform(-1.8, 0.2, len(tasks))
    rows, begun = list[AtlasRow](), set[tuple[str, int]]()
    for each in design(pool):
        seat = (each.cell.start, each.seed)
        if seat not in seats:
            start_C = begin_C + 0.3 * (each.cell.start == "long") + rng.normal(0.0, 0.1, len(tasks))
            seats[seat] = _Learner(pool, truth, start_C, shared_C, own_C, specific_K_C, rng)
        if seat not in begun:
            begun.add(seat)
            rows.append(seats[seat].row(seat, "start", "start", start_C, (), whole=True))
        for run in each.runs:
            rows += seats[seat].rows(seat, run)
    return rows


@dataclass(frozen=True)
class _Learner:
    pool: Recipe
    truth: Truth
    start_C: Array
    shared_C: Array
    own_C: Array
    specific_K_C: Array
    rng: np.random.Generator

    def rows(self, seat: tuple[str, int], run: Run) -> Iterator[AtlasRow]:
        tasks, passes = list(self.pool.tasks), self.pool.study.steps
        steps = passes if run.kind == "single" else self.pool.atlas.mixed_steps
        if run.kind == "merge":
            places = [tasks.index(task) for task in run.tasks]
            value = self.start_C + run.scale * (self.shared_C + self.specific_K_C[places].sum(axis=0))
            value[places] += run.scale * self.truth.added * self.own_C[places]
            yield self.row(seat, run.name, "merge", value, (), whole=True, merged=run.tasks, scale=run.scale)
            return
        if run.kind == "mixture":
            shares = dict(zip(run.tasks, (np.array(run.weights) / sum(run.weights)).tolist(), strict=True))
            value = self.start_C + self.shared_C * min(1.0, gain_share(steps / passes))
            for task, share in shares.items():
                k = tasks.index(task)
                value = value + share * self.specific_K_C[k]
                value[k] += self.truth.mixed * gain_share(share * steps / passes) * self.own_C[k]
            yield self.row(seat, run.name, "mixture", value, (AtlasStage(shares, steps),), whole=True)
            return
        stages = [(run.tasks[0], read) for read in sorted(self.pool.atlas.reads)] if run.kind == "single" else []
        for task, read in stages:
            value = self._sequence([(task, read)])
            yield self.row(seat, run.name, "single", value, (AtlasStage({task: 1.0}, read),), whole=False)
        lengths = [f"{task}:{size:g}" for task, size in zip(run.tasks, run.weights or (1.0,), strict=True)]
        own = read_stages(lengths, steps)
        for place in range(1, len(own) + 1):
            trained = tuple(AtlasStage({task: 1.0}, each) for task, each in own[:place])
            value = self._sequence(own[:place])
            yield self.row(seat, run.name, run.kind, value, trained, whole=place == len(own))

    def _sequence(self, stages: Sequence[tuple[str, int]]) -> Array:
        tasks, passes = list(self.pool.tasks), self.pool.study.steps
        gained_C, told_C, total = np.zeros(len(tasks)), np.zeros(len(tasks)), 0.0
        for task, steps in stages:
            k, share = tasks.index(task), gain_share(steps / passes)
            progress = min(1.0, share)
            had = gained_C[k]
            gained_C *= 1 - (1 - self.truth.kept) * progress
            told_C = told_C + share * self.specific_K_C[k]
            gained_C[k] = max(had, had + progress * (max(1.0, share) - had))
            total += steps / passes
        return self.start_C + min(1.0, gain_share(total)) * self.shared_C + gained_C * self.own_C + told_C

    def row(
        self,
        seat: tuple[str, int],
        name: str,
        kind: AtlasKind,
        value_C: Array,
        stages: tuple[AtlasStage, ...],
        *,
        whole: bool,
        merged: tuple[str, ...] = (),
        scale: float | None = None,
    ) -> AtlasRow:
        luck = self.truth.luck * (kind != "start")
        reached = 1 / (1 + np.exp(-value_C - self.rng.normal(0.0, 1.0, len(value_C)) * luck))
        problems = self.truth.problems
        seen_C = self.rng.binomial(problems, reached) / problems
        seen = dict(zip(self.pool.tasks, seen_C.tolist(), strict=True))
        entropy = {task: float(self.rng.uniform(0.5, 1.5)) for task in self.pool.tasks}
        return atlas_row(
            seat, name, kind, seen, stages, whole=whole, merged=merged, scale=scale, n=problems, entropy=entropy
        )
