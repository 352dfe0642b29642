"""One unit's lines of the journal, read and then written on: a resumed unit takes the same path through the code.

A unit is a sequence of moves (an evaluation, a training, a file of weights). Each move's result is one line. A move
that has its line isn't made again, its result is read. Training is a move of many steps: it has lines of its own at its
beginning and at each checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError

Value = Any
"""Plain JSON, with NaN and infinities."""
Write = Callable[[str, str, Value], None]
"""Told the key, kind and value of a line; returns once it is on disk."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line as its unit sees it. kind: move, begin (of training), checkpoint, note, or end (of the unit)."""

    key: str
    kind: str
    value: Value


@dataclass(frozen=True, slots=True)
class Trained:
    """What is known of a training: the values of its checkpoints, oldest first, and of its end where it `ended`."""

    values: tuple[Value, ...] = ()
    ended: bool = False


class Tape:
    """Reads `known` entries first, then hands new ones to `write`. file: the journal, for messages."""

    def __init__(self, known: Sequence[Entry], write: Write, file: Path) -> None:
        self._known = [entry for entry in known if entry.kind in ("move", "begin", "checkpoint")]
        self._write, self._file = write, file
        self._at = 0

    @property
    def replaying(self) -> bool:
        """Whether the next move is read instead of made."""
        while self._at < len(self._known) and self._known[self._at].kind == "checkpoint":
            self._at += 1
        return self._at < len(self._known)

    def once(self, key: str, make: Callable[[], Value]) -> Value:
        """The result of `make`: computed now and recorded, or read.

        Raises UserError where the journal has another move here."""
        if self.replaying:
            return self._next(key, "move").value
        value = make()
        self._write(key, "move", value)
        return value

    def begin(self, key: str) -> Trained:
        """The training `key` begins, or is known to have; moves within it, and its end, follow."""
        if not self.replaying:
            self._write(key, "begin", None)
            return Trained()
        self._next(key, "begin")
        of_training = [entry for entry in self._known[self._at :] if entry.key == key]
        ended = bool(of_training) and of_training[-1].kind == "move"
        return Trained(tuple(entry.value for entry in of_training), ended)

    def checkpoint(self, key: str, value: Value) -> None:
        """The training `key` can be resumed from here, with `value` and the files it names."""
        self._write(key, "checkpoint", value)

    def _next(self, key: str, kind: str) -> Entry:
        entry = self._known[self._at]
        if entry.key != key or entry.kind != kind:
            raise UserError(f"has {entry.key!r} instead of {key!r}: another version wrote it", file=self._file)
        self._at += 1
        return entry


def resumable(entries: Sequence[Entry], usable: Callable[[Value], bool]) -> int:
    """How many entries a unit can be resumed from. Where training is under way, none counts that is later than its last
    usable checkpoint, or than its beginning."""
    opened = -1
    for number, entry in enumerate(entries):
        if entry.kind == "begin":
            opened = number
        elif opened >= 0 and entry.kind == "move" and entry.key == entries[opened].key:
            opened = -1
    if opened < 0:
        return len(entries)
    for number in range(len(entries) - 1, opened, -1):
        if entries[number].kind == "checkpoint" and usable(entries[number].value):
            return number + 1
    return opened + 1
