"""What an atlas says of transfer, order, assumptions, entropy and probes, each number with its interval.

Used by scripts/atlas_page.py. Intervals are 95 % percentile bootstraps over what was drawn independently: tasks for
single runs, runs for mixtures, sequences and merges, task sets for plans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import gain_share
from omni_thinker.transfer.latents import observe
from omni_thinker.transfer.metrics import rank_correlation
from omni_thinker.transfer.priors.cases import Seat, matrices_of, seat_of
from omni_thinker.transfer.probe import agreement, extrapolate

Array = NDArray[np.float64]
T = TypeVar("T")
RESAMPLES = 2000
MATTERS = 0.02
"""A difference of so much accuracy is said to matter."""


@dataclass(frozen=True)
class Number:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def number(items: Sequence[T], statistic: Callable[[Sequence[T]], float]) -> Number | None:
    """A statistic with its bootstrap interval over the items; None where there are fewer than 3."""
    if len(items) < 3:
        return None
    value = statistic(items)
    found = bootstrap(
        (np.arange(len(items)),),
        lambda places: statistic([items[k] for k in places]),
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Number(value, float(found.low), float(found.high), len(items))


def gains(matrices: Mapping[Seat, TransferMatrix]) -> dict[str, float]:
    """Gain of each task's own single runs, mean over seats."""
    found: dict[str, list[float]] = {}
    for matrix in matrices.values():
        for task in matrix.tasks:
            found.setdefault(task, []).append(matrix.effect(task, task))
    return {task: fmean(own) for task, own in found.items()}


def effects(matrices: Mapping[Seat, TransferMatrix]) -> tuple[tuple[str, ...], Array]:
    """Tasks that all seats trained alone, and what training on i did to j, [seats, i, j]."""
    every = [set(matrix.tasks) for matrix in matrices.values()]
    tasks = tuple(task for task in next(iter(matrices.values())).tasks if all(task in own for own in every))
    return tasks, np.array([[[m.effect(i, j) for j in tasks] for i in tasks] for m in matrices.values()])


@dataclass(frozen=True)
class Noise:
    """Spreads of the effect of one task on another, in accuracy.

    common: of what two seeds of a start share. seeds: of what they don't, training and evaluation together.
    common_specific: as `common`, once the mean over trained tasks is taken away."""

    common: Number | None
    seeds: Number | None
    common_specific: Number | None


def noise(matrices: Mapping[Seat, TransferMatrix]) -> Noise:
    """Transfer between tasks against noise between seeds, over tasks that are trained."""
    pairs = [(a, b) for a, b in combinations(matrices, 2) if a[:3] == b[:3]]
    rows = list[tuple[Array, Array]]()
    specific = list[tuple[Array, Array]]()
    for a, b in pairs:
        tasks, both = effects({a: matrices[a], b: matrices[b]})
        centred = both - _column_means(both)
        for i in range(len(tasks)):
            others = np.arange(len(tasks)) != i
            rows.append((both[0, i, others], both[1, i, others]))
            specific.append((centred[0, i, others], centred[1, i, others]))
    return Noise(number(rows, _common), number(rows, _between), number(specific, _common))


def _column_means(effects_S_I_J: Array) -> Array:
    """Mean effect on each task of training on others, [S, 1, J]."""
    count = effects_S_I_J.shape[1]
    others = ~np.eye(count, dtype=bool)
    return np.asarray((effects_S_I_J * others).sum(axis=1, keepdims=True) / (count - 1))


def _common(rows: Sequence[tuple[Array, Array]]) -> float:
    one, two = (np.concatenate(side) for side in zip(*rows, strict=True))
    return float(np.sqrt(max(0.0, float(np.mean(one * two)))))


def _between(rows: Sequence[tuple[Array, Array]]) -> float:
    one, two = (np.concatenate(side) for side in zip(*rows, strict=True))
    return float(np.sqrt(np.mean((one - two) ** 2) / 2))


