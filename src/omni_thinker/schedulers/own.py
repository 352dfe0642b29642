"""A scheduler of the user's own, by `python:MODULE:CLASS`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from omni_thinker.errors import UserError
from omni_thinker.plugins import load_class
from omni_thinker.schedulers.base import Config, Scheduler, Setting

_METHODS = ("quotas", "stage", "observe", "state_dict", "load_state_dict")


class OwnConfig(Config):
    """CLASS(tasks, problems_per_step, **options), or a `Config` whose keys are the options."""

    kind: Literal["python"] = "python"
    source: Annotated[str, Field(pattern="^python:")]
    options: dict[str, Any] = Field(default_factory=dict)

    def build(self, setting: Setting) -> Scheduler:
        """Raises UserError where it can't be made, and where it asks for what no step can train."""
        scheduler_class, key, per_step = load_class(self.source, setting.key), setting.key, setting.problems_per_step
        try:
            if issubclass(scheduler_class, Config):
                scheduler: Scheduler = scheduler_class.model_validate({"kind": "python", **self.options}).build(setting)
            else:
                scheduler = scheduler_class(setting.tasks, per_step, **self.options)
        except (TypeError, ValueError) as exc:
            raise UserError(
                f"{scheduler_class.__name__}(tasks, problems_per_step, **options) can't be made: {exc}", key=key
            ) from None
        if lacking := [method for method in _METHODS if not callable(getattr(scheduler, method, None))]:
            raise UserError(f"{scheduler_class.__name__} isn't a Scheduler: it lacks {', '.join(lacking)}", key=key)
        first = dict(scheduler.quotas(0))
        if not set(first) <= set(setting.tasks) or sum(first.values()) != per_step or min(first.values()) < 1:
            expected = f"whole numbers that add up to {per_step}, for some of {', '.join(setting.tasks)}"
            raise UserError(f"{scheduler_class.__name__}.quotas(0) is {first!r:.200}, not {expected}", key=key)
        return scheduler
