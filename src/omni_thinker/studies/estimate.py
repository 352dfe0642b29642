"""What lies ahead of a study: how much work, and how small a difference it will be able to see."""

from __future__ import annotations

from omni_thinker.arms import SHARED, STAGED, rivals
from omni_thinker.compare.intervals import MIN_PROBLEMS, expected_detectable
from omni_thinker.recipe import Recipe, scheduled_arms
from omni_thinker.studies.probing import charged_steps, probe_work, single_tasks
from omni_thinker.studies.scheduled import stages_of
from omni_thinker.studies.setup import Bench


def smallest_difference(bench: Bench) -> float | None:
    """Between the macro averages of an arm and joint training, on the test split, that the study is likely to see
    (`expected_detectable`); None where it compares nothing with joint training."""
    study = bench.recipe.study
    names = [*(SHARED & set(study.arms)), *({"merge"} & set(study.arms)), *scheduled_arms(study)]
    against = rivals(names)
    problems = [len(own) for own in bench.pools["test"].values()]
    if "joint" not in names or not against or min(problems) < MIN_PROBLEMS:
        return None
    samples = bench.recipe.evaluation.samples
    return expected_detectable(problems, len(study.seeds), len(names), samples, study.confidence, rivals=len(against))


def power_words(bench: Bench) -> str:
    """What `smallest_difference` says, in words; empty where it says nothing."""
    sees, count = smallest_difference(bench), len(bench.recipe.study.seeds)
    if sees is None:
        return ""
    return (
        f"with {count} seed{'s' if count > 1 else ''} and these test problems, this study detects a "
        f"{100 * sees:.1f}-point difference from joint training with 90 % probability, if noise is as usual"
    )


def expected_work(recipe: Recipe) -> tuple[dict[str, int], dict[str, float]]:
    """Units of work by kind, and rough seconds of each until they have been measured."""
    study, tasks, seeds = recipe.study, len(recipe.tasks), len(recipe.study.seeds)
    trained = {*(SHARED & set(study.arms)), *scheduled_arms(study)}
    probe_steps, probe_evaluations = probe_work(recipe)
    singles = len(single_tasks(recipe))
    steps = study.steps * len(trained) + probe_steps
    if "charged" in trained:
        steps += charged_steps(recipe) - study.steps
    arms = 1 + len(trained) + ("merge" in study.arms) + singles
    validations = 1 + len(trained) + probe_evaluations
    validations += sum(max(0, stages_of(spec) - 1) for spec in scheduled_arms(study).values())
    validations += (tasks - 1) * len(STAGED & set(study.arms)) + ("merge" in study.arms)
    expected = {
        "warmup": recipe.warmup.steps,
        "check": 1 + recipe.warmup.steps // recipe.warmup.check_every,
        "step": steps,
        "validation": validations,
        "test": arms,
    }
    prior = {"warmup": 4.0, "check": 8.0, "step": 5.0, "validation": 15.0, "test": 30.0}
    return {kind: count * seeds for kind, count in expected.items()}, prior
