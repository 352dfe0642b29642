"""Curves over steps, from the lines of metrics.jsonl."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from omni_thinker.arms import PROBE, is_single, task_of
from omni_thinker.runs.metrics_log import Curve
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


def by_seed(run: RunData, arm: str, metric: str, kind: str = "train") -> dict[int, Curve]:
    """The finite values of a metric for each seed, in order of steps."""
    return run.records.curves(arm, metric, kind)


def trained_as(run: RunData, arm: str) -> str:
    """The arm's name in metrics.jsonl: a single-task arm on a stage's budget *is* the probe."""
    return PROBE + task_of(arm) if is_single(arm) and not run.records.has(arm, "train") else arm


def mean(values: Iterable[float]) -> float:
    """The mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def over_steps(run: RunData, arm: str, metric: str) -> float:
    """The mean of a training metric over steps and seeds; NaN without any."""
    return mean(_values(by_seed(run, arm, metric)))


def _values(curves: Mapping[int, Curve]) -> list[float]:
    return [value for curve in curves.values() for value in curve[:, 1].tolist()]


def average(curves: Mapping[int, Curve | Points]) -> Points:
    """The mean over seeds at each step that any seed has."""
    if not any(map(len, curves.values())):
        return []
    points = np.concatenate([np.asarray(curve, dtype=float).reshape(-1, 2) for curve in curves.values()])
    steps, which = np.unique(points[:, 0], return_inverse=True)
    means = np.bincount(which, points[:, 1]) / np.bincount(which)
    return list(zip(steps.tolist(), means.tolist(), strict=True))


def thin(points: Points | Curve) -> Points:
    """At most MAX_POINTS points, by averaging neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    rows = points if isinstance(points, list) else [(step, value) for step, value in points.tolist()]
    if size <= 1:
        return rows
    chunks = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [(math.fsum(s) / len(s), math.fsum(v) / len(v)) for s, v in (zip(*chunk, strict=True) for chunk in chunks)]


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
    for seed, stages in run.records.stages("curriculum", "train").items():
        spans = spans_of_seed[seed]
        for stage, step in stages:
            if spans and spans[-1].task == stage:
                spans[-1] = Span(stage, spans[-1].first, step)
            else:
                spans.append(Span(stage, step, step))
    return {seed: tuple(spans_of_seed[seed]) for seed in sorted(spans_of_seed)}


def stage_ends(run: RunData, metric: str, task: str) -> dict[int, Curve]:
    """Accuracy or entropy of a task on validation at the end of each curriculum stage.

    From metrics.jsonl, else from the stages of result.json."""
    logged = by_seed(run, "curriculum", f"{metric}/{task}", "validation")
    if logged:
        return logged
    ends_of_seed: dict[int, Curve] = {}
    spans = stage_spans(run)
    for arm in run.result.arms.get("curriculum", []):
        values = [
            stage.entropy.get(task, math.nan) if metric == "entropy" else stage.validation[task].mean
            for stage in arm.stages
            if metric == "entropy" or task in stage.validation
        ]
        ends = [span.last for span in spans.get(arm.seed, ())]
        if len(ends) == len(values):
            curve = np.array([ends, values], dtype=float).T
            ends_of_seed[arm.seed] = curve[np.isfinite(curve[:, 1])]
    return {seed: curve for seed, curve in ends_of_seed.items() if len(curve)}


def before_training(run: RunData, metric: str) -> float:
    """A metric of the starting model on validation, over seeds; NaN where it was not logged."""
    return mean(_values(by_seed(run, "start", metric, "validation")))
