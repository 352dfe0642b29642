"""Arms that a scheduler makes: from its table in the recipe to the scheduler itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import exp, log

from omni_thinker.engine.task_gradients import watched_layers
from omni_thinker.errors import UserError
from omni_thinker.models.load import empty_model
from omni_thinker.plugins import load_class
from omni_thinker.recipe import Recipe, scheduled_arms
from omni_thinker.recipe.schedulers import First, Own, SchedulerSpec
from omni_thinker.recipe.schedulers import Pac as Pac_
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.dump import Dump
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.pac import Pac
from omni_thinker.schedulers.phases import Phases
from omni_thinker.schedulers.round_robin import RoundRobin
from omni_thinker.schedulers.sec import Sec
from omni_thinker.schedulers.stages import Stages
from omni_thinker.schedulers.tac import Tac
from omni_thinker.schedulers.tscl import Tscl
from omni_thinker.schedulers.worst_task import WorstTask
from omni_thinker.types import TaskName


def make_scheduler(
    recipe: Recipe, name: str, sizes: Mapping[TaskName, int], judged: Collection[TaskName], seed: int
) -> Scheduler:
    """The scheduler of the arm `name`. `sizes`: training problems of each task; `judged`: tasks that a judge scores.

    Raises UserError where the recipe's tasks leave it nothing to do.
    """
    spec, tasks, per_step = scheduled_arms(recipe.study)[name], list(recipe.tasks), recipe.rl.problems_per_step
    options = spec.model_dump(exclude={"kind", "update", "cold_start"})
    match spec.kind:
        case "uniform":
            return Mixture(dict.fromkeys(tasks, 1.0), per_step)
        case "proportional":
            logs = {task: log(sizes[task]) / spec.temperature for task in tasks}
            return Mixture({task: exp(own - max(logs.values())) for task, own in logs.items()}, per_step)
        case "round_robin":
            return RoundRobin(tasks, per_step)
        case "sec":
            return Sec(tasks, per_step, **options)
        case "dump":
            return Dump(tasks, per_step, **options)
        case "tscl":
            return Tscl(tasks, per_step, **options)
        case "pac":
            return Pac(tasks, per_step, seed=seed, **options, cold_start=_cold_start(recipe, name, spec))
        case "worst_task":
            return WorstTask(tasks, per_step, **options)
        case "tac":
            return Tac(tasks, per_step, **options)
        case "weighted":
            return Mixture(joint_weights(recipe), per_step)
        case "first":
            return _first(recipe, name, spec, judged)
        case "python":
            return _own(name, spec, tasks, per_step)
        case "sequence":
            return Stages(read_stages(spec.stages, recipe.study.steps), per_step)


def check_schedulers(recipe: Recipe, sizes: Mapping[TaskName, int], judged: Collection[TaskName]) -> None:
    """Make each once. Raises UserError for the first that can't be made, or that would only seem to be at work."""
    for name, spec in scheduled_arms(recipe.study).items():
        make_scheduler(recipe, name, sizes, judged, 0)
        if spec.kind == "tac" and not watched_layers(empty_model(recipe.model.name)):
            raise UserError(
                "looks at gradients of layers named down_proj, which this model doesn't have", key=f"study.arms.{name}"
            )


def _own(arm: str, spec: Own, tasks: list[TaskName], per_step: int) -> Scheduler:
    """A scheduler of the user's own. Raises UserError where it can't be made, or asks for what no step can train."""
    key = f"study.schedulers.{arm}"
    found = load_class(spec.source, key)
    try:
        scheduler: Scheduler = found(tasks, per_step, **spec.options)
    except TypeError as exc:
        raise UserError(
            f"{found.__name__}(tasks, problems_per_step, **options) can't be made: {exc}", key=key
        ) from None
    methods = ("quotas", "stage", "observe", "state_dict", "load_state_dict")
    if lacking := [method for method in methods if not callable(getattr(scheduler, method, None))]:
        raise UserError(f"{found.__name__} is no Scheduler: it lacks {', '.join(lacking)}", key=key)
    first = dict(scheduler.quotas(0))
    if not set(first) <= set(tasks) or sum(first.values()) != per_step or min(first.values()) < 1:
        wanted = f"whole numbers that add up to {per_step}, for some of {', '.join(tasks)}"
        raise UserError(f"{found.__name__}.quotas(0) is {first!r:.200}, not {wanted}", key=key)
    return scheduler


def joint_weights(recipe: Recipe) -> dict[TaskName, float]:
    """Of joint training, in proportion to which it mixes."""
    return {task: spec.weight for task, spec in recipe.tasks.items()}


def stages_of(spec: SchedulerSpec) -> int:
    """How many stages it has that are evaluated one by one."""
    return len(spec.stages) if spec.kind == "sequence" else 0


def _cold_start(recipe: Recipe, name: str, spec: Pac_) -> int:
    steps = recipe.study.steps
    if spec.cold_start is None:
        return min(50, steps // 4)
    if spec.cold_start >= steps:
        raise UserError(f"leaves nothing of {steps} steps", key=f"study.schedulers.{name}.cold_start")
    return spec.cold_start


def _first(recipe: Recipe, name: str, spec: First, judged: Collection[TaskName]) -> Phases:
    steps, weights = recipe.study.steps, joint_weights(recipe)
    chosen = spec.tasks or tuple(task for task in weights if task in judged)
    if not chosen:
        raise UserError("there is no task that a judge scores; name those that come first", key=f"study.arms.{name}")
    begin = max(1, min(steps - 1, round(spec.share * steps)))
    per_step = recipe.rl.problems_per_step
    own = Mixture({task: weights[task] for task in chosen}, per_step)
    return Phases([(own, begin), (Mixture(weights, per_step), steps - begin)])


def read_stages(stages: Sequence[str], steps: int) -> list[tuple[TaskName, int]]:
    """`task` or `task:length` as (task, steps): lengths in proportion, exactly `steps` in all (largest remainders)."""
    named = [(task, float(length or 1)) for task, _, length in (stage.partition(":") for stage in stages)]
    whole = sum(length for _, length in named)
    exact = [steps * length / whole for _, length in named]
    counts = [int(own) for own in exact]
    for place in sorted(range(len(named)), key=lambda i: counts[i] - exact[i])[: steps - sum(counts)]:
        counts[place] += 1
    return [(task, count) for (task, _), count in zip(named, counts, strict=True)]
