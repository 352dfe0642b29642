"""Intervals over seeds and problems, against worlds in which nothing differs: how often is something shown?"""

from __future__ import annotations

import numpy as np
import pytest

from omni_thinker.compare.intervals import over_seeds_and_problems

STUDIES = 1500
TASKS, PROBLEMS = 4, 48


def false_shown(seeds: int, spread: tuple[float, float], confidence: float) -> float:
    """Share of studies in which two arms of equal skill are shown to differ. spread: of each arm from seed to seed."""
    rng = np.random.default_rng(round(1e4 * (seeds + spread[0] + confidence)))
    shown = 0
    for _ in range(STUDIES):
        of_seed = rng.normal(0, spread[0], seeds) - rng.normal(0, spread[1], seeds)
        of_problem = rng.normal(0, 0.14, (TASKS, 1, PROBLEMS))
        answers = rng.normal(0, 0.49, (TASKS, seeds, PROBLEMS))
        scores = of_seed[None, :, None] + of_problem + answers
        bounds = over_seeds_and_problems(float(scores.mean()), list(scores), confidence)
        shown += bounds.low > 0 or bounds.high < 0
    return shown / STUDIES


@pytest.mark.parametrize("confidence", [0.95, 0.99])
@pytest.mark.parametrize("spread", [(0.0, 0.0), (0.013, 0.013), (0.04, 0.01), (0.1, 0.01)])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_false_differences_are_as_rare_as_promised(seeds: int, spread: tuple[float, float], confidence: float) -> None:
    promised = 1 - confidence
    error = (promised * confidence / STUDIES) ** 0.5
    assert false_shown(seeds, spread, confidence) <= promised + 3 * error
