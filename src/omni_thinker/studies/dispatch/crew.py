"""Where units are worked on, behind one interface; and what a worker has to say meanwhile."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omni_thinker.runs.tape import Entry
from omni_thinker.studies.units import Unit


@dataclass(frozen=True, slots=True)
class Order:
    """A unit to be worked on. attempt: from 1. entries: what the journal has of it and of its inputs, by their ids."""

    unit: Unit
    attempt: int
    inputs: tuple[Unit, ...]
    entries: Mapping[str, Sequence[Entry]]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a log."""

    log: str
    text: str


@dataclass(frozen=True, slots=True)
class Written:
    """A line of the journal. `done` is called once it is on disk; the worker waits for it. mark: what the judge had
    counted for the unit until then, see `JudgeOwner.keep`."""

    entry: Entry
    done: Callable[[], object]
    mark: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """A line that stays, or with `moment` the line of the moment."""

    text: str
    moment: bool = False


@dataclass(frozen=True, slots=True)
class Did:
    """Work was done: `count` of a kind (`units.WORK`) in `seconds`; with `skipped` it won't be needed."""

    kind: str
    count: int
    seconds: float = 0.0
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The unit has ended. where: the machine or process that it was worked on; seconds: how long it took there."""

    where: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Broke:
    """The attempt has failed. final: what stops the study; None where another attempt may help."""

    where: str
    why: str
    final: BaseException | None = None


Message = Row | Written | Said | Did | Ended | Broke


@dataclass(frozen=True, slots=True)
class Told:
    """A message about an attempt at a unit."""

    unit: str
    attempt: int
    message: Message


class Crew(Protocol):
    """Workers. One thread calls these methods."""

    @property
    def size(self) -> int:
        """Units that can be worked on at a time. Raises UserError where no worker is left that could."""

    @property
    def near(self) -> Collection[int]:
        """Seeds whose model a free worker holds; none where that makes no difference or isn't known."""

    def start(self, order: Order) -> None:
        """Have a worker begin."""

    def wait(self) -> list[Told]:
        """What workers have said since, in order; comes back after a moment where they say nothing."""

    def stop(self) -> None:
        """Ask all workers to keep what they have, and to say that their units broke off."""

    def close(self) -> None:
        """End all workers at once."""


def caller(unit: str, attempt: int) -> str:
    """How the judge's owner calls an attempt at a unit."""
    return f"{unit} {attempt}"
