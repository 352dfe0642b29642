"""The Scheduler protocol: which task next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from omni_thinker.types import TaskName


class Scheduler(Protocol):
    """A pure function of seed, step and saved state."""

    def quotas(self, step: int) -> Mapping[TaskName, int]:
        """How many problems of each task step `step` trains; exact counts, tasks with 0 left out."""
        ...

    def stage(self, step: int) -> TaskName | None:
        """The task whose stage this step belongs to, or None where tasks are mixed."""
        ...

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Learn from what a step gave (`name/<task>` metrics)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """For schedulers that follow a fixed plan."""

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""
