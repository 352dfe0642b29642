"""Tests of A1 on worlds in which it is known to hold or to fail."""

import numpy as np
import pytest

from omni_thinker.rl.evaluate import estimate
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.assumptions import ProbeScores, Scores, check_assumptions
from omni_thinker.transfer.metrics import StageSeen

TASKS = ("code", "math", "qa", "writing")
PROBLEMS, ANSWERS = 48, 2


def evaluated(rng: np.random.Generator, chances_K_P: np.ndarray) -> Scores:
    table = rng.binomial(ANSWERS, np.clip(chances_K_P, 0, 1)) / ANSWERS
    return {task: {str(p): float(v) for p, v in enumerate(row)} for task, row in zip(TASKS, table, strict=True)}


def stage(task: str, scores: Scores) -> StageSeen:
    return StageSeen(task, {j: estimate(list(row.values())) for j, row in scores.items()}, scores)


def p_values(rng: np.random.Generator, miss: float, *, paired: bool = True) -> list[float]:
    """p of A1 for three seeds. Every stage after the first misses what A1 says of other tasks by `miss`, up or down."""
    difficulty_K_P = 0.35 + rng.normal(0, 0.2, (4, PROBLEMS))
    found = []
    for _ in range(3):
        effect_K_K = rng.normal(0, 0.02, (4, 4)) + 0.08 * np.eye(4)
        start = evaluated(rng, difficulty_K_P)
        after = {t: evaluated(rng, difficulty_K_P + effect_K_K[i][:, None]) for i, t in enumerate(TASKS)}
        cells = {t: {j: estimate(list(row.values())) for j, row in scores.items()} for t, scores in after.items()}
        matrix = TransferMatrix(TASKS, {j: estimate(list(row.values())) for j, row in start.items()}, cells)
        order = rng.permutation(4)
        runs = []
        for way in (order, order[::-1]):
            chances_K_P, run = difficulty_K_P, []
            for place, i in enumerate(way):
                others = (np.arange(4) != i)[:, None] & (place > 0)
                chances_K_P = chances_K_P + effect_K_K[i][:, None] + others * miss * rng.choice([-1, 1], (4, 1))
                run.append(stage(TASKS[i], evaluated(rng, chances_K_P)))
            runs.append(run)
        first, _ = check_assumptions(matrix, runs, probes=ProbeScores(start, after) if paired else None)
        assert first.p is not None
        assert (first.power is not None) == paired
        found.append(first.p)
    return found


def test_paired_test_of_a1_errs_as_often_as_it_promises() -> None:
    rng = np.random.default_rng(0)
    found = np.array([p_values(rng, 0.0) for _ in range(100)]).ravel()
    assert np.mean(found < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5
    assert 0.35 < np.median(found) < 0.65, "p is uniform where A1 holds"


def test_misses_of_9_points_are_seen_in_most_studies() -> None:
    rng = np.random.default_rng(1)
    paired = np.array([p_values(rng, 0.09) for _ in range(40)])
    assert np.mean(paired < 0.05) > 0.5
    rng = np.random.default_rng(1)
    unpaired = np.array([p_values(rng, 0.09, paired=False) for _ in range(40)])
    assert np.mean(unpaired < 0.05) < np.mean(paired < 0.05)


def test_power_is_about_what_studies_show() -> None:
    rng = np.random.default_rng(2)
    difficulty_K_P = 0.35 + rng.normal(0, 0.2, (4, PROBLEMS))
    scores = [evaluated(rng, difficulty_K_P) for _ in range(12)]
    after = dict(zip(TASKS, scores[1:5], strict=True))
    matrix = TransferMatrix(
        TASKS,
        {j: estimate(list(row.values())) for j, row in scores[0].items()},
        {t: {j: estimate(list(row.values())) for j, row in s.items()} for t, s in after.items()},
    )
    run = [stage(task, scores[5 + n]) for n, task in enumerate(TASKS)]
    first, _ = check_assumptions(matrix, [run], probes=ProbeScores(scores[0], after))
    assert first.power == pytest.approx(0.5, abs=0.45)
    assert f"misses of 9 points are seen in {first.power:.0%}" in first.words
