"""The table `[study]` of a recipe. Imports no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator

from omni_thinker.arms import ARMS, LORA, PROBE, RENAMED, SHARED, SINGLE
from omni_thinker.errors import UserError
from omni_thinker.recipe.models import LoraSpec
from omni_thinker.recipe.schedulers import PLAIN, SERIAL, SchedulerSpec, plain, read_scheduler
from omni_thinker.recipe.tasks import RESERVED, TASK_NAME
from omni_thinker.recipe.types import Count, Positive, PositiveFloat, Table

ProbeKind = Literal["full", "short", "lora", "gradient"]


class MergedSpec(Table):
    """An arm that merges the weights of other arms; it has no RL of its own."""

    arms: Annotated[tuple[str, ...], Field(min_length=1)]
    """Trained arms of the study; a single-task arm is `single:TASK`."""
    scale: PositiveFloat = 1.0
    """As `study.merge_scale`."""


class StudySpec(Table):
    """Arms at equal budget: every trained arm spends `steps` RL steps in all, or `tokens`."""

    steps: Positive = 48
    """RL steps of each trained arm. Where tokens are the budget, the parts that plans cut these into."""
    budget: Literal["steps", "tokens"] = "steps"
    """What all trained arms have the same of. Answers of some arms are longer, so the same steps take more tokens."""
    tokens: Count = 0
    """Tokens of each trained arm, sampled and trained, where these are the budget. No step begins once they are
    spent."""
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)] = (0,)
    """Each seed repeats the whole study."""
    arms: Annotated[tuple[str, ...], Field(min_length=1)] = ("start", "single", "curriculum", "joint", "merge")
    """Arms to compare: `start`, `single`, `curriculum`, `curriculum_net`, `reverse`, `joint`,
    `joint_planned`, `merge`, those of `schedulers`, and kinds of scheduler that need no settings."""
    schedulers: dict[str, SerializeAsAny[SchedulerSpec]] = Field(default_factory=dict)
    """Arms of one's own: a name, and the scheduler that says which task comes next."""
    merges: dict[str, MergedSpec] = Field(default_factory=dict)
    """Arms of one's own that merge others: a name, and which."""
    single_budget: Literal["full", "stage"] = "full"
    """`full`: a single-task arm trains as long as the others. `stage`: it is the probe (steps / tasks)."""
    probes: tuple[ProbeKind, ...] = ()
    """How transfer is measured; the first kind makes the matrix that is planned with, others are measured beside it.

    `full`: a whole stage on each task alone. `short`: the first steps of one, what a stage would show is extrapolated.
    `lora`: the same with low-rank adapters, which are kept; whole stages where the arm `merge` is made of them.
    `gradient`: no runs at all, a straight line along each task's policy gradient. Empty: `full` where the arms `single`
    or `merge` need whole stages anyway, else `short`."""
    probe_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.13
    """Short, LoRA and gradient probes of all tasks take at most this share of one arm's steps, each kind by itself and
    whatever else is compared; at least a step a task."""
    probe_lora: LoraSpec = LoraSpec()
    """Adapters of LoRA probes."""
    probe_lora_lr: PositiveFloat = 10.0
    """Learning rate of LoRA probes, in multiples of rl.lr: adapters want about ten times that of whole weights."""
    forecaster: Literal["hierarchical", "additive", "relative", "logit", "naive"] = "hierarchical"
    """What the plan is made with (docs/forecasting.md)."""
    strategy: Literal["exact", "back_greedy", "least_to_most_forgettable", "front_greedy", "reversed", "random"] = (
        "exact"
    )
    """How an order is chosen: the best forecast, or a rule to compare with."""
    objective: Literal["mean", "worst"] = "mean"
    """What the plan maximises: the mean of the tasks' accuracies, or the lowest."""
    order: tuple[str, ...] = ()
    """Fixes the curriculum's order, instead of planning it."""
    replan: bool = False
    """After each stage of the curriculum, plan the rest anew with what was seen (hierarchical forecaster)."""
    single_tasks: tuple[str, ...] = ()
    """Which tasks get a single-task arm; empty: all."""
    merge_scale: PositiveFloat = 1.0
    """Task arithmetic (arXiv 2212.04089): start + scale x sum of (expert - start)."""
    checkpoint_steps: Count = 0
    """Steps between two points that a killed study goes on from; 0: as few as keep their cost under 2 % of the time."""
    bootstrap: Annotated[Positive, Field(ge=50)] = 4000
    """Resamples of a study of one seed."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Coverage of the intervals of comparisons."""

    @field_validator("schedulers", mode="before")
    @classmethod
    def _read_schedulers(cls, tables: Any) -> Any:
        if not isinstance(tables, Mapping):
            return tables
        return {name: read_scheduler(table, f"study.schedulers.{name}") for name, table in tables.items()}


