"""Waiting for a server that is away."""

import asyncio
import logging
import time

_log = logging.getLogger(__name__)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 20.0
"""First and longest wait between two checks whether the server is back."""


class Away(Exception):
    """The server can't be reached; nothing is known of the question."""


class Outage:
    """What all questions of one client know of their server. Lives in the client's event loop.

    While the server is away, one question at a time goes and looks, holding `scout`; the others wait for what it finds.
    """

    def __init__(self, server: str, patience_s: float) -> None:
        self._server, self._patience_s = server, patience_s
        self._since: float | None = None
        self._looked = 0.0
        self._wait = _FIRST_WAIT_S
        self._met = False
        self.scout = asyncio.Lock()

    @property
    def on(self) -> bool:
        return self._since is not None

    @property
    def bearable(self) -> bool:
        """Whether waiting is any use: an address that has never answered is more likely wrong."""
        return self._met and self._patience_s > 0

    @property
    def hopeless(self) -> bool:
        """Patience is at its end, and somebody has looked just now."""
        return self._left() <= 0 and time.monotonic() - self._looked < _LONGEST_WAIT_S

    def began(self, why: str) -> None:
        """A question has found the server away."""
        self._looked = time.monotonic()
        if self._since is None:
            self._since, self._wait = self._looked, _FIRST_WAIT_S
            _log.warning("%s can't be reached (%s); waiting up to %.0f s for it", self._server, why, self._patience_s)

    async def wait(self) -> None:
        """Wait until the next check is due. Called by the question that checks."""
        await asyncio.sleep(max(0.0, min(self._wait, self._left())))
        self._wait = min(_LONGEST_WAIT_S, 2 * self._wait)

    def over(self) -> None:
        """The server has answered."""
        self._met = True
        if self._since is not None:
            _log.warning("%s is back after %.0f s", self._server, time.monotonic() - self._since)
            self._since = None

    def _left(self) -> float:
        return self._patience_s if self._since is None else self._patience_s - (time.monotonic() - self._since)
