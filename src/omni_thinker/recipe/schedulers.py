"""Schedulers as a recipe names them: which task next, in an arm of a study. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from omni_thinker.recipe.rl import Update
from omni_thinker.recipe.types import Count, Positive, PositiveFloat, Share, Table


class Scheduled(Table):
    """What all schedulers have."""

    update: Update | None = None
    """In place of `rl.update`, for this arm."""


class Uniform(Scheduled):
    """The same share for every task, whatever their weights."""

    kind: Literal["uniform"]


class Proportional(Scheduled):
    """Shares in proportion to each task's training problems to the power of 1 / `temperature` (arXiv 1907.05019): 1 is
    proportional, large ones are even."""

    kind: Literal["proportional"]
    temperature: PositiveFloat = 1.0


class RoundRobin(Scheduled):
    """One task a step, in turn."""

    kind: Literal["round_robin"]


class Sec(Scheduled):
    """A bandit on learnability (arXiv 2505.14970)."""

    kind: Literal["sec"]
    rate: Annotated[PositiveFloat, Field(le=1.0)] = 0.5
    temperature: PositiveFloat = 0.2


class Dump(Scheduled):
    """An upper confidence bound on learnability (arXiv 2504.09710)."""

    kind: Literal["dump"]
    window: Positive = 300
    bonus: PositiveFloat = 1.0
    temperature: PositiveFloat = 0.1


class Tscl(Scheduled):
    """The task whose reward changes fastest (arXiv 1707.00183)."""

    kind: Literal["tscl"]
    window: Annotated[Positive, Field(ge=2)] = 10
    explore: Share = 0.3


class Pac(Scheduled):
    """Thompson sampling of learnability that grows with progress."""

    kind: Literal["pac"]
    cold_start: Count | None = None
    """Steps of even shares; none: 50, or a quarter of the study's where that is less."""
    window: Annotated[Positive, Field(ge=2)] = 10
    drift: PositiveFloat = 0.01
    noise: PositiveFloat = 0.1


class WorstTask(Scheduled):
    """More for the tasks that gain least (MT-GRPO, arXiv 2602.05547)."""

    kind: Literal["worst_task"]
    rate: Annotated[PositiveFloat, Field(le=100.0)] = 2.0
    floor: Share = 0.1


class Tac(Scheduled):
    """Learnability times how far a task's gradient points where the others' do (arXiv 2606.25178)."""

    kind: Literal["tac"]
    rate: Annotated[PositiveFloat, Field(le=1.0)] = 0.5
    temperature: PositiveFloat = 0.1


class Weighted(Scheduled):
    """The shares of joint training, by the tasks' weights: joint training but for its `update`."""

    kind: Literal["weighted"]


class First(Scheduled):
    """Some tasks first, then all of them: math first, or what a judge scores first (arXiv 2512.13607)."""

    kind: Literal["first"]
    tasks: tuple[str, ...] = ()
    """Empty: those that a judge scores."""
    share: Annotated[float, Field(gt=0.0, lt=1.0, strict=True)] = 0.25
    """Of all steps."""


class Sequence(Scheduled):
    """Stages in the order that is written; a task may come again, which refreshes it (arXiv 2606.02398)."""

    kind: Literal["sequence"]
    stages: Annotated[tuple[str, ...], Field(min_length=1)]
    """`task` or `task:length`, in multiples of the others' length."""


class Own(Scheduled):
    """A scheduler of one's own: CLASS(tasks, problems_per_step, **options) of `python:MODULE:CLASS`."""

    kind: Literal["python"]
    source: Annotated[str, Field(pattern="^python:")]
    options: dict[str, Any] = Field(default_factory=dict)


SchedulerSpec = Annotated[
    Uniform | Proportional | RoundRobin | Sec | Dump | Tscl | Pac | WorstTask | Tac | Weighted | First | Sequence | Own,
    Field(discriminator="kind"),
]
PLAIN = ("uniform", "proportional", "round_robin", "sec", "dump", "tscl", "pac", "worst_task", "tac", "first")
"""Kinds that an arm may name directly, with all defaults."""


def plain(kind: str) -> SchedulerSpec:
    """That kind, or `python:MODULE:CLASS`, with all defaults."""
    table = {"kind": "python", "source": kind} if kind.startswith("python:") else {"kind": kind}
    spec: SchedulerSpec = TypeAdapter(SchedulerSpec).validate_python(table)
    return spec
