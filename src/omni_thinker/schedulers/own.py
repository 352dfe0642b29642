"""A scheduler of the user's own, by `python:MODULE:CLASS`."""

import json
from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal

from pydantic import Field, field_validator

from omni_thinker.errors import UserError
from omni_thinker.plugins import PREFIX, load_class
from omni_thinker.schedulers.base import Config, InParts, Scheduler, Setting
from omni_thinker.types import TaskName

_METHODS = ("quotas", "stage", "observe", "state_dict", "load_state_dict")


class OwnConfig(Config):
    """CLASS(tasks, problems_per_step, **options), or a `Config` whose keys are the options."""

    kind: Literal["python"] = "python"
    source: str
    """`python:MODULE:CLASS`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("must hold text, finite numbers, true, false, lists and tables only") from None
        return options

    def build(self, setting: Setting) -> Scheduler:
        """Raises UserError where it can't be made, and where it asks for what no step can train."""
        if not self.source.startswith(PREFIX):
            raise UserError("must be python:MODULE:CLASS", key=f"{setting.key}.source")
        made = load_class(self.source, setting.key)
        if lacking := sorted(getattr(made, "__abstractmethods__", ())):
            raise UserError(f"the class {made.__name__} lacks the method {', '.join(lacking)}", key=setting.key)
        try:
            if issubclass(made, Config):
                scheduler: Any = made.model_validate({"kind": "python", **self.options}).build(setting)
            else:
                scheduler = made(setting.tasks, setting.problems_per_step, **self.options)
        except (Exception, SystemExit) as exc:
            raise UserError(f"{made.__name__} can't be made: {_why(made, self.options, exc)}", key=setting.key) from exc
        if lacking := [method for method in _METHODS if not callable(getattr(scheduler, method, None))]:
            raise UserError(f"{made.__name__} isn't a Scheduler: it lacks {', '.join(lacking)}", key=setting.key)
        guarded = (_GuardedParts if isinstance(scheduler, InParts) else _Guarded)(scheduler, setting)
        guarded.quotas(0)
        guarded.state_dict()
        return guarded


def _why(made: type[Any], options: Mapping[str, Any], exc: BaseException) -> str:
    """What went wrong, and if it is an option, which there are."""
    if issubclass(made, Config) or made.__init__ is object.__init__:
        return (
            str(exc) if issubclass(made, Config) else "its constructor must take (tasks, problems_per_step, **options)"
        )
    known = list(signature(made).parameters)[2:]
    unknown = [name for name in options if name not in known]
    if isinstance(exc, TypeError) and unknown:
        return f"no option {unknown[0]!r}; it takes {', '.join(known) or 'none'}"
    return f"{type(exc).__name__}: {exc}"


class _Guarded:
    """Calls a scheduler that isn't ours. Raises UserError for what it raises, and for counts that no step can train."""

    def __init__(self, scheduler: Scheduler, setting: Setting) -> None:
        self._scheduler, self._setting = scheduler, setting

    def quotas(self, step: int) -> dict[TaskName, int]:
        counts = self._call("quotas", step)
        tasks, per_step = self._setting.tasks, self._setting.problems_per_step
        sound = isinstance(counts, Mapping) and set(counts) <= set(tasks)
        if not sound or any(type(n) is not int or n < 1 for n in counts.values()) or sum(counts.values()) != per_step:
            expected = f"whole numbers from 1 that add up to {per_step}, for some of {', '.join(tasks)}"
            raise self._refusal(f"quotas({step}) returned {counts!r:.200}, not {expected}")
        return dict(counts)

    def stage(self, step: int) -> TaskName | None:
        stage: TaskName | None = self._call("stage", step)
        return stage

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call("observe", step, metrics)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._call("state_dict")
        try:
            same = json.loads(json.dumps(state, allow_nan=False)) == state
        except (TypeError, ValueError, RecursionError) as exc:
            raise self._refusal(f"its state must be plain JSON: {exc}") from None
        if not same:
            raise self._refusal("its state must be plain JSON: keys that are text, lists in place of tuples")
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict", state)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._scheduler, method)(*arguments)
        except UserError:
            raise
        except (Exception, SystemExit) as exc:
            raise self._refusal(f"{method} failed: {type(exc).__name__}: {exc}") from exc

    def _refusal(self, words: str) -> UserError:
        return UserError(f"{type(self._scheduler).__name__}: {words}", key=self._setting.key)


class _GuardedParts(_Guarded):
    """One whose plan has parts."""

    def pace(self, step: int, place: float) -> None:
        self._call("pace", step, place)

    def is_last(self, step: int) -> bool:
        return bool(self._call("is_last", step))
