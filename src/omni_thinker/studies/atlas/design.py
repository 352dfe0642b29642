"""Which small studies an atlas is made of: a pure function of the recipe. Imports no torch.

Every task is in about as many mixtures, sequences and merges as every other, and tasks meet others evenly."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from omni_thinker.recipe import AtlasSpec, MergedSpec, Recipe, StudySpec
from omni_thinker.recipe.schedulers import read_scheduler
from omni_thinker.runs.schema.atlas import AtlasKind
from omni_thinker.types import TaskName

ALONE = "alone-"
"""Prefix of the names of single runs."""
_TRIES = 24
"""Draws of which the one is taken whose tasks have met least."""
_LENGTHS = (1.0, 1.5, 2.0, 3.0)
_SCALES = (0.5, 0.75, 1.0)
_CHUNK = 8
"""Mixtures and sequences that one start and seed runs before the next one's turn."""


@dataclass(frozen=True, slots=True)
class Run:
    """One small study.

    tasks: what it trains, in order, or whose single runs it merges. weights: of a mixture's tasks, or lengths of a
    sequence's stages; empty for others. scale: of a merge."""

    name: str
    kind: AtlasKind
    tasks: tuple[TaskName, ...]
    weights: tuple[float, ...] = ()
    scale: float = 1.0

    @property
    def experts(self) -> tuple[str, ...]:
        """The single runs that it merges."""
        return tuple(ALONE + task for task in self.tasks) if self.kind == "merge" else ()

    def scheduler(self, reads: Sequence[int]) -> dict[str, Any]:
        """Its table of `study.schedulers`. reads: of single runs."""
        if self.kind == "mixture":
            return {"kind": "weighted", "weights": dict(zip(self.tasks, self.weights, strict=True))}
        if self.kind == "single":
            return {"kind": "sequence", "stages": list(self.tasks), "reads": list(reads)}
        stages = [f"{task}:{length:g}" for task, length in zip(self.tasks, self.weights, strict=True)]
        return {"kind": "sequence", "stages": stages}


@dataclass(frozen=True, slots=True)
class Cell:
    """Runs that share a start and a number of steps: one ordinary recipe. runs: by seed, in their order."""

    name: str
    start: str
    recipe: Recipe
    runs: dict[int, tuple[Run, ...]]

    def run(self, name: str) -> Run:
        """Raises StopIteration where there is none."""
        return next(run for runs in self.runs.values() for run in runs if run.name == name)


@dataclass(frozen=True, slots=True)
class Round:
    """What is run before the next cell's turn: some runs of one cell with one seed."""

    cell: Cell
    seed: int
    runs: tuple[Run, ...]


def design(pool: Recipe) -> list[Round]:
    """The rounds of an atlas over the recipe's tasks, such that each beginning of the list is useful by itself: single
    runs from every start with every seed, with the merges of these, then mixtures and sequences in turn.

    Raises UserError where the tables `atlas` and `study` don't go together."""
    spec, seeds = pool.atlas, pool.study.seeds
    spec.check(list(pool.tasks), pool.study.steps, seeds)
    starts = tuple(spec.starts)
    seats = [(start, seed) for seed in seeds for start in starts]
    rng = random.Random(f"atlas {spec.seed}")
    single = [Run(ALONE + task, "single", (task,)) for task in pool.tasks]
    pairs = _zipped(
        *(_seated(list(made), seats, spec.repeated) for made in (_mixtures(rng, pool), _sequences(rng, pool)))
    )
    mixed = [run for pair in pairs for run in pair]
    merges = _seated(list(_merges(rng, pool)), seats, spec.repeated)
    alone_of = {seat: _by_merges(single, [run for at, run in merges if at == seat]) for seat in seats}
    mixed_of = {seat: tuple(run for at, run in mixed if at == seat) for seat in seats}
    alone = {start: _cell(pool, start, "alone", {seed: alone_of[start, seed] for seed in seeds}) for start in starts}
    others = {start: _cell(pool, start, "mixed", {seed: mixed_of[start, seed] for seed in seeds}) for start in starts}
    rounds = [Round(alone[start], seed, alone_of[start, seed]) for start, seed in seats]
    for begin in range(0, max(map(len, mixed_of.values())), _CHUNK):
        chunks = (Round(others[start], seed, mixed_of[start, seed][begin : begin + _CHUNK]) for start, seed in seats)
        rounds += [chunk for chunk in chunks if chunk.runs]
    return rounds + _chosen(pool)


def _chosen(pool: Recipe) -> list[Round]:
    """The runs that the recipe names: cells of their own, so that naming more changes no other."""
    rounds = []
    for start in pool.atlas.starts:
        named = [
            (spec.seed, Run(name, spec.kind, spec.tasks, spec.weights))
            for name, spec in pool.atlas.chosen.items()
            if spec.start == start
        ]
        by_seed = {seed: tuple(run for at, run in named if at == seed) for seed in pool.study.seeds}
        cell = _cell(pool, start, "chosen", by_seed)
        rounds += [Round(cell, seed, runs) for seed, runs in by_seed.items() if runs]
    return rounds


