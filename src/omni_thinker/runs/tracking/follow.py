"""The rows of a run's metrics.jsonl as they come, whoever writes them."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from omni_thinker.runs.journal import unit_id
from omni_thinker.runs.schema.base import adapter
from omni_thinker.runs.schema.logs import Metrics


class Follower:
    """Reads a log that grows, and that a resumed run or the end of a study may write anew.

    Rows of one unit keep their order in any such file, so the unit and the row's number in it say which row it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._seen = Counter[str]()

    def poll(self) -> Iterator[tuple[str, int, Metrics]]:
        """Unit, number in the unit (from 0) and row, of all whole lines since the last poll. Where the file was
        written anew, all of its lines come again. Lines that can't be read are left out."""
        self._open()
        if self._file is None:
            return
        while True:
            begin = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(begin)  # a part of a row; the rest comes
                return
            try:
                row: Metrics = adapter(Metrics).validate_json(line)
            except ValueError:
                continue
            unit = unit_id(row.seed, row.unit)
            number = self._seen[unit]
            self._seen[unit] += 1
            yield unit, number, row

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        """Have the file that bears the name now, from its beginning where it isn't the one of before."""
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return
        if self._file is not None:
            # An open file keeps its number, so another with the same number can't be another file.
            if (now.st_ino, now.st_dev) == _numbers(self._file) and now.st_size >= self._file.tell():
                return
            self._file.close()
        self._file = self._path.open("rb")
        self._seen.clear()


def _numbers(file: IO[bytes]) -> tuple[int, int]:
    stat = os.fstat(file.fileno())
    return stat.st_ino, stat.st_dev