@dataclass(frozen=True)
class StageFact:
    """A later stage of a sequence: what the matrix said it would do to a task, and what it did, in log-odds. nats: what
    earlier stages had done to the entropy of the task's answers."""

    run: str
    own: bool
    expected: float
    seen: float
    nats: float


def stage_facts(rows: Sequence[AtlasRow]) -> list[StageFact]:
    """Every later stage of every sequence, on each task that its run trains."""
    matrices = matrices_of(rows)
    passes = {seat_of(row): row.steps for row in rows if row.kind == "single" and row.whole}
    runs: dict[str, list[AtlasRow]] = {}
    for row in rows:
        if row.kind == "sequence" and seat_of(row) in matrices:
            runs.setdefault(row.key, []).append(row)
    facts = list[StageFact]()
    for run in runs.values():
        ended = sorted(run, key=lambda row: row.steps)
        tasks = {next(iter(stage.shares)) for stage in ended[-1].stages}
        matrix = matrices[seat_of(ended[0])]
        if not tasks <= set(matrix.tasks):
            continue
        for before, after in pairwise(ended):
            stage = after.stages[-1]
            (trained,) = stage.shares
            share = gain_share(stage.steps / passes[seat_of(after)])
            for task in tasks:
                start, then, now = (
                    observe(cell)[0] for cell in (matrix.start[task], before.accuracy[task], after.accuracy[task])
                )
                whole = observe(matrix.after[trained][task])[0] - start
                nats = before.entropy[task] - matrix.entropy.start[task] if matrix.entropy else 0.0
                own = task == trained
                # A2: a stage brings its own task to the level of a single run, or part of the way.
                expected = min(1.0, share) * (start + whole - then) if own else share * whole
                facts.append(StageFact(after.id, own, expected, now - then, nats))
    return facts


def slope(facts: Sequence[StageFact]) -> Number | None:
    """Change that was seen per change that was expected, over runs; 1 where the assumption holds."""
    return number(_by_run(facts), lambda runs: _slope([(f.expected, f.seen) for run in runs for f in run]))


def entropy_slope(facts: Sequence[StageFact]) -> Number | None:
    """Log-odds that a stage brought its own task beyond what was expected, per nat of entropy that earlier stages had
    added to its answers. The claim of arXiv 2507.14783 is a number above 0."""
    own = [fact for fact in facts if fact.own]
    return number(_by_run(own), lambda runs: _fit([(f.nats, f.seen - f.expected) for run in runs for f in run]))


def _by_run(facts: Iterable[StageFact]) -> list[list[StageFact]]:
    found: dict[str, list[StageFact]] = {}
    for fact in facts:
        found.setdefault(fact.run, []).append(fact)
    return list(found.values())


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Through 0, since where nothing is expected nothing should come."""
    x, y = np.array(pairs).T
    return float((x * y).sum() / max(1e-12, (x * x).sum()))


def _fit(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(pairs).T
    return float(((x - x.mean()) * (y - y.mean())).sum() / max(1e-12, ((x - x.mean()) ** 2).sum()))


@dataclass(frozen=True)
class ProbeFact:
    """How well reads of single runs on their way tell the whole runs' matrix, mean over seats."""

    steps: int
    whole: int
    rank: float
    rank_others: float
    away: float


def probe_facts(rows: Sequence[AtlasRow]) -> list[ProbeFact]:
    """Each length of read against the whole run, with what the learning curve makes of it."""
    wholes, found = matrices_of(rows), list[ProbeFact]()
    steps = {row.steps for row in rows if row.kind == "single" and not row.whole}
    for read in sorted(steps):
        seen = list[tuple[float, float, float]]()
        long = 0
        for seat, whole in wholes.items():
            own = [row for row in rows if row.kind == "single" and seat_of(row) == seat]
            long = max(row.steps for row in own)
            reads = {next(iter(row.stages[-1].shares)): row for row in own if row.steps == read}
            if set(reads) < set(whole.tasks):
                continue
            after = {i: {j: reads[i].accuracy[j] for j in whole.tasks} for i in whole.tasks}
            short = TransferMatrix(whole.tasks, whole.start, after)
            told = agreement(extrapolate(short, dict.fromkeys(whole.tasks, read / long)), whole)
            if told and told.rank is not None and told.rank_off_diagonal is not None:
                seen.append((told.rank, told.rank_off_diagonal, told.mean_difference))
        if seen:
            found.append(ProbeFact(read, long, *(fmean(each) for each in zip(*seen, strict=True))))
    return found


