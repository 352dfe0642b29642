"""What to expect of a study: rough times, and how small a difference it will be able to see."""

from omni_thinker.arms import SHARED, rivals
from omni_thinker.compare.intervals import MIN_PROBLEMS, expected_detectable
from omni_thinker.recipe import scheduled_arms
from omni_thinker.studies.setup import Setup

SECONDS = {"warmup": 4.0, "check": 8.0, "step": 5.0, "interim": 5.0, "validation": 15.0, "test": 30.0}
"""Rough seconds of each kind of work, until it has been measured."""


def smallest_difference(setup: Setup) -> float | None:
    """The smallest difference of macro accuracy between an arm and joint training that the study is likely to see
    (`expected_detectable`); None where it compares nothing with joint training."""
    study = setup.recipe.study
    names = [*(SHARED & set(study.arms)), *({"merge"} & set(study.arms)), *scheduled_arms(study)]
    against = rivals(names)
    problems = [len(pool) for pool in setup.pools["test"].values()]
    if "joint" not in names or not against or min(problems) < MIN_PROBLEMS:
        return None
    samples = setup.recipe.evaluation.samples
    return expected_detectable(problems, len(study.seeds), samples, study.confidence, rivals=len(against))


def power_words(setup: Setup) -> str:
    """What `smallest_difference` says, in words; empty where it says nothing."""
    sees, count = smallest_difference(setup), len(setup.recipe.study.seeds)
    if sees is None:
        return ""
    return (
        f"with {count} seed{'s' if count > 1 else ''} and these test problems, this study detects a "
        f"{100 * sees:.1f}-point difference from joint training with 90 % probability, if noise is as usual"
    )
