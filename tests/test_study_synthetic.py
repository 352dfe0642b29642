"""Comparisons of arms, on synthetic learners for which the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from omni_thinker.arms import rivals
from omni_thinker.compare.intervals import expected_detectable
from omni_thinker.compare.paired import compare_arms
from omni_thinker.compare.verdict import verdict
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.sec import SecConfig
from omni_thinker.schedulers.stages import Stages
from omni_thinker.schedulers.worst_task import WorstTaskConfig
from scripted import setting
from synthetic import Make, World, run_study, sequence, true_scores

TASKS = ("code", "math", "qa", "writing")
STEPS, PER_STEP, SEEDS, PROBLEMS = 24, 8, 10, 128
ARMS: Mapping[str, Make] = {
    "joint": lambda _: Mixture(dict.fromkeys(TASKS, 1.0), PER_STEP),
    "forward": lambda _: Stages(sequence(TASKS, STEPS), PER_STEP),
    "backward": lambda _: Stages(sequence(TASKS[::-1], STEPS), PER_STEP),
    "sec": lambda _: SecConfig().build(setting(TASKS, PER_STEP)),
    "worst": lambda _: WorstTaskConfig().build(setting(TASKS, PER_STEP)),
    "two": lambda _: Mixture({"code": 1.0, "math": 1.0}, PER_STEP),
}


def world(decay: float = 0.0, own: float = 0.03, other: float = 0.0, luck: float = 0.02) -> World:
    """`other`: what the earlier tasks do to later ones; later ones do the opposite to earlier ones."""
    effect = np.triu(np.full((4, 4), other), 1) - np.tril(np.full((4, 4), other), -1) + own * np.eye(4)
    start = np.array([-0.8, -0.4, -0.6, -0.2])
    return World(TASKS, start, effect, decay=decay, luck=luck)


WORLDS = {
    "saturate": world(own=0.06),
    "decay": world(own=0.05, decay=0.05),
    "help and hurt": world(own=0.03, other=0.012),
    "all of it": world(own=0.05, other=0.01, decay=0.03),
}


@pytest.mark.parametrize("name", WORLDS)
def test_detectable_differences_are_shown_with_the_right_sign(name: str) -> None:
    """At least 90 % of pairs that differ by more than the detectable difference are shown, none with the wrong sign."""
    truth = true_scores(WORLDS[name], ARMS, STEPS)
    rng = np.random.default_rng(2)
    seeable = shown = turned = in_order = 0
    for _ in range(40):
        arms = run_study(WORLDS[name], ARMS, rng, SEEDS, STEPS, PROBLEMS)
        for c in compare_arms(arms, resamples=50, confidence=0.95):
            gap = truth[c.a] - truth[c.b]
            if c.task == "macro" and c.detectable is not None and abs(gap) > c.detectable:
                seeable += 1
                shown += c.shown and c.difference * gap > 0
                turned += c.shown and c.difference * gap < 0
                in_order += c.difference * gap > 0
    assert seeable >= 80, "a check that can fail"
    assert shown >= 0.9 * seeable
    assert in_order >= 0.99 * seeable
    assert turned == 0


@pytest.mark.parametrize(("seeds", "luck"), [(1, 0.0), (2, 0.02), (3, 0.02), (3, 0.08), (10, 0.02)])
def test_equal_arms_are_declared_different_in_at_most_5_percent(seeds: int, luck: float) -> None:
    """Effects that add up and stay: whatever the mix, every arm ends at the same on average. Of each family of rows at
    most one study in twenty shows any difference."""
    flat = World(TASKS, np.full(4, -0.4), np.full((4, 4), 0.006), luck=luck, saturates=False)
    truth = true_scores(replace(flat, luck=0.0), ARMS, STEPS, runs=2)
    assert np.ptp(list(truth.values())) < 1e-9
    rng = np.random.default_rng(3)
    declared, studies = Counter[str](), 100
    for _ in range(studies):
        found = compare_arms(run_study(flat, ARMS, rng, seeds, STEPS, PROBLEMS), resamples=400, confidence=0.95)
        declared["verdict"] += "Shown to" in verdict(found, 0.95, seeds)
        declared.update({c.family for c in found if c.shown})
    assert max(declared.values(), default=0) <= (0.05 + 2 * (0.05 * 0.95 / studies) ** 0.5) * studies


def test_expected_detectable_is_within_a_factor_2_of_the_measured() -> None:
    """Compares the detectable difference expected from the study's size with the one measured on its data."""
    rng = np.random.default_rng(4)
    own = world(luck=0.03)
    against = len(rivals(list(ARMS)))
    for seeds, problems in ((3, 128), (5, 128), (10, 64)):
        arms = run_study(own, ARMS, rng, seeds, STEPS, problems)
        found = compare_arms(arms, resamples=50, confidence=0.95)
        after = np.mean([c.detectable for c in found if c.task == "macro" and "joint" in (c.a, c.b) if c.detectable])
        before = expected_detectable([problems] * 4, seeds, 2, 0.95, rivals=against)
        assert 0.5 < before / after < 2.0, (seeds, problems, before, after)
    assert expected_detectable([128] * 4, 2, 2, 0.95, rivals=against) == 1.0, "two seeds say nothing of five rivals"
    sizes = [expected_detectable([n] * 4, s, 2, 0.95, rivals=5) for n, s in ((64, 3), (128, 3), (128, 5), (128, 6))]
    assert sizes == sorted(sizes, reverse=True)
    assert all(a != b for a, b in combinations(sizes, 2))
