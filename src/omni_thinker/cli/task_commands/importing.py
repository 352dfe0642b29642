"""Rows of a file as the task that a recipe would make of them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec, parse_recipe, set_key
from omni_thinker.tasks.reader import FIELDS
from omni_thinker.tasks.refused import Refusals
from omni_thinker.tasks.registry import make_task
from omni_thinker.tasks.rows import RowTask
from omni_thinker.types import SPLITS, Problem, Split

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file would be read as. `table`: the task's table. `problems`: the first of its training split."""

    name: str
    table: Mapping[str, Any]
    sizes: Mapping[Split, int]
    refused: Refusals
    problems: Sequence[Problem]

    @property
    def toml(self) -> str:
        """The table as it stands in a recipe."""
        return "\n".join([f"[tasks.{self.name}]", *(f"{key} = {_inline(value)}" for key, value in self.table.items())])


def import_rows(file: str, name: str, overrides: Sequence[str]) -> Imported:
    """The table that reads `file` (or folder, or hf:NAME), with all that was recognised written out, and some problems.

    Rows that can't be read are left out. overrides: keys of the task, `dotted.key=value`. Raises UserError where none
    is left, naming the column and the remedy."""
    table: dict[str, Any] = {"source": file} if file.startswith("hf:") else {"source": "jsonl", "files": [file]}
    for override in overrides:
        set_key(table, override)
    spec = parse_recipe({"tasks": {name: table}}, Path(file).name).tasks[name]
    task = make_task(name, spec.model_copy(update={"skip_refused": True}))
    if not isinstance(task, RowTask):
        raise UserError("has no rows to import", file=file)
    pools: dict[Split, Sequence[Problem]] = {}
    for split in SPLITS:
        with suppress(UserError):  # a split may be empty
            pools[split] = task.problems(split)
    shown = [problem for split in SPLITS for problem in pools.get(split, ())][:_SHOWN]
    sizes = {split: len(pools.get(split, ())) for split in SPLITS}
    return Imported(name, table | _written_out(task, spec), sizes, task.refused, shown)


def _written_out(task: RowTask, spec: TaskSpec) -> dict[str, Any]:
    """The keys that the rows decided, as the recipe would set them."""
    form = task.form
    keys: dict[str, Any] = {"format": form.format.name}
    keys["fields"] = spec.fields | {field: path for field, path in form.paths.items() if field in FIELDS}
    if spec.template or form.format.template != "{prompt}":
        keys["template"] = spec.template or form.format.template
    if task.base is not None:
        keys["options"] = spec.options | {"answer_index_base": task.base}
    keys["reward"] = {"gate": list(task.reward.gate), "sum": dict(task.reward.sum)}
    keys["max_tokens"] = task.max_tokens
    return json.loads(json.dumps(keys))  # type: ignore[no-any-return]


def _inline(value: Any) -> str:
    """A value of a recipe on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_name(key)} = {_inline(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"v": value}).partition(" = ")[2].strip()


def _name(key: str) -> str:
    """A key, quoted where it must be."""
    return tomli_w.dumps({key: 0}).rpartition(" = ")[0]
