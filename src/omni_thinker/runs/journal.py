"""What a run has done so far, so that a run that was killed goes on as if it had not been.

A run is a sequence of moves (a warm-up, an evaluation, an arm's training). Each move's result is one line of
`journal.jsonl`, with its checksum and the length that every log had by then. A resumed run takes the same path through
the code; a move that has its line isn't made again, its result is read. Training is a move of many steps: it has
lines of its own at its beginning and at each checkpoint. What came after the last line that can be gone on from is
cut off, of the journal and of the logs, so that no step and no line exists twice."""

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.errors import UserError

NAME = "journal.jsonl"
_KINDS = ("move", "begin", "checkpoint", "note")
Value = Any
"""Plain JSON, with NaN and infinities."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a journal."""

    key: str
    kind: str
    """move, begin (of training), checkpoint or note."""
    value: Value
    logs: Mapping[str, int]
    counts: Value
    """Counts over the whole run."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What is known of a training: the values of its checkpoints, oldest first, and of its end where it `ended`."""

    values: tuple[Value, ...] = ()
    ended: bool = False


class Counts(Protocol):
    """Whoever counts over the whole run."""

    def state(self) -> Value: ...

    def restore(self, state: Value) -> None: ...


class Journal:
    """Belongs to one run directory. `known` lines were there when it was opened."""

    def __init__(
        self,
        folder: Path,
        logs: Sequence[str],
        *,
        usable: Callable[[Value], bool] = lambda _: True,
        counts: Counts | None = None,
    ) -> None:
        """`logs`: files of `folder` that only grow. `usable`: whether a checkpoint's files are whole; one whose aren't
        is passed over. Raises UserError where a log is shorter than it was."""
        self._folder, self._logs, self._counts = folder, tuple(logs), counts
        self._path = folder / NAME
        lines, damaged = _read(self._path)
        if not lines and any(self._size(name) for name in self._logs):  # which have nothing before its first line
            raise UserError("its first line is damaged, so the logs can't be checked", file=self._path)
        keep = _cut(lines, usable)
        self._known = [line for line, _ in lines[:keep]]
        self._at = 0
        self.dropped = len(lines) - keep + damaged
        """Lines that had to be cut off."""
        self._damaged = damaged > 1  # one is what a kill leaves; more are somebody's doing, who may want to look
        self._end = lines[keep - 1][1] if keep else 0
        self._is_cut = False
        sizes = self._known[-1].logs if keep else {}
        self._sizes = {name: sizes.get(name, 0) for name in self._logs}
        for name, size in self._sizes.items():
            if (present := self._size(name)) < size:
                raise UserError(
                    f"has {present} bytes, the journal recorded {size}: the file was changed", file=self._folder / name
                )
        if counts is not None and self._known:
            try:
                counts.restore(self._known[-1].counts)
            except (TypeError, KeyError, ValueError, AttributeError):
                raise UserError("has counts of another kind", file=self._path) from None

    def cut(self) -> None:
        """Cut off what came after the last line that a run can be resumed from, of the journal and of the logs. Until
        then nothing is changed."""
        if self._is_cut:
            return
        self._is_cut = True
        sizes = {self._folder / name: size for name, size in self._sizes.items()}
        for path, size in {self._path: self._end, **sizes}.items():
            if path.exists() and path.stat().st_size > size:
                if self._damaged:  # what is cut may be all that is left of a run that can't be resumed
                    shutil.copyfile(path, path.with_suffix(".damaged"))
                os.truncate(path, size)
        if not self._end:  # before any log has a line, so that logs without a journal are known for damage
            self._write("begun", "note", None)

    @property
    def replaying(self) -> bool:
        """Whether the next move is read instead of made."""
        while self._at < len(self._known) and self._known[self._at].kind in ("checkpoint", "note"):
            self._at += 1
        return self._at < len(self._known)

    def once(self, key: str, make: Callable[[], Value]) -> Value:
        """The result of `make`: computed now and recorded, or read from the journal."""
        if self.replaying:
            line = self._known[self._at]
            if line.key != key or line.kind != "move":
                raise UserError(f"has {line.key!r} instead of {key!r}: another version wrote it", file=self._path)
            self._at += 1
            return line.value
        self.cut()
        value = make()
        self._write(key, "move", value)
        return value

    def begin(self, key: str) -> Trained:
        """The training `key` begins, or is known to have; moves within it, and its end, follow."""
        self.cut()
        if not self.replaying:
            self._write(key, "begin", None)
            return Trained()
        line = self._known[self._at]
        if line.key != key or line.kind != "begin":
            raise UserError(f"has {line.key!r} instead of {key!r}: another version wrote it", file=self._path)
        self._at += 1
        of_training = [line for line in self._known[self._at :] if line.key == key]
        return Trained(tuple(line.value for line in of_training), bool(of_training) and of_training[-1].kind == "move")

    def checkpoint(self, key: str, value: Value) -> None:
        """The training `key` can be resumed from here, with `value` and the files it names."""
        self._write(key, "checkpoint", value)

    def note(self, key: str, value: Value) -> None:
        """Record something that is no move."""
        self._write(key, "note", value)

    def notes(self, prefix: str) -> list[str]:
        """Keys of the notes that begin so, each once, as the journal was opened with."""
        keys = (line.key for line in self._known if line.kind == "note" and line.key.startswith(prefix))
        return list(dict.fromkeys(keys))

    @property
    def seeds(self) -> list[int]:
        """Seeds in the order in which they began, when the journal was opened. Keys of a move begin with its seed."""
        first = (line.key.partition(" ")[0] for line in self._known if line.kind in ("move", "begin"))
        return list(dict.fromkeys(int(word) for word in first if word.isdecimal()))

    def noted(self, key: str) -> Value | None:
        """What the newest note of this key said when the journal was opened."""
        return next((line.value for line in reversed(self._known) if (line.kind, line.key) == ("note", key)), None)

    def _write(self, key: str, kind: str, value: Value) -> None:
        sizes = {}
        for name in self._logs:
            path = self._folder / name
            if path.exists():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
                sizes[name] = path.stat().st_size
        counts = None if self._counts is None else self._counts.state()
        with self._path.open("ab") as stream:
            stream.write(encode(Line(key, kind, value, sizes, counts)))
            stream.flush()
            os.fsync(stream.fileno())

    def _size(self, log: str) -> int:
        path = self._folder / log
        return path.stat().st_size if path.exists() else 0


