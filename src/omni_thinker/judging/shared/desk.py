"""The desk of a process that asks for its turns elsewhere: one message before a request, and one after it."""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omni_thinker.judging.cache import Reply
from omni_thinker.judging.endpoint.causes import NoReply
from omni_thinker.judging.endpoint.desk import LATE_S, Turn
from omni_thinker.judging.limits import BudgetReached, Usage

if TYPE_CHECKING:
    from omni_thinker.judging.shared.share import Call


@dataclass(eq=False)
class _Turn(Turn):
    """`ticket`: its name in messages. `told`: the last message about it, which the next one must not overtake. `good`:
    until when its reservation may be used (time.monotonic)."""

    ticket: str = ""
    told: "Future[Any] | None" = None
    good: float = math.inf

    def granted(self, asked: float, found: Mapping[str, Any]) -> None:
        """There is a reservation, asked for at `asked`; messages were under way when the owner didn't hold them."""
        now = time.monotonic()
        self.number = found["number"]
        self.good = now + LATE_S - max(0.0, now - asked - found["held"]) if found["hurried"] else math.inf


class SharedDesk:
    """A `Desk` whose limits, budget and cache are those of a `JudgeOwner`."""

    def __init__(self, call: "Call", counts: Callable[[], Mapping[str, Any]]) -> None:
        """`counts`: as `Share.counts`."""
        self._call, self._counts = call, counts
        self._name, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        self._refused = False

    async def begin(self, key: str, most: int, *, unread: bool = False) -> Reply | Turn:
        turn = _Turn(key, most, ticket=f"{self._name}-{next(self._numbers)}")
        asked = time.monotonic()
        try:
            found = self._read(await self._asked("begin", turn, {"key": key, "most": most, "unread": unread}))
        except asyncio.CancelledError:
            self._tell("leave", turn)
            raise
        if "reply" in found:
            return Reply(*found["reply"])
        turn.granted(asked, found)
        turn.waited = found["waited"]
        return turn

    async def reserve(self, turn: Turn) -> None:
        assert isinstance(turn, _Turn)
        if turn.number and time.monotonic() < turn.good:
            return
        self.release(turn, lost=False, sent=False)
        asked = time.monotonic()
        turn.granted(asked, self._read(await self._asked("reserve", turn, {})))

    def settle(self, turn: Turn, used: tuple[int, int]) -> None:
        if turn.number:
            turn.number = 0
            self._tell("settle", turn, used=list(used))

    def release(self, turn: Turn, *, lost: bool, sent: bool) -> None:
        if turn.number:
            turn.number = 0
            self._tell("release", turn, lost=lost, sent=sent)

    async def end(self, turn: Turn, reply: Reply, prompt_version: str) -> None:
        turn.number = 0
        words = [reply.text, reply.input_tokens, reply.output_tokens]
        await self._asked("end", turn, {"reply": words, "prompt_version": prompt_version})

    def fail(self, turn: Turn, cause: NoReply | BudgetReached) -> None:
        self._tell("fail", turn, why=str(cause), spent=isinstance(cause, BudgetReached))

    def leave(self, turn: Turn) -> None:
        self._tell("leave", turn)

    @property
    def reached(self) -> bool:
        return self._refused or bool(self._counts()["reached"])

    @property
    def usage(self) -> Usage:
        return Usage(**self._counts()["usage"])

    def metrics(self) -> dict[str, float]:
        return dict(self._counts()["desk"])

    def state(self) -> dict[str, Any]:
        """Nothing: the owner keeps it."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing, as in `state`."""

    def _read(self, found: Any) -> Mapping[str, Any]:
        """An answer, or what it says went wrong. Raises NoReply or BudgetReached."""
        if "spent" in found:
            self._refused = True
            raise BudgetReached(found["spent"])
        if "failed" in found:
            raise NoReply(found["failed"])
        answer: Mapping[str, Any] = found
        return answer

    async def _asked(self, method: str, turn: Turn, arguments: dict[str, Any]) -> Any:
        assert isinstance(turn, _Turn)
        if turn.told is not None and not turn.told.done():
            await asyncio.shield(asyncio.wrap_future(turn.told))
        # Shielded: a future that is cancelled couldn't be filled, which is the transport's business.
        return await asyncio.shield(asyncio.wrap_future(self._call(method, {"ticket": turn.ticket, **arguments})))

    def _tell(self, method: str, turn: Turn, **arguments: Any) -> None:
        assert isinstance(turn, _Turn)
        turn.told = self._call(method, {"ticket": turn.ticket, **arguments})
