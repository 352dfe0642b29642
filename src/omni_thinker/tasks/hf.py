"""`source = "hf:NAME_OR_FOLDER"`: a Hugging Face data set from the hub or from a folder."""

import importlib
import os.path
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.pool import refuse_keys
from omni_thinker.tasks.reader import Row
from omni_thinker.tasks.rows import ROW_OPTIONS, RowTask
from omni_thinker.types import TaskName

LOAD_OPTIONS = ("name", "revision", "data_dir", "data_files")
"""Options passed on to `datasets.load_dataset`; `name` is the configuration."""


def hf_task(name: TaskName, spec: TaskSpec) -> RowTask:
    """The task of a data set; its own splits are the values that `TaskSpec.splits` speaks of.

    Raises UserError where the package or the data set is missing, and for rows that can't be read."""
    refuse_keys(name, spec, ("files",))
    for key in spec.options:
        if key not in (*LOAD_OPTIONS, *ROW_OPTIONS):
            known = ", ".join((*LOAD_OPTIONS, *ROW_OPTIONS))
            raise UserError(f"unknown option; known: {known}", key=f"tasks.{name}.options.{key}")
    place = spec.source.partition(":")[2]
    key = f"tasks.{name}.source"
    if not place:
        raise UserError("hf: needs a name or a folder, such as hf:openai/gsm8k", key=key)
    if os.path.isfile(place):
        raise UserError(f"{place!r} is a file; use source = 'jsonl' and files = [{place!r}]", key=key)
    return RowTask(name, spec, saved_rows(place, key, spec.options))


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    # Unlike Path.is_file, this takes a name that no file can have.
    return any(os.path.isfile(path / file) for file in ("dataset_dict.json", "state.json"))


def saved_rows(place: str, key: str, options: Mapping[str, Any] | None = None) -> Iterator[Row]:
    """The rows of a data set, each with its split. Raises UserError naming `key` where it can't be loaded."""
    for split, rows in _load(place, key, options or {}).items():
        for number, values in enumerate(rows):
            yield Row(f"{place}[{split}]:{number}", values, str(split))


def _load(place: str, key: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set's splits by name."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError("needs the package datasets; run: pip install datasets", key=key) from None
    load_options = {key: value for key, value in options.items() if key in LOAD_OPTIONS}
    try:
        loaded = (
            datasets.load_from_disk(place) if is_saved(Path(place)) else datasets.load_dataset(place, **load_options)
        )
    except Exception as exc:  # whatever the hub, the disk or a builder raises, the remedy is in its message
        raise UserError(f"can't load {place!r}: {type(exc).__name__}: {exc}", key=key) from None
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}
