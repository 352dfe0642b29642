"""`source = "jsonl"`: rows of files, one JSON object a line, plain or gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.reader import Row
from omni_thinker.tasks.rows import ROW_OPTIONS, RowTask
from omni_thinker.types import TaskName

MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 2 << 30
MAX_ROWS = 5_000_000
"""Both after decompression: a zip bomb ends in one line of error, not in a full memory."""
MAX_BLANK_LINES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


def jsonl_task(name: TaskName, spec: TaskSpec) -> RowTask:
    """The task of `spec.files`. Raises UserError for a missing file and for the first bad row."""
    if not spec.files:
        raise UserError("source 'jsonl' needs the names of its files", key=f"tasks.{name}.files")
    for key in spec.options:
        if key not in ROW_OPTIONS:
            raise UserError(f"unknown option{did_you_mean(key, ROW_OPTIONS)}", key=f"tasks.{name}.options.{key}")
    return RowTask(name, spec, (row for file in spec.files for row in read_rows(Path(file), f"tasks.{name}.files")))


def read_rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of one file; blank lines are skipped. Raises UserError naming file and line."""
    try:
        with _open(path) as stream:
            yield from _rows(path, stream)
    except FileNotFoundError:
        raise UserError("no such file", file=path, key=key) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise UserError(f"damaged gzip file: {exc}", file=path, key=key) from None
    except OSError as exc:
        raise UserError(f"can't be read: {exc.strerror or exc}", file=path, key=key) from None
    except ValueError as exc:  # a NUL in the name
        raise UserError(f"can't be a file's name: {exc}", file=repr(str(path)), key=key) from None


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
    if path.suffix == ".gz" or zipped:
        return gzip.open(path, "rb")
    return path.open("rb")


def _rows(path: Path, stream: IO[bytes] | gzip.GzipFile) -> Iterator[Row]:
    total = number = blank = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        total += len(line)
        where = f"{path}:{number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"line longer than {MAX_LINE_BYTES:,} bytes", file=where)
        if number > MAX_ROWS:
            raise UserError(f"more than {MAX_ROWS:,} lines; split the file", file=where)
        if total > MAX_FILE_BYTES:
            raise UserError(f"more than {MAX_FILE_BYTES:,} bytes in all; split the file", file=where)
        if line.strip():
            yield Row(where, _object(line, where))
            continue
        blank += 1
        if blank > MAX_BLANK_LINES:
            raise UserError(f"more than {MAX_BLANK_LINES:,} blank lines", file=where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise UserError(f"not UTF-8: {exc.reason} at byte {exc.start}", file=where) from None
    except (ValueError, RecursionError) as exc:
        raise UserError(f"not valid JSON: {exc or 'nested too deeply'}", file=where) from None
    if not isinstance(value, dict):
        raise UserError(f"must be an object, got {type(value).__name__}", file=where)
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
