"""The Scheduler protocol: which task next; and how a recipe's table becomes one."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class InParts(Protocol):
    """A scheduler whose plan has parts of given lengths, as stages are."""

    def pace(self, step: int, place: float) -> None:
        """Step `step` begins at `place` of the plan. Called for every step in turn, from 1, where a budget of tokens
        says how far an arm is; a part then ends where its share of the budget is spent."""

    def is_last(self, step: int) -> bool:
        """Whether a step belongs to the last part."""


class Parts:
    """Lengths in steps of a plan, one after another."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self._begun: list[int] = []
        """Steps with which parts began, where a budget of tokens says so."""

    def at(self, step: int) -> tuple[int, int]:
        """The part that a step belongs to, and its number in it. Raises IndexError past the end."""
        if self._begun:
            part = bisect_right(self._begun, step) - 1
            return part, step - self._begun[part]
        for part, length in enumerate(self.lengths):
            if step < length:
                return part, step
            step -= length
        raise IndexError("past the end of the last part")

    def pace(self, step: int, place: float) -> None:
        """As `InParts`. Every part has a step at least."""
        self._begun = self._begun or [0]
        count = len(self._begun)
        if count < len(self.lengths) and place >= sum(self.lengths[:count]):
            self._begun.append(step)

    def is_last(self, step: int) -> bool:
        """As `InParts`."""
        return self.at(step)[0] == len(self.lengths) - 1


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
