"""A budget of hours: when it is spent, a run ends as it does by SIGTERM, after the step under way, which is kept."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from omni_thinker.errors import UserError

_AGAIN_S = 60.0
"""After which the end is asked for again: what is raised within a finalizer is swallowed."""


class OutOfTime(BaseException):
    """The budget is spent. No Exception, so that it passes where a signal's would."""


@contextmanager
def within(hours: float | None) -> Iterator[Callable[[], None]]:
    """Raises OutOfTime in here after so many hours, at the latest when what it yields is called. None: no limit.

    Raises UserError where signals don't arrive."""
    if hours is None:
        yield lambda: None
        return
    if threading.current_thread() is not threading.main_thread():
        raise UserError("needs the main thread, where signals arrive", key="--hours")
    before, spent, left = signal.getsignal(signal.SIGTERM), threading.Event(), threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if spent.is_set():
            raise OutOfTime
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check() -> None:
        if spent.is_set():
            raise OutOfTime

    def ring() -> None:
        seconds = hours * 3600
        while not left.wait(seconds):
            spent.set()
            os.kill(os.getpid(), signal.SIGTERM)
            seconds = _AGAIN_S

    signal.signal(signal.SIGTERM, handle)
    try:
        threading.Thread(target=ring, daemon=True).start()
        yield check
    finally:
        left.set()
        signal.signal(signal.SIGTERM, before)
