"""Schedulers as a recipe names them: which task next, in an arm of a study. Imports no torch.

The keys of each kind, and their defaults, stand beside its class in `omni_thinker.schedulers`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from omni_thinker.errors import UserError
from omni_thinker.plugins import PREFIX, Registry
from omni_thinker.recipe.explain import refusal
from omni_thinker.recipe.rl import Update
from omni_thinker.recipe.types import Positive, Table

KINDS = Registry(
    "scheduler",
    {
        "uniform": "omni_thinker.schedulers.mixture:UniformConfig",
        "proportional": "omni_thinker.schedulers.mixture:ProportionalConfig",
        "round_robin": "omni_thinker.schedulers.round_robin:RoundRobinConfig",
        "sec": "omni_thinker.schedulers.sec:SecConfig",
        "dump": "omni_thinker.schedulers.dump:DumpConfig",
        "tscl": "omni_thinker.schedulers.tscl:TsclConfig",
        "pac": "omni_thinker.schedulers.pac:PacConfig",
        "worst_task": "omni_thinker.schedulers.worst_task:WorstTaskConfig",
        "tac": "omni_thinker.schedulers.tac:TacConfig",
        "weighted": "omni_thinker.schedulers.mixture:WeightedConfig",
        "first": "omni_thinker.schedulers.phases:FirstConfig",
        "sequence": "omni_thinker.schedulers.stages:SequenceConfig",
        "python": "omni_thinker.schedulers.own:OwnConfig",
    },
)
SERIAL = """"serial" isn't a scheduler any more; write kind = "weighted", update = "task" in [study.schedulers.NAME]"""
PLAIN = tuple(kind for kind in KINDS.names if kind not in ("python", "sequence", "weighted"))
"""Kinds that an arm may name directly, with all defaults."""


class SchedulerSpec(Table):
    """A table of `study.schedulers`: the kind, and the keys that its config class adds."""

    kind: str
    """Which scheduler it is (docs/schedulers.md)."""
    update: Update | None = None
    """In place of `rl.update`, for this arm."""
    reads: tuple[Positive, ...] = ()
    """Steps after which this arm is evaluated as well, on its way."""

    @property
    def ends(self) -> int:
        """How often its arm is evaluated on validation where something ends: a stage, or the whole arm."""
        return 1

    def check(self, tasks: Sequence[str], key: str) -> None:
        """Raises UserError, naming `key`, for tasks that the recipe lacks and for keys that don't go together."""


def read_scheduler(table: object, key: str) -> SchedulerSpec:
    """The table under `key` as its kind's config. Raises UserError for the first fault."""
    if isinstance(table, SchedulerSpec):
        return table
    if isinstance(table, Mapping) and table.get("kind") == "serial":
        raise UserError(SERIAL, key=f"{key}.kind")
    if not isinstance(table, Mapping) or not isinstance(table.get("kind"), str):
        raise UserError("must be a table with the key kind, one of " + ", ".join(KINDS.names), key=key)
    if table["kind"].startswith(PREFIX):
        raise UserError(f'write kind = "python", source = "{table["kind"]:.80}"', key=f"{key}.kind")
    config: type[Any] = KINDS.find(table["kind"], f"{key}.kind")
    try:
        spec: SchedulerSpec = config.model_validate(dict(table))
    except ValidationError as exc:
        raise refusal(exc, lambda _: list(config.model_fields), key) from None
    return spec


def plain(kind: str) -> SchedulerSpec:
    """That kind, or `python:MODULE:CLASS`, with all defaults."""
    table = {"kind": "python", "source": kind} if kind.startswith(PREFIX) else {"kind": kind}
    return read_scheduler(table, f"study.arms.{kind}")


def refuse_unknown(names: Sequence[str], tasks: Sequence[str], key: str) -> None:
    """Raises UserError for the first of the tasks named that the recipe lacks."""
    if unknown := [task for task in names if task not in tasks]:
        raise UserError(f"no task {unknown[0]!r:.80}; there are {', '.join(tasks)}", key=key)
