"""Live progress on stderr: phase, step, reward by task, tokens a second, time left.

A terminal gets one line that changes in place; a log gets a line every so often."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from omni_thinker.errors import printable

LOG_EVERY_SECONDS = 15.0

_logger = logging.getLogger("omni_thinker")


class Listener(Protocol):
    """Who is told how far a unit of work is."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def show(self, text: str, *, always: bool = False) -> None:
        """The line of the moment."""

    def unit(self, kind: str, seconds: float, count: int = 1) -> None:
        """`count` units of `kind` took `seconds`."""

    def skip(self, kind: str, count: int) -> None:
        """`count` expected units won't be needed."""


class Silent:
    """Listens, and says nothing: what is told is known already."""

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, text: str, *, always: bool = False) -> None:
        """Nothing."""

    def unit(self, kind: str, seconds: float, count: int = 1) -> None:
        """Nothing."""

    def skip(self, kind: str, count: int) -> None:
        """Nothing."""


class Progress:
    """Counts work in units (steps and evaluations of each kind) so that the time left can be told.

    `prior[kind]` is a guess of a unit's seconds, used until the first one is measured. As a context manager it also
    says what any room warns of."""

    def __init__(self, prior: Mapping[str, float] | None = None, *, console: Console | None = None) -> None:
        self.prior = dict(prior or {})
        self.expected, self.done, self.spent = dict[str, int](), dict[str, int](), dict[str, float]()
        self.console = console or Console(stderr=True, highlight=False)
        self.forecast: Callable[[], float] | None = None
        """Seconds to the end, where somebody knows better, as with several workers."""
        self.picture: Callable[[], RenderableType] | None = None
        """What a terminal shows above the line of the moment."""
        self.begin = time.monotonic()
        self._line, self._measured = "", self.begin
        # Drawn anew four times a second, so that the time left goes down between two steps as well.
        self._live = Live(console=self.console, refresh_per_second=4, transient=True, get_renderable=self._moment)
        self._logged = self.begin
        self._handler = _Sayer(self)

    def __enter__(self) -> "Progress":
        _logger.addHandler(self._handler)
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
        _logger.removeHandler(self._handler)

    def expect(self, expected: Mapping[str, int]) -> None:
        """`expected[kind]` is how many units of a kind the run will do in all."""
        self.expected = dict(expected)
        self.done, self.spent = dict.fromkeys(expected, 0), dict.fromkeys(expected, 0.0)

    def say(self, text: str) -> None:
        """A line that stays."""
        line = printable(f"[{_clock(time.monotonic() - self.begin)}] {text}")
        self.console.print(Text(line), soft_wrap=True)

    def show(self, text: str, *, always: bool = False) -> None:
        """The line of the moment."""
        self._line = text
        line = self._with_time_left()
        if self.console.is_terminal:
            self._live.refresh()
        elif always or time.monotonic() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            self.say(line)

    def _with_time_left(self) -> str:
        left = self.forecast() if self.forecast else max(0.0, self.left() - (time.monotonic() - self._measured))
        return f"{self._line} | {_clock(left)} left" if self.expected else self._line

    def _moment(self) -> RenderableType:
        line = Text(printable(f"[{_clock(time.monotonic() - self.begin)}] {self._with_time_left()}"))
        return Group(self.picture(), line) if self.picture else line

    def unit(self, kind: str, seconds: float, count: int = 1) -> None:
        """`count` units of `kind` took `seconds`."""
        self.done[kind] = self.done.get(kind, 0) + count
        self.spent[kind] = self.spent.get(kind, 0.0) + seconds
        self._measured = time.monotonic()

    def skip(self, kind: str, count: int) -> None:
        """`count` expected units won't be needed."""
        self.expected[kind] = max(self.done[kind], self.expected[kind] - count)

    def pace(self) -> dict[str, float]:
        """Seconds of a unit of each kind: as measured so far, or by the guess. Where what was measured took longer than
        it was guessed to, or less, the other guesses are off by as much."""
        guessed = sum(self.prior.get(kind, 1.0) * count for kind, count in self.done.items())
        scale = sum(self.spent.values()) / guessed if guessed else 1.0
        return {
            kind: self.spent[kind] / self.done[kind] if self.done[kind] else scale * self.prior.get(kind, 1.0)
            for kind in self.expected
        }

    def left(self) -> float:
        """Seconds that the rest will take at the pace so far, one unit after another."""
        pace = self.pace()
        return sum(max(0, expected - self.done[kind]) * pace[kind] for kind, expected in self.expected.items())


class _Sayer(logging.Handler):
    """Warnings of the rooms below, which know no progress, as lines that stay."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(record.getMessage())


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on a terminal while something takes its time; nothing in a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes:02}:{seconds_left:02}"
