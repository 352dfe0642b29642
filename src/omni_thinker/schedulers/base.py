"""The Scheduler protocol: which task next; and how a recipe's table becomes one."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omni_thinker.recipe.schedulers import SchedulerSpec
from omni_thinker.types import TaskName


class Scheduler(Protocol):
    """A pure function of seed, step and saved state."""

    def quotas(self, step: int) -> Mapping[TaskName, int]:
        """How many problems of each task step `step` trains; exact counts, tasks with 0 left out."""

    def stage(self, step: int) -> TaskName | None:
        """The task whose stage this step belongs to, or None where tasks are mixed."""

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Learn from what a step gave (`name/<task>` metrics)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """Base of schedulers that follow a fixed plan."""

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a scheduler may know of the arm that it steers.

    weights: joint training's, of every task in the recipe's order. sizes: training problems of each task. judged: tasks
    that a judge scores. steps: RL steps of the arm. seed: for what it draws. key: where a recipe asks for it."""

    weights: Mapping[TaskName, float]
    sizes: Mapping[TaskName, int]
    judged: Collection[TaskName]
    steps: int
    problems_per_step: int
    seed: int
    key: str

    @property
    def tasks(self) -> list[TaskName]:
        """All tasks, in the recipe's order."""
        return list(self.weights)


class Config(SchedulerSpec, ABC):
    """The keys of one kind of scheduler; `recipe.schedulers.KINDS` names each by its kind."""

    @abstractmethod
    def build(self, setting: Setting) -> Scheduler:
        """The scheduler. Raises UserError where the tasks leave it nothing to do."""
