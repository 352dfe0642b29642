"""Arms that a scheduler makes: from the recipe's table to the scheduler itself."""

from collections.abc import Collection, Mapping
from typing import cast

from omni_thinker.engine.task_gradients import watched_layers
from omni_thinker.errors import UserError
from omni_thinker.models.load import empty_model
from omni_thinker.recipe import Recipe, scheduled_arms
from omni_thinker.schedulers.base import Config, Scheduler, Setting
from omni_thinker.types import TaskName


def make_scheduler(
    recipe: Recipe, name: str, sizes: Mapping[TaskName, int], judged: Collection[TaskName], seed: int
) -> Scheduler:
    """The scheduler of the arm `name`. `sizes`: training problems of each task; `judged`: tasks that a judge scores.

    Raises UserError where the recipe's tasks leave it nothing to do."""
    study = recipe.study
    key = f"study.{'schedulers' if name in study.schedulers else 'arms'}.{name}"
    weights, per_step = joint_weights(recipe), recipe.rl.problems_per_step
    config = cast(Config, scheduled_arms(study)[name])
    return config.build(Setting(weights, sizes, judged, study.steps, per_step, seed, key))


def check_schedulers(recipe: Recipe, sizes: Mapping[TaskName, int], judged: Collection[TaskName]) -> None:
    """Make each once. Raises UserError for the first that can't be made, or that would only seem to be at work."""
    for name, spec in scheduled_arms(recipe.study).items():
        make_scheduler(recipe, name, sizes, judged, 0)
        if spec.kind == "tac" and not watched_layers(empty_model(recipe.model.name)):
            raise UserError(
                "needs gradients of layers named down_proj, which this model doesn't have", key=f"study.arms.{name}"
            )


def joint_weights(recipe: Recipe) -> dict[TaskName, float]:
    """Weights of joint training, in proportion to which it mixes."""
    return {task: spec.weight for task, spec in recipe.tasks.items()}
