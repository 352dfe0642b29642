"""The Environment protocol, and which one a task has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from omni_thinker.errors import UserError
from omni_thinker.plugins import Registry
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.base import Task
from omni_thinker.types import Problem, TaskName

ENVIRONMENTS = Registry(
    "environment", {"program_errors": "omni_thinker.tasks.environments.program_errors:ProgramErrors"}
)
"""What `tasks.NAME.environment` may name, besides `python:MODULE:CLASS`."""


@runtime_checkable
class Environment(Protocol):
    """Speaks to answers: a tool's result, a critic's words, a checker's message. Made as CLASS(name, spec)."""

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        """What is said to the last of `answers`, all that the model has said to `problem`; None ends the conversation.

        `memory` belongs to this conversation: empty at its beginning, kept until its end, and then the reward's to read
        (`Sample.dialogue`). The same answers must get the same reply in every process. Many conversations wait in one
        event loop. What it raises makes the sample's score an error, never a 0."""


@runtime_checkable
class HasEnvironment(Protocol):
    """A task that brings its own environment. `turns`: most answers where the recipe doesn't say; 1 for none."""

    turns: int

    @property
    def environment(self) -> Environment: ...


@dataclass(frozen=True, slots=True)
class Turns:
    """How a task talks: at most `most` answers (> 1), between them messages of at most `message_tokens` tokens."""

    environment: Environment
    most: int
    message_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of all messages of a conversation, at most."""
        return (self.most - 1) * self.message_tokens


def make_turns(tasks: Mapping[TaskName, Task], specs: Mapping[TaskName, TaskSpec]) -> dict[TaskName, Turns]:
    """The turns of the tasks that have any. Raises UserError where a task is to have some and knows no environment."""
    turns = {}
    for name, task in tasks.items():
        if (made := _turns_of(name, task, specs[name])) is not None:
            turns[name] = made
    return turns


def _turns_of(name: TaskName, task: Task, spec: TaskSpec) -> Turns | None:
    brought: object = task
    default = brought.turns if isinstance(brought, HasEnvironment) else 1
    most = spec.turns or (default if not spec.environment else max(2, default))
    if most == 1:
        if spec.environment:
            raise UserError(
                "speaks to nobody with turns = 1; raise turns or remove it", key=f"tasks.{name}.environment"
            )
        return None
    if spec.environment:
        return Turns(_make(name, spec), most, spec.message_tokens)
    if not isinstance(brought, HasEnvironment):
        known = ", ".join((*ENVIRONMENTS.names, "python:MODULE:CLASS"))
        why = f"the source {spec.source!r} has no environment that speaks; set environment to one: {known}"
        raise UserError(why, key=f"tasks.{name}.turns")
    return Turns(brought.environment, most, spec.message_tokens)


def _make(name: TaskName, spec: TaskSpec) -> Environment:
    key = f"tasks.{name}.environment"
    environment_class = ENVIRONMENTS.find(spec.environment, key)
    try:
        environment = environment_class(name, spec)
    except TypeError as exc:
        raise UserError(f"{spec.environment}(name, spec) can't be made: {exc}", key=key) from None
    if not isinstance(environment, Environment):
        raise UserError(f"{spec.environment} isn't an environment: it lacks reply", key=key)
    return environment
