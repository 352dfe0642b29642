"""What a run has done so far, so that a run that was killed goes on as if it had not been.

Every move of every unit is one line of `journal.jsonl`, with its checksum and the number of rows that the unit had
written to each log by then. Units may run side by side, so lines of several stand between one another. What came after
the last line that a unit can be resumed from is cut off, of the journal and of the logs, so that no step and no row
exists twice. Only one process writes here."""

import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from omni_thinker.errors import UserError
from omni_thinker.runs.files import write_whole
from omni_thinker.runs.tape import Entry, Tape, Value, resumable

NAME = "journal.jsonl"
STUDY = ""
"""The unit that holds what belongs to the whole study."""
_KINDS = ("move", "begin", "checkpoint", "note", "end")
_ROW = re.compile(rb'\{"seed": (-?\d+), "unit": "((?:[^"\\]|\\.)*)"')
"""How a row of a log begins."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a journal: an entry of a unit ("0 joint": seed and name)."""

    unit: str
    entry: Entry
    rows: Mapping[str, int]
    """Rows that the unit had in each log."""
    counts: Value
    """Counts over the whole run."""


class Counts(Protocol):
    """Whoever counts over the whole run."""

    def state(self) -> Value: ...

    def restore(self, state: Value) -> None: ...


class Journal:
    """Belongs to one run directory. What is there when it is opened is kept as far as it can be resumed from."""

    def __init__(
        self,
        folder: Path,
        logs: Sequence[str],
        *,
        usable: Callable[[Value], bool] = lambda _: True,
        counts: Counts | None = None,
    ) -> None:
        """`logs`: files of `folder` that only grow. `usable`: whether a checkpoint's files are whole; one whose aren't
        is passed over. Raises UserError where a log has fewer rows than it had."""
        self._folder, self._logs, self._usable, self._counts = folder, tuple(logs), usable, counts
        self._path = folder / NAME
        written, damaged = _read(self._path)
        if not written and any(_size(folder / name) for name in self._logs):  # which have no row before its first line
            raise UserError("its first line is damaged, so the logs can't be checked", file=self._path)
        self._lines, self._of = self._resumable(written)
        self._damaged = damaged > 1  # one is what a kill leaves; more are somebody's doing, who may want to look
        self.dropped = len(written) - len(self._lines) + damaged
        """Lines that had to be cut off."""
        self._rows = Counter[tuple[str, str]]()
        for unit in self._of:
            self._count(unit)
        self._is_cut, self._whole = False, self._check_logs() and not self.dropped
        self._known = list(self._lines)
        if counts is not None and self._lines:
            try:
                counts.restore(self._lines[-1].counts)
            except (TypeError, KeyError, ValueError, AttributeError):
                raise UserError("has counts of another kind", file=self._path) from None

    def cut(self) -> None:
        """Cut off what came after the last line that each unit can be resumed from, of the journal and of the logs.
        Until then nothing is changed."""
        if self._is_cut:
            return
        self._is_cut = True
        if not self._whole:
            if self._damaged:  # what is cut may be all that is left of a run that can't be resumed
                for path in (self._path, *(self._folder / name for name in self._logs)):
                    if path.exists():
                        shutil.copyfile(path, path.with_suffix(".damaged"))
            self._rewrite()
        if not self._lines:  # before any log has a row, so that logs without a journal are known for damage
            self.record(STUDY, Entry("begun", "note", None))

    def tape(self, unit: str) -> Tape:
        """The lines of a unit, to be read and written on."""

        def write(key: str, kind: str, value: Value) -> None:
            self.record(unit, Entry(key, kind, value))

        return Tape(self.entries(unit), write, self._path)

    def entries(self, unit: str) -> list[Entry]:
        """What is known of a unit, oldest first."""
        return [line.entry for line in self._of.get(unit, ())]

    def ended(self) -> dict[str, Value]:
        """Units that have ended, with the values of their last lines."""
        return {line.unit: line.entry.value for line in self._lines if line.entry.kind == "end"}

    def rewind(self, unit: str) -> int:
        """Cut off what a unit that broke off can't be resumed from; how many lines these were."""
        written, before = self._of.get(unit, []), dict(self._rows)
        _, kept = self._resumable(written)
        gone = {id(line) for line in written[len(kept.get(unit, ())) :]}
        self._lines = [line for line in self._lines if id(line) not in gone]
        self._of |= kept
        self._count(unit)
        if gone or before != dict(self._rows):
            self._rewrite()
        return len(gone)

    def append(self, unit: str, log: str, row: str) -> None:
        """Add a unit's row, one line of JSON, to a log."""
        self.cut()
        with (self._folder / log).open("a", encoding="utf-8") as stream:
            stream.write(row + "\n")
        self._rows[unit, log] += 1

    def record(self, unit: str, entry: Entry) -> None:
        """Write a line; on disk when this returns, with all rows before it."""
        self.cut()
        for name in self._logs:
            if (self._folder / name).exists():
                with (self._folder / name).open("rb") as stream:
                    os.fsync(stream.fileno())
        rows = {name: self._rows[unit, name] for name in self._logs if self._rows[unit, name]}
        line = Line(unit, entry, rows, None if self._counts is None else self._counts.state())
        with self._path.open("ab") as stream:
            stream.write(encode(line))
            stream.flush()
            os.fsync(stream.fileno())
        self._lines.append(line)
        self._of.setdefault(unit, []).append(line)

    def note(self, key: str, value: Value, unit: str = STUDY) -> None:
        """Record something that is no move."""
        self.record(unit, Entry(key, "note", value))

    def notes(self, prefix: str) -> list[str]:
        """Keys of the study's notes that begin so, each once, as the journal was opened with."""
        notes = (line.entry.key for line in self._known if line.entry.kind == "note" and line.unit == STUDY)
        return list(dict.fromkeys(key for key in notes if key.startswith(prefix)))

    def noted(self, key: str) -> Value | None:
        """What the newest note of this key said when the journal was opened."""
        entries = (line.entry for line in reversed(self._known))
        return next((entry.value for entry in entries if (entry.kind, entry.key) == ("note", key)), None)

    @property
    def resumed(self) -> bool:
        """Whether a unit had begun when the journal was opened."""
        return any(line.unit != STUDY for line in self._known)

    @property
    def seeds(self) -> set[int]:
        """Seeds of which something was done when the journal was opened."""
        return {int(line.unit.partition(" ")[0]) for line in self._known if line.unit != STUDY}

    def _resumable(self, lines: Sequence[Line]) -> tuple[list[Line], dict[str, list[Line]]]:
        """The lines that their units can be resumed from: in their order, and by unit."""
        of: dict[str, list[Line]] = {}
        for line in lines:
            of.setdefault(line.unit, []).append(line)
        for unit, written in of.items():
            of[unit] = written[: resumable([line.entry for line in written], self._usable)]
        kept = {id(line) for written in of.values() for line in written}
        return [line for line in lines if id(line) in kept], of

    def _count(self, unit: str) -> None:
        """Rows of a unit in each log, as its last line says."""
        written = self._of.get(unit)
        for name in self._logs:
            self._rows[unit, name] = written[-1].rows.get(name, 0) if written else 0

    def _check_logs(self) -> bool:
        """Whether the logs hold just what the lines say. Raises UserError where one holds less."""
        whole = True
        for name in self._logs:
            found = Counter[str | None](unit for unit, _ in _rows(self._folder / name))
            for (unit, log), count in self._rows.items():
                if log == name and found[unit] < count:
                    raise UserError(
                        f"has {found[unit]} rows of {unit!r}, the journal recorded {count}: the file was changed",
                        file=self._folder / name,
                    )
            whole = whole and all(self._rows[unit or STUDY, name] == count for unit, count in found.items())
        return whole

    def _rewrite(self) -> None:
        """Write the logs, and then the journal, with no more than the lines say."""
        for name in self._logs:
            path = self._folder / name
            if path.exists():
                write_whole(path, partial(self._copy_rows, name))
        write_whole(self._path, lambda target: target.write_bytes(b"".join(map(encode, self._lines))))

    def _copy_rows(self, log: str, target: Path) -> None:
        left = Counter({unit: count for (unit, name), count in self._rows.items() if name == log})
        with target.open("wb") as stream:
            for unit, row in _rows(self._folder / log):
                if unit is not None and left[unit] > 0:
                    left[unit] -= 1
                    stream.write(row)


