"""Stopping where nothing is lost: a first signal lets the step under way end and be kept, a second ends it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE_S = 20.0
"""That a step may still take; with a checkpoint after it a run ends within 30 s."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether somebody wants the run to end."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._number: int | None = None
        self._before: dict[int, Any] = {}
        """Handlers that this one stands in for."""

    @property
    def wanted(self) -> bool:
        return self._number is not None

    def leave(self) -> None:
        """End as the signal would have by itself: what handled it before raises."""
        if self._number is not None:
            self._end(self._number, None)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            self._end(self._number, frame)
            return
        self._number = number
        self._before[signal.SIGALRM] = signal.getsignal(signal.SIGALRM)
        signal.signal(signal.SIGALRM, lambda _, late: self._end(number, late))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        self._say("stopping after this step, which is saved; interrupt again to stop at once")

    def _end(self, number: int, frame: FrameType | None) -> None:
        handler = self._before.get(number)
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt  # there was no handler, or one that did nothing


@contextmanager
def stopping(say: Callable[[str], object]) -> Iterator[Stop]:
    """Listen for signals, where this is the thread that gets them."""
    stop = Stop(say)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    stop._before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number in _SIGNALS:
            signal.signal(number, stop._heard)
        yield stop
    finally:
        if stop.wanted:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for known, handler in stop._before.items():
            signal.signal(known, handler)
