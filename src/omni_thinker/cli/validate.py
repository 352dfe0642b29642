"""Every row of a recipe's tasks against its own reward."""

import asyncio

from omni_thinker.recipe import Recipe
from omni_thinker.rewards.validate import validate
from omni_thinker.studies.setup import prepare
from omni_thinker.tasks.refused import Refusals
from omni_thinker.types import SPLITS


def validate_tasks(recipe: Recipe) -> tuple[dict[str, list[dict[str, str]]], dict[str, Refusals]]:
    """task -> rows whose gold answer doesn't score 1, or whose wrong one does, and task -> rows that were left out.

    Judged tasks are checked by their gates. Raises UserError for what `prepare` refuses."""
    setup = prepare(recipe, with_judge=False)
    failures: dict[str, list[dict[str, str]]] = {}
    for name, task in setup.tasks.items():
        problems = [problem for split in SPLITS for problem in task.problems(split)]
        failed = asyncio.run(validate(problems, setup.gate_rewards[name]))
        failures[name] = [{"problem": failure.problem, "reason": failure.reason} for failure in failed]
    return failures, {name: refused for name, refused in setup.refused.items() if refused.count}
