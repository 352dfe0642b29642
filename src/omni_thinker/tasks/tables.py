"""Rows of tables: CSV, Parquet, and JSON files that hold one list."""

import csv
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from omni_thinker.errors import UserError
from omni_thinker.tasks.jsonl import MAX_ROWS, as_row
from omni_thinker.tasks.reader import Row

_LONGEST_CELL = 1 << 20
_LARGEST_LIST = 512 << 20
"""Bytes of a JSON file that is read as a whole."""
_BATCH = 1024


def read_csv(path: Path, key: str) -> Iterator[Row]:
    """The rows below a line of names; cells are texts, empty ones missing. `.tsv`: tabs between cells. Space around a
    name is no part of it."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from _cells(path, stream, key)
    except UnicodeDecodeError as exc:
        raise UserError(f"not UTF-8: {exc.reason} at byte {exc.start}", file=path, key=key) from None
    except OSError as exc:
        raise UserError(f"can't be read: {exc.strerror or exc}", file=path, key=key) from None
    except ValueError as exc:  # a NUL in the name
        raise UserError(f"can't be a file's name: {exc}", file=repr(str(path)), key=key) from None


def _cells(path: Path, stream: IO[str], key: str) -> Iterator[Row]:
    lines = _lines(path, stream, key)
    names = [name.strip() for name in next(lines, (0, []))[1]]
    if not names or len(set(names)) < len(names) or not all(names):
        why = "its first line must name every column, each differently; has it no such line?"
        raise UserError(why, file=path, key=key)
    for count, (number, cells) in enumerate(lines):
        where = f"{path}:{number}"
        if count >= MAX_ROWS:
            raise UserError(f"more than {MAX_ROWS:,} rows; split the file", file=where)
        if not cells:
            continue
        if len(cells) != len(names):
            yield Row(where, {}, fault=f"has {len(cells)} cells for {len(names)} columns")
            continue
        yield Row(where, {name: cell for name, cell in zip(names, cells, strict=True) if cell})


def _lines(path: Path, stream: IO[str], key: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, and the number of the line that it ends in."""
    reader = csv.reader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as exc:
        raise UserError(f"not valid CSV: {exc}", file=f"{path}:{reader.line_num}", key=key) from None


def read_parquet(path: Path, key: str) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 0. Needs pyarrow."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("Parquet needs pyarrow; run: pip install pyarrow", file=path, key=key) from None
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    if number >= MAX_ROWS:
                        raise UserError(f"more than {MAX_ROWS:,} rows; split the file", file=path, key=key)
                    yield Row(f"{path}[{number}]", values)
                    number += 1
    except (OSError, ValueError, NotImplementedError) as exc:  # pyarrow's own derive from these
        raise UserError(f"not a Parquet file that can be read: {exc}", file=path, key=key) from None


def read_list(path: Path, key: str) -> Iterator[Row] | None:
    """The rows of a JSON file that is one list, numbered from 0; None for any other file."""
    try:
        with path.open("rb") as stream:
            if not stream.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
                return None
            if path.stat().st_size > _LARGEST_LIST:
                raise UserError("a list of this size is better one object a line (.jsonl)", file=path, key=key)
        values = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UserError(f"can't be read: {exc.strerror or exc}", file=path, key=key) from None
    except (ValueError, RecursionError) as exc:
        raise UserError(f"not valid JSON: {exc or 'nested too deeply'}", file=path, key=key) from None
    return (as_row(value, f"{path}[{number}]") for number, value in enumerate(values))