@dataclass(frozen=True)
class Planned:
    """Mean accuracy over a set's tasks at the end of each way to train them. ways: by the run's name before its last
    hyphen."""

    name: str
    tasks: tuple[str, ...]
    ways: Mapping[str, float]


def planned(rows: Sequence[AtlasRow]) -> list[Planned]:
    """The task sets of chosen runs: `plan-00`, `even-00` and so on are of one set."""
    sets: dict[str, dict[str, AtlasRow]] = {}
    for row in rows:
        way, _, name = row.id.rpartition("/")[2].rpartition("-")
        if row.whole and way in WAYS:
            sets.setdefault(name, {})[way] = row
    found = []
    for name, ways in sorted(sets.items()):
        tasks = tuple(sorted({task for row in ways.values() for stage in row.stages for task in stage.shares}))
        ends = {way: fmean(row.accuracy[task].mean for task in tasks) for way, row in ways.items()}
        found.append(Planned(name, tasks, ends))
    return found


WAYS = ("plan", "reverse", "random", "even", "shares")
"""Planned order, its reverse, a random order, joint training in even shares, joint training in planned shares."""


def difference(sets: Sequence[Planned], one: str, other: str) -> Number | None:
    """Mean of what `one` ends above `other`, over task sets that have both."""
    gaps = [own.ways[one] - own.ways[other] for own in sets if one in own.ways and other in own.ways]
    return number(gaps, fmean)


def order_matters(sets: Sequence[Planned]) -> Number | None:
    """Share of task sets whose best and worst order differ by more than `MATTERS`."""
    orders = ("plan", "reverse", "random")
    spans = [
        float(max(ends) - min(ends) > MATTERS)
        for own in sets
        if len(ends := [own.ways[way] for way in orders if way in own.ways]) > 1
    ]
    return number(spans, fmean)


@dataclass(frozen=True)
class Features:
    """What is known beforehand. tasks: a number of each task by the feature's name. pairs: of each pair,
    [trained][evaluated]."""

    tasks: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True)
class Predictor:
    """Rank correlations of a feature with what training on i does to j: of i, of j, and of how near the two are. None
    where the feature has no such number."""

    name: str
    trained: float | None
    evaluated: float | None
    near: float | None


def predictors(matrices: Mapping[Seat, TransferMatrix], features: Features) -> list[Predictor]:
    """Who helps whom by what is known of the tasks, over all pairs of different tasks; effects are means over seats."""
    tasks, effects_S_I_J = effects(matrices)
    mean = effects_S_I_J.mean(axis=0)
    cells = [(i, j, float(mean[a, b])) for a, i in enumerate(tasks) for b, j in enumerate(tasks) if a != b]
    begun = next(iter(matrices.values()))
    known = {**features.tasks, "start accuracy": {task: begun.start[task].mean for task in tasks}}
    if begun.entropy:
        known["entropy"] = begun.entropy.start

    def rank(value: Callable[[str, str], float]) -> float | None:
        return rank_correlation([(value(i, j), effect) for i, j, effect in cells])

    found = []
    for name, own in known.items():
        if set(tasks) <= set(own):
            ranks = rank(lambda i, j: own[i]), rank(lambda i, j: own[j]), rank(lambda i, j: -abs(own[i] - own[j]))  # noqa: B023
            found.append(Predictor(name, *ranks))
    for name, pairs in features.pairs.items():
        if set(tasks) <= set(pairs):
            found.append(Predictor(name, None, None, rank(lambda i, j: pairs[i][j])))  # noqa: B023
    return found