def scheduled_arms(study: StudySpec) -> dict[str, SchedulerSpec]:
    """Arms that a scheduler makes, in the order that they are named in."""
    return {
        name: study.schedulers[name] if name in study.schedulers else plain(name)
        for name in study.arms
        if name not in ARMS and name not in study.merges
    }


def check_budget(study: StudySpec) -> None:
    """Raises UserError where a budget of tokens has none, or where they are no budget."""
    if study.budget == "tokens" and study.tokens < study.steps:
        raise UserError(
            f"a budget of tokens needs as many as there are steps at least ({study.steps}); result.json of a study in "
            "steps says what its arms took: tokens_sampled + tokens_trained",
            key="study.tokens",
        )
    if study.budget == "steps" and study.tokens:
        raise UserError('counts where study.budget = "tokens"', key="study.tokens")


def check_arms(study: StudySpec, tasks: list[str]) -> None:
    """Raises UserError for arms that nothing makes, and schedulers of tasks that aren't there."""
    for name in (*study.schedulers, *study.merges):
        key = f"study.{'merges' if name in study.merges else 'schedulers'}.{name}"
        # Files of single-task arms and probes begin with these.
        taken = name in (*ARMS, *RENAMED, *RESERVED, "state", "warmup") or name.startswith(
            tuple(mark.replace(":", "-") for mark in (SINGLE, PROBE, LORA))
        )
        if taken or not TASK_NAME.fullmatch(name) or (name in study.schedulers and name in study.merges):
            raise UserError("can't be the name of an arm", key=key)
    if "joint_planned" in study.arms and (study.forecaster != "hierarchical" or len(tasks) < 2):
        raise UserError("'joint_planned' needs two tasks and study.forecaster = 'hierarchical'", key="study.arms")
    for name in study.arms:
        if name in RENAMED:
            raise UserError(f"the arm {name!r} is called {RENAMED[name]!r} now", key="study.arms")
        if name == "serial" and name not in study.schedulers:
            raise UserError(SERIAL, key="study.arms")
        own = (*ARMS, *study.schedulers, *study.merges, *PLAIN)
        if name not in own and not name.startswith("python:"):
            known = ", ".join(own)
            raise UserError(f"no arm {name!r:.80}; there are {known}, python:MODULE:CLASS", key="study.arms")
    files = [name.replace(":", "-") for name in study.arms]
    if twice := [name for name, file in zip(study.arms, files, strict=True) if files.count(file) > 1]:
        raise UserError(f"the files of {' and '.join(twice)} would have one name", key="study.arms")
    for name, spec in study.schedulers.items():
        spec.check(tasks, f"study.schedulers.{name}")
        if any(read >= study.steps for read in spec.reads) or len(set(spec.reads)) < len(spec.reads):
            raise UserError(
                f"are different numbers of steps below study.steps ({study.steps})",
                key=f"study.schedulers.{name}.reads",
            )
    for name, merged in study.merges.items():
        _check_merged(study, tasks, merged, f"study.merges.{name}.arms")


def _check_merged(study: StudySpec, tasks: list[str], merged: MergedSpec, key: str) -> None:
    """Raises UserError for arms that aren't trained whole in this study."""
    trained = [name for name in study.arms if name in scheduled_arms(study) or (name in SHARED)]
    if "single" in study.arms and study.single_budget == "full":
        trained += [SINGLE + task for task in study.single_tasks or tasks]
    if unknown := [name for name in merged.arms if name not in trained]:
        raise UserError(f"{unknown[0]!r:.80} isn't trained here; trained are {', '.join(trained)}", key=key)
    if len(set(merged.arms)) < len(merged.arms):
        raise UserError("names one of them twice", key=key)


def check_replan(study: StudySpec) -> None:
    """Raises UserError where there is nothing to plan anew, or nobody who would learn."""
    wrong = {
        "the arm 'curriculum'": "curriculum" not in study.arms,
        "an empty study.order": bool(study.order),
        "study.strategy = 'exact'": study.strategy != "exact",
        "study.forecaster = 'hierarchical', which learns": study.forecaster != "hierarchical",
    }
    if needed := [name for name, lacking in wrong.items() if lacking]:
        raise UserError(f"requires {needed[0]}", key="study.replan")