def encode(line: Line) -> bytes:
    """A line as the bytes in the file."""
    table = {"key": line.key, "kind": line.kind, "logs": line.logs, "counts": line.counts, "value": line.value}
    body = json.dumps(table)
    return f"{zlib.crc32(body.encode()):08x} {body}\n".encode()


def read_lines(path: Path) -> list[Line]:
    """The lines of a journal up to the first damaged one. Raises UserError for what is no journal."""
    return [line for line, _ in _read(path)[0]]


def _read(path: Path) -> tuple[list[tuple[Line, int]], int]:
    """Lines up to the first that is damaged, each with where it ends; and how many there are from that one on."""
    lines: list[tuple[Line, int]] = []
    end = 0
    written = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for raw in written:
        checksum, _, body = raw.rstrip(b"\n").partition(b" ")
        if not raw.endswith(b"\n") or checksum != f"{zlib.crc32(body):08x}".encode():
            break
        end += len(raw)
        lines.append((_parsed(path, body), end))
    return lines, len(written) - len(lines)


def _parsed(path: Path, body: bytes) -> Line:
    """Raises UserError for what no version of ours has written."""
    try:
        row = json.loads(body)
        line = Line(row["key"], row["kind"], row["value"], row["logs"], row["counts"])
        sound = isinstance(line.key, str) and line.kind in _KINDS
        sound = sound and all(isinstance(size, int) and size >= 0 for size in line.logs.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise UserError("has a line that doesn't belong to a journal", file=path)
    return line


def _cut(lines: Sequence[tuple[Line, int]], usable: Callable[[Value], bool]) -> int:
    """How many lines a run can be resumed from. Where training is under way, no line counts that is later than its last
    usable checkpoint, or than its beginning."""
    opened = -1
    for number, (line, _) in enumerate(lines):
        if line.kind == "begin":
            opened = number
        elif opened >= 0 and line.kind == "move" and line.key == lines[opened][0].key:
            opened = -1
    if opened < 0:
        return len(lines)
    for number in range(len(lines) - 1, opened, -1):
        if lines[number][0].kind == "checkpoint" and usable(lines[number][0].value):
            return number + 1
    return opened + 1
