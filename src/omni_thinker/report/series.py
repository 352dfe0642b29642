"""Curves over steps, from the lines of metrics.jsonl."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from omni_thinker.arms import PROBE, is_single, task_of
from omni_thinker.runs.read import RunData

Points = list[tuple[float, float]]
MAX_POINTS = 120
"""Longer curves are averaged in bins, so that a long run does not make a heavy file."""


@dataclass(frozen=True)
class Span:
    """The steps of one curriculum stage, first and last included."""

    task: str
    first: int
    last: int


def by_seed(run: RunData, arm: str, metric: str, kind: str = "train") -> dict[int, Points]:
    """The finite values of a metric for each seed, in order of steps."""
    points: dict[int, Points] = defaultdict(list)
    for row in run.records:
        value = row.metrics.get(metric, math.nan)
        if row.arm == arm and row.kind == kind and math.isfinite(value):
            points[row.seed].append((row.step, value))
    return {seed: points[seed] for seed in sorted(points)}


def trained_as(run: RunData, arm: str) -> str:
    """The arm's name in metrics.jsonl: a single-task arm on a stage's budget *is* the probe."""
    if is_single(arm) and not any(row.arm == arm and row.kind == "train" for row in run.records):
        return PROBE + task_of(arm)
    return arm


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def over_steps(run: RunData, arm: str, metric: str) -> float:
    """The mean of a training metric over steps and seeds; NaN without any."""
    return mean(value for points in by_seed(run, arm, metric).values() for _, value in points)


def average(curves: Mapping[int, Points]) -> Points:
    """The mean over seeds at each step that any seed has."""
    values: dict[float, list[float]] = defaultdict(list)
    for points in curves.values():
        for step, value in points:
            values[step].append(value)
    return [(step, mean(values[step])) for step in sorted(values)]


def thin(points: Points) -> Points:
    """At most MAX_POINTS points, by averaging neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    chunks = [points[at : at + size] for at in range(0, len(points), size)]
    return [(mean(step for step, _ in chunk), mean(value for _, value in chunk)) for chunk in chunks]


def smooth(points: Points, half: int = 2) -> Points:
    """A centred moving mean over 2 * half + 1 points. At the ends it takes what there is on the inner side:

    a single last step must not look like a trend."""
    smoothed = []
    for at, (step, _) in enumerate(points):
        smoothed.append((step, mean(value for _, value in points[max(0, at - half) : at + half + 1])))
    return smoothed


def stage_spans(run: RunData) -> dict[int, tuple[Span, ...]]:
    """The stages of each seed's curriculum as they were trained."""
    spans_of_seed: dict[int, list[Span]] = defaultdict(list)
    for row in run.records:
        if row.arm != "curriculum" or row.kind != "train" or row.stage is None:
            continue
        spans = spans_of_seed[row.seed]
        if spans and spans[-1].task == row.stage:
            spans[-1] = Span(row.stage, spans[-1].first, row.step)
        else:
            spans.append(Span(row.stage, row.step, row.step))
    return {seed: tuple(spans_of_seed[seed]) for seed in sorted(spans_of_seed)}


def stage_ends(run: RunData, metric: str, task: str) -> dict[int, Points]:
    """Accuracy or entropy of a task on validation at the end of each curriculum stage.

    From metrics.jsonl, else from the stages of result.json."""
    logged = by_seed(run, "curriculum", f"{metric}/{task}", "validation")
    if logged:
        return logged
    ends_of_seed: dict[int, Points] = {}
    spans = stage_spans(run)
    for arm in run.result.arms.get("curriculum", []):
        values = [
            stage.entropy.get(task, math.nan) if metric == "entropy" else stage.validation[task].mean
            for stage in arm.stages
            if metric == "entropy" or task in stage.validation
        ]
        ends = [span.last for span in spans.get(arm.seed, ())]
        if len(ends) == len(values):
            ends_of_seed[arm.seed] = [
                (end, value) for end, value in zip(ends, values, strict=True) if math.isfinite(value)
            ]
    return {seed: points for seed, points in ends_of_seed.items() if points}


def before_training(run: RunData, metric: str) -> float:
    """A metric of the starting model on validation, over seeds; NaN where it was not logged."""
    return mean(value for points in by_seed(run, "start", metric, "validation").values() for _, value in points)
