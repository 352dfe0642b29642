"""Intervals of forecasts cover what they promise on fresh problems, and too much on those that made the matrix."""

from __future__ import annotations

import numpy as np
import pytest

from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import Array, evenly, gain_share, in_order, measured
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.probe import extrapolate
from simulated_learners import WORLDS, World

WORLDS_DRAWN, VALIDATION, TEST, SAMPLES, LEVEL = 80, 48, 128, 2, 0.8


def row(world: World, accuracy_K: Array, hardness_K_P: Array, rng: np.random.Generator) -> dict[str, Estimate]:
    """An evaluation of a policy with these mean accuracies on problems of unlike hardness (log-odds, around 0)."""
    # A mean over problems is flatter than one problem's curve; the factor undoes that (logistic-normal integral).
    skill_K = np.log(accuracy_K / (1 - accuracy_K)) * np.sqrt(1 + 0.345 * hardness_K_P.var())
    scores_K_P = rng.binomial(SAMPLES, 1 / (1 + np.exp(hardness_K_P - skill_K[:, None]))) / SAMPLES
    return {
        task: Estimate(float(scores.mean()), len(scores), float(scores.std(ddof=1) / np.sqrt(len(scores))))
        for task, scores in zip(world.tasks, scores_K_P, strict=True)
    }


def coverage(passes: float, spread: float) -> tuple[float, float]:
    """Shares of intervals that hold what a run shows on the validation problems, and on the test problems."""
    inside: tuple[list[bool], list[bool]] = [], []
    for seed in range(WORLDS_DRAWN):
        rng = np.random.default_rng(seed)
        world = World.drawn(WORLDS[seed % len(WORLDS)], rng)
        hardness = [rng.normal(0, spread, (len(world.tasks), count)) for count in (VALIDATION, TEST)]
        start_K, whole_K_K = world.start_K, [world.single(k) for k in range(len(world.tasks))]
        probed = [start_K + gain_share(passes) * (after_K - start_K) for after_K in whole_K_K]
        rows = [world.with_luck(1 / (1 + np.exp(-after_K)), rng) for after_K in probed]
        own = TransferMatrix(
            world.tasks,
            row(world, 1 / (1 + np.exp(-start_K)), hardness[0], rng),
            {i: row(world, after_K, hardness[0], rng) for i, after_K in zip(world.tasks, rows, strict=True)},
        )
        predict = Hierarchical(extrapolate(own, dict.fromkeys(world.tasks, passes)), 300, seed)
        order = [int(k) for k in rng.permutation(len(world.tasks))]
        for plan, truth in (
            (in_order([world.tasks[k] for k in order]), world.sequence(order)),
            (evenly(world.tasks), world.joint()),
        ):
            reached = world.with_luck(truth, rng)
            edges = (1 - LEVEL) / 2, (1 + LEVEL) / 2
            low, high = np.quantile(measured(predict, predict.by_column(plan), seed), edges, axis=1)
            for split, found in zip(hardness, inside, strict=True):
                shown = np.array([estimate.mean for estimate in row(world, reached, split, rng).values()])
                found += list((low <= shown) & (shown <= high))
    return float(np.mean(inside[0])), float(np.mean(inside[1]))


@pytest.mark.parametrize("passes", [1.0, 0.5, 0.2])
def test_intervals_cover_what_they_promise_on_the_test_split(passes: float) -> None:
    assert 0.74 <= coverage(passes, 1.0)[1] <= 0.88


def test_intervals_cover_more_on_the_problems_that_made_the_matrix() -> None:
    validation, test = coverage(1.0, 2.0)
    assert validation > test + 0.02
    assert validation > LEVEL + 0.03