def encode(line: Line) -> bytes:
    """A line as the bytes in the file."""
    entry = line.entry
    table = {"unit": line.unit, "key": entry.key, "kind": entry.kind, "rows": line.rows, "counts": line.counts}
    body = json.dumps({**table, "value": entry.value})
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def unit_id(seed: int, name: str) -> str:
    """How the journal calls a unit."""
    return f"{seed} {name}"


def sort_rows(path: Path, units: Sequence[str]) -> None:
    """Put the rows of a log in the order of `units`, each unit's in its own order."""
    place = {unit: number for number, unit in enumerate(units)}
    rows, end = list[tuple[int, int, int]](), 0
    for unit, row in _rows(path):
        rows.append((place.get(unit or STUDY, len(place)), end, len(row)))
        end += len(row)
    if rows == sorted(rows):
        return

    def write(target: Path) -> None:
        with path.open("rb") as source, target.open("wb") as stream:
            for _, begin, length in sorted(rows):
                source.seek(begin)
                stream.write(source.read(length))

    write_whole(path, write)


def _rows(path: Path) -> Iterator[tuple[str | None, bytes]]:
    """The rows of a log with their units; None for what isn't a whole row."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        for row in stream:
            found = _ROW.match(row) if row.endswith(b"\n") else None
            yield (None if found is None else unit_id(int(found[1]), json.loads(b'"%b"' % found[2]))), row


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path) -> tuple[list[Line], int]:
    """Lines up to the first that is damaged, and how many there are from that one on."""
    lines: list[Line] = []
    written = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for raw in written:
        checksum, _, body = raw.rstrip(b"\n").partition(b" ")
        if not raw.endswith(b"\n") or checksum != f"{zlib.crc32(body):08x}".encode():
            break
        lines.append(_parsed(path, body))
    return lines, len(written) - len(lines)


def _parsed(path: Path, body: bytes) -> Line:
    """Raises UserError for what no version of ours has written."""
    try:
        row = json.loads(body)
        line = Line(row["unit"], Entry(row["key"], row["kind"], row["value"]), row["rows"], row["counts"])
        sound = isinstance(line.entry.key, str) and isinstance(line.unit, str) and line.entry.kind in _KINDS
        sound = sound and all(isinstance(count, int) and count >= 0 for count in line.rows.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if sound:
        return line
    if b'"logs": {' in body:
        raise UserError("was written by an earlier version; finish the run with that one", file=path)
    raise UserError("has a line that doesn't belong to a journal", file=path)
