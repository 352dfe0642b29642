"""`source = "jsonl"`: rows of files, each read by what its name ends in."""

import os.path
from collections.abc import Iterator
from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.hf import is_saved, saved_rows
from omni_thinker.tasks.jsonl import read_rows
from omni_thinker.tasks.reader import Row
from omni_thinker.tasks.rows import ROW_OPTIONS, RowTask
from omni_thinker.tasks.tables import read_csv, read_list, read_parquet
from omni_thinker.types import TaskName


def file_task(name: TaskName, spec: TaskSpec) -> RowTask:
    """The task of `spec.files`. Raises UserError for a missing file and for rows that can't be read."""
    if not spec.files:
        raise UserError("source 'jsonl' needs the names of its files", key=f"tasks.{name}.files")
    for key in spec.options:
        if key not in ROW_OPTIONS:
            raise UserError(f"unknown option{did_you_mean(key, ROW_OPTIONS)}", key=f"tasks.{name}.options.{key}")
    return RowTask(name, spec, (row for file in spec.files for row in rows_of(Path(file), f"tasks.{name}.files")))


def rows_of(path: Path, key: str) -> Iterator[Row]:
    """The rows of one file, or of a folder that `datasets` saved. Raises UserError naming `key` and the file."""
    if not path.is_absolute() and "\0" not in str(path) and not os.path.lexists(path):
        raise UserError(f"no such file in {Path.cwd()}, where the command runs", file=path, key=key)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        # A pipe gives its rows once, and a part of them is gone once its first bytes were looked at.
        why = "is a pipe or a device, whose rows can't be read again; write them to a file"
        raise UserError(why, file=path, key=key)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, key)
    if suffix in (".csv", ".tsv"):
        return read_csv(path, key)
    if suffix == ".json" and (rows := read_list(path, key)) is not None:
        return rows
    return saved_rows(str(path), key) if is_saved(path) else read_rows(path, key)
