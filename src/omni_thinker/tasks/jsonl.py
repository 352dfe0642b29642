"""Rows of a file with one JSON object a line, plain or gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from omni_thinker.errors import UserError
from omni_thinker.tasks.reader import Row

MAX_LINE_BYTES = 1 << 20
MAX_FILE_BYTES = 2 << 30
MAX_ROWS = 5_000_000
"""Both after decompression: a zip bomb ends in one line of error, not in a full memory."""
MAX_BLANK_LINES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


def read_rows(path: Path, key: str) -> Iterator[Row]:
    """The rows of one file; blank lines are skipped, and lines that hold no object are rows with a fault.

    Raises UserError naming file and line where no more can be read."""
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
            yield _row(line, where)
            continue
        blank += 1
        if blank > MAX_BLANK_LINES:
            raise UserError(f"more than {MAX_BLANK_LINES:,} blank lines", file=where)


def _row(line: bytes, where: str) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig"), parse_constant=no_constant)
    except UnicodeDecodeError as exc:
        return Row(where, {}, fault=f"not UTF-8: {exc.reason} at byte {exc.start}")
    except (ValueError, RecursionError) as exc:
        return Row(where, {}, fault=f"not valid JSON: {exc or 'nested too deeply'}")
    return as_row(value, where)


def as_row(value: Any, where: str) -> Row:
    """An object as a row; anything else as a row with a fault."""
    if isinstance(value, dict):
        return Row(where, value)
    return Row(where, {}, fault=f"must be an object, got {type(value).__name__}")


def no_constant(name: str) -> Any:
    """What a JSON reader calls for NaN and Infinity. Raises ValueError."""
    raise ValueError(f"{name} is no JSON number")