def _cell(pool: Recipe, start: str, part: str, runs: dict[int, tuple[Run, ...]]) -> Cell:
    """An ordinary recipe with these runs as its arms."""
    spec, study = pool.atlas, pool.study
    own = list(dict.fromkeys(run for of_seed in runs.values() for run in of_seed))
    tables = {run.name: run.scheduler(spec.reads) for run in own if run.kind != "merge"}
    table = StudySpec(
        steps=study.steps if part == "alone" else spec.mixed_steps,
        seeds=study.seeds,
        arms=("start", *(run.name for run in own)),
        schedulers={name: read_scheduler(each, f"study.schedulers.{name}") for name, each in tables.items()},
        merges={run.name: MergedSpec(arms=run.experts, scale=run.scale) for run in own if run.kind == "merge"},
        checkpoint_steps=study.checkpoint_steps,
    )
    name = f"{start}-{part}"
    settings = {
        "name": f"{pool.name[:60]}-{name[:39]}",
        "study": table,
        "atlas": AtlasSpec(),
        "warmup": pool.warmup.model_copy(update={"steps": spec.starts[start]}),
    }
    return Cell(name, start, pool.model_copy(update=settings), runs)


def _mixtures(rng: random.Random, pool: Recipe) -> Iterator[Run]:
    sizes, tasks = _Sizes(rng, pool.atlas.mixture_tasks, len(pool.tasks)), _Even(rng, pool)
    for number in range(pool.atlas.mixtures):
        chosen = tasks.take(sizes.next())
        weights = tuple(round(min(8.0, max(0.25, rng.lognormvariate(0, 0.8))), 2) for _ in chosen)
        yield Run(f"mixture-{number:02d}", "mixture", chosen, weights)


def _sequences(rng: random.Random, pool: Recipe) -> Iterator[Run]:
    """Every other sequence of three stages or more comes back to a task."""
    sizes, tasks = _Sizes(rng, pool.atlas.sequence_stages, len(pool.tasks) + 1), _Even(rng, pool)
    for number in range(pool.atlas.sequences):
        size = sizes.next()
        again = size > 2 and (number % 2 == 0 or size > len(pool.tasks))
        order = list(tasks.take(size - again))
        if again:
            places = [(first, place) for first in range(size - 2) for place in range(first + 2, size)]
            first, place = rng.choice(places)
            order.insert(place, order[first])
        yield Run(f"sequence-{number:02d}", "sequence", tuple(order), tuple(rng.choice(_LENGTHS) for _ in order))


def _merges(rng: random.Random, pool: Recipe) -> Iterator[Run]:
    sizes, tasks = _Sizes(rng, pool.atlas.merge_tasks, len(pool.tasks)), _Even(rng, pool)
    for number in range(pool.atlas.merges):
        yield Run(f"merge-{number:02d}", "merge", tasks.take(sizes.next()), scale=rng.choice(_SCALES))


class _Sizes:
    """Sizes from the lowest to the highest, each as often as the others, in random order."""

    def __init__(self, rng: random.Random, between: tuple[int, int], most: int) -> None:
        low, high = (min(size, most) for size in between)
        self._rng, self._all, self._deck = rng, range(low, high + 1), list[int]()

    def next(self) -> int:
        if not self._deck:
            self._deck = self._rng.sample(self._all, len(self._all))
        return self._deck.pop()


class _Even:
    """Draws tasks so that none is taken twice more often than it must be: always those that were taken least."""

    def __init__(self, rng: random.Random, pool: Recipe) -> None:
        self._rng, self._taken = rng, Counter[TaskName](dict.fromkeys(pool.tasks, 0))
        self._met = Counter[frozenset[TaskName]]()

    def take(self, size: int) -> tuple[TaskName, ...]:
        """So many different tasks, in random order."""
        draws = [sorted(self._taken, key=lambda task: (self._taken[task], self._rng.random()))[:size]
                 for _ in range(_TRIES)]  # fmt: skip
        chosen = min(draws, key=lambda draw: sum(self._met[frozenset(pair)] ** 2 for pair in combinations(draw, 2)))
        self._taken.update(chosen)
        self._met.update(map(frozenset, combinations(chosen, 2)))
        return tuple(self._rng.sample(chosen, size))


def _seated(runs: Sequence[Run], seats: Sequence[tuple[str, int]], repeated: int) -> list[tuple[tuple[str, int], Run]]:
    """Where each is run: the first ones from every start with every seed, the others in turn."""
    return [
        (seat, run)
        for place, run in enumerate(runs)
        for seat in (seats if place < repeated else [seats[place % len(seats)]])
    ]


def _zipped(one: Sequence[Any], other: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    for place in range(max(len(one), len(other))):
        yield (*one[place : place + 1], *other[place : place + 1])


def _by_merges(single: Sequence[Run], merges: Sequence[Run]) -> tuple[Run, ...]:
    """Each merge right after the single runs that it needs, so that their weights needn't be kept for long."""
    by_name, order = {run.name: run for run in single}, dict[str, Run]()
    for merge in merges:
        order |= {name: by_name[name] for name in merge.experts}
        order[merge.name] = merge
    return tuple((order | {name: run for name, run in by_name.items() if name not in order}).values())
