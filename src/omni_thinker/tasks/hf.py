"""`source = "hf:NAME_OR_FOLDER"`: a Hugging Face data set from the hub or from a folder."""

import importlib
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

    Raises UserError where the package or the data set is missing, and for the first bad row."""
    refuse_keys(name, spec, ("files",))
    for key in spec.options:
        if key not in (*LOAD_OPTIONS, *ROW_OPTIONS):
            known = ", ".join((*LOAD_OPTIONS, *ROW_OPTIONS))
            raise UserError(f"unknown option; known: {known}", key=f"tasks.{name}.options.{key}")
    place = spec.source.partition(":")[2]
    if not place:
        raise UserError("hf: needs a name or a folder, such as hf:openai/gsm8k", key=f"tasks.{name}.source")
    return RowTask(name, spec, _rows(place, _load(name, place, spec.options)))


def _load(name: TaskName, place: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The data set's splits by name."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            "source hf: needs the package datasets; run: pip install datasets", key=f"tasks.{name}.source"
        ) from None
    load_options = {key: value for key, value in options.items() if key in LOAD_OPTIONS}
    saved = [file for file in ("dataset_dict.json", "state.json") if (Path(place) / file).is_file()]
    try:
        loaded = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, **load_options)
    except Exception as exc:  # whatever the hub, the disk or a builder raises, the remedy is in its message
        raise UserError(f"can't load {place!r}: {type(exc).__name__}: {exc}", key=f"tasks.{name}.source") from None
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _rows(place: str, splits: Mapping[str, Any]) -> Iterator[Row]:
    for split, rows in splits.items():
        for number, values in enumerate(rows):
            yield Row(f"{place}[{split}]:{number}", values, str(split))
