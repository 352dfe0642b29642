"""What a process that doesn't own the judge's limits and counts has in their place."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from omni_thinker.judging.shared.desk import SharedDesk
from omni_thinker.judging.tally import Tally

Call = Callable[[str, dict[str, Any]], "Future[Any]"]
"""Asks the owner: a method of `JudgeOwner.submit` and its arguments, plain JSON. Returns at once, from any thread; the
future's result is plain JSON. It must be filled in a thread that waits for nothing here."""
_ANSWER_S = 60.0
"""An owner that says nothing for so long is taken to be gone."""
_KNOWN_S = 1.0
"""How long a look at the owner's counts is good for."""
_TOLD_S, _TOLD_VERDICTS = 1.0, 64
"""Verdicts are told when the first untold one is so old, or when there are so many."""


class Share:
    """One for each process: the desk and the tally of its judge."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._seen: tuple[float, dict[str, Any]] | None = None
        self.desk = SharedDesk(call, self.counts)
        self.tally: Tally = _SharedTally(self)

    def counts(self, *, at_most_s: float = _KNOWN_S) -> dict[str, Any]:
        """The owner's counts over all processes, not older than that: `tally`, `guards`, `desk`, `usage`, `reached`."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._seen[0] > at_most_s:
                counts = self._ask("counts", {"tally": self.tally.take()})
                self._seen = time.monotonic(), counts
            return self._seen[1]

    def tell(self) -> None:
        """Pass on what was counted here. Waits for nothing."""
        self._call("tell", {"tally": self.tally.take()})

    def state(self) -> dict[str, Any]:
        """A mark for `JudgeOwner.keep`: all that was counted here until now."""
        mark: dict[str, Any] = self._ask("mark", {"tally": self.tally.take()})
        return mark

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing: it is the owner that counts on."""

    def _ask(self, method: str, arguments: dict[str, Any]) -> Any:
        return self._call(method, arguments).result(_ANSWER_S)


class _SharedTally(Tally):
    """Holds what was counted here and not told yet; what it says is the owner's."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share
        self._untold, self._since = 0, 0.0

    def points(self, points: float, length: float | None, *, steady: bool = True) -> None:
        super().points(points, length, steady=steady)
        self._tell()

    def failure(self) -> None:
        super().failure()
        self._tell()

    def take(self) -> dict[str, Any]:
        self._untold = 0
        return super().take()

    @property
    def guards(self) -> tuple[int, int]:
        guarded, asked = self._share.counts()["guards"]
        return guarded, asked

    def restore_guards(self, guarded: int, asked: int) -> None:
        """Nothing, as in `restore`."""

    def state(self) -> dict[str, Any]:
        return self._share.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._share.restore(state)

    def metrics(self) -> dict[str, float]:
        return dict(self._share.counts()["tally"])

    def _tell(self) -> None:
        if not self._untold:
            self._since = time.monotonic()
        self._untold += 1
        if self._untold >= _TOLD_VERDICTS or time.monotonic() - self._since > _TOLD_S:
            self._share.tell()
