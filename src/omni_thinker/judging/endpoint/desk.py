"""Where questions to one endpoint get their turn: what is known already, how many at a time, how fast, at what cost.

`LocalDesk` is the desk of one process. Where several processes ask, one of them owns it and the others have a
`judging.shared.desk.SharedDesk`."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.errors import UserError
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.endpoint.causes import NoReply
from omni_thinker.judging.limits import BudgetReached, Meter, Usage
from omni_thinker.models.home import home
from omni_thinker.recipe import EndpointSpec

_BYTES_PER_TOKEN = 2
"""A low guess, so that an estimate of tokens is a high one."""
LATE_S = 1.0
"""How old a reservation may be where there are limits a minute: a request more in a later minute were one too many."""


def most_tokens(text: str) -> int:
    """No question of this text has more tokens: one is at least one byte."""
    return len(text.encode()) + 16


def likely_tokens(most: int) -> int:
    """About how many they are; rather too many."""
    return most // _BYTES_PER_TOKEN


@dataclass(eq=False)
class Turn:
    """A question that is being asked by whoever holds this. `most`: tokens of it.

    `number`: the reservation for its next request, 0 for none. `waited`: seconds of its deadline that are gone."""

    key: str
    most: int
    number: int = 0
    waited: float = 0.0


class Desk(Protocol):
    """What a client needs. `begin` ... `leave` are called in one event loop; the rest in any thread."""

    async def begin(self, key: str, most: int, *, unread: bool = False) -> Reply | Turn:
        """The reply that is known, or that somebody else is getting; or the turn to ask, with a reservation. `unread`:
        a reply known before couldn't be read. Raises NoReply or BudgetReached."""

    async def reserve(self, turn: Turn) -> None:
        """Wait until one more request may be sent; its reservation is `turn.number`. Raises BudgetReached."""

    def settle(self, turn: Turn, used: tuple[int, int]) -> None:
        """The reservation's reply has arrived and is of no use, but costs tokens (in, out)."""

    def release(self, turn: Turn, *, lost: bool, sent: bool) -> None:
        """The reservation's request has failed, as in `Meter.release`."""

    async def end(self, turn: Turn, reply: Reply, prompt_version: str) -> None:
        """The question has its reply: settled and kept when this returns."""

    def fail(self, turn: Turn, cause: NoReply | BudgetReached) -> None:
        """The question has none, and whoever waits for the same one has none either."""

    def leave(self, turn: Turn) -> None:
        """Nobody asks any more. Whoever waits for the same question has the turn."""

    @property
    def reached(self) -> bool:
        """Whether a request was refused because of the budget."""

    @property
    def usage(self) -> Usage: ...

    def metrics(self) -> dict[str, float]:
        """Cost since the start, and the share of replies that came from the cache; names begin with `judge/`."""

    def state(self) -> dict[str, Any]:
        """The counts as plain JSON, for `restore`."""

    def restore(self, state: Mapping[str, Any]) -> None: ...


class LocalDesk:
    """The limits, the meter and the cache themselves. Its questions live in the first event loop that asks one."""

    def __init__(self, spec: EndpointSpec, cache: JudgeCache | None, meter: Meter, late_s: float = 0.0) -> None:
        """`late_s`: seconds from a reservation to its request, at most, where they aren't in one process. Raises
        UserError where the library of rate limits is missing."""
        try:
            from aiolimiter import AsyncLimiter
        except ImportError:
            raise UserError(
                "a judge behind an API needs aiolimiter; run: pip install openai tenacity aiolimiter", key="judge"
            ) from None
        self.spec, self.cache, self.meter = spec, cache, meter
        self._at_once = asyncio.Semaphore(spec.concurrency)
        self._per_minute = _per_minute(AsyncLimiter, spec.requests_per_minute, 1 / 60, late_s)
        self._tokens_per_minute = _per_minute(AsyncLimiter, spec.tokens_per_minute, 1 / 2, late_s)
        self._asked: dict[str, asyncio.Future[Reply | NoReply | BudgetReached | None]] = {}

    async def begin(self, key: str, most: int, *, unread: bool = False) -> Reply | Turn:
        known = self._known(key, unread)
        if known is not None:
            return known
        while (asked := self._asked.get(key)) is not None:  # the same question, asked twice at a time, is asked once
            found = await asyncio.shield(asked)
            if isinstance(found, Reply):
                return found
            if found is not None:
                raise type(found)(str(found))
        turn = Turn(key, most)
        self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            await self._at_once.acquire()
        except BaseException:
            self._answer(key, None)
            raise
        began = time.monotonic()
        try:
            if self.hurried:
                await asyncio.wait_for(self.reserve(turn), self.spec.deadline_s)
            else:  # nothing to wait for, and so no task for it
                await self.reserve(turn)
        except TimeoutError:
            cause = NoReply(f"no reply within {self.spec.deadline_s:g} s")
            self.fail(turn, cause)
            raise cause from None
        except BudgetReached as exc:
            self.fail(turn, exc)
            raise
        except BaseException:
            self.leave(turn)
            raise
        turn.waited = time.monotonic() - began
        return turn

    async def reserve(self, turn: Turn) -> None:
        if turn.number:
            return
        if self._per_minute:
            await self._per_minute.acquire()
        if self._tokens_per_minute:
            tokens = likely_tokens(turn.most) + self.spec.max_tokens
            await self._tokens_per_minute.acquire(min(tokens, self._tokens_per_minute.max_rate))
        turn.number = self.meter.reserve(turn.most, self.spec.max_tokens)

    def settle(self, turn: Turn, used: tuple[int, int]) -> None:
        if turn.number:
            self.meter.settle(turn.number, *used)
            turn.number = 0

    def release(self, turn: Turn, *, lost: bool, sent: bool) -> None:
        if turn.number:
            self.meter.release(turn.number, lost=lost, sent=sent)
            turn.number = 0

    async def end(self, turn: Turn, reply: Reply, prompt_version: str) -> None:
        self.settle(turn, (reply.input_tokens, reply.output_tokens))
        if self.cache is not None:
            self.cache.put(turn.key, reply, model=self.spec.model, prompt_version=prompt_version)
        self._close(turn, reply)

    def fail(self, turn: Turn, cause: NoReply | BudgetReached) -> None:
        self.release(turn, lost=False, sent=False)
        self._close(turn, cause)

    def leave(self, turn: Turn, *, lost: bool = False) -> None:
        """`lost`: a request may be under way of which nobody will hear any more."""
        self.release(turn, lost=lost, sent=lost)
        self._close(turn, None)

    @property
    def hurried(self) -> bool:
        """Whether a reservation must be used at once, since there is a limit a minute."""
        return self._per_minute is not None or self._tokens_per_minute is not None

    @property
    def reached(self) -> bool:
        return self.meter.reached

    @property
    def usage(self) -> Usage:
        return self.meter.usage

    def metrics(self) -> dict[str, float]:
        usage, cache = self.usage, self.cache
        metrics = {
            "judge/requests": float(usage.requests),
            "judge/tokens": float(usage.input_tokens + usage.output_tokens),
            "judge/money": usage.money,
        }
        if cache is not None:
            metrics["judge/cache_hits"] = cache.hits / max(1, cache.hits + cache.misses)
        return metrics

    def state(self) -> dict[str, Any]:
        looked_up = [self.cache.hits, self.cache.misses] if self.cache is not None else []
        return {"usage": asdict(self.usage), "cache": looked_up}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.meter.restore(Usage(**state["usage"]))
        if self.cache is not None and state["cache"]:
            self.cache.hits, self.cache.misses = state["cache"]

    def _known(self, key: str, unread: bool) -> Reply | None:
        """The cached reply. One that can't be read (an earlier version kept those, too) is dropped."""
        if self.cache is None:
            return None
        if unread:
            self.cache.drop(key)
            return None
        return self.cache.get(key)

    def _close(self, turn: Turn, found: Reply | NoReply | BudgetReached | None) -> None:
        self._at_once.release()
        self._answer(turn.key, found)

    def _answer(self, key: str, found: Reply | NoReply | BudgetReached | None) -> None:
        asked = self._asked.pop(key)
        if not asked.done():  # as it is where its loop was torn down
            asked.set_result(found)


def open_desk(spec: EndpointSpec, late_s: float = 0.0) -> LocalDesk:
    """The desk of an endpoint, with its cache. `late_s`: as of LocalDesk. Raises UserError where the cache can't be
    opened."""
    path = Path(spec.cache).expanduser() if spec.cache else default_cache()
    cache = None if spec.cache == "none" else JudgeCache(path)
    return LocalDesk(spec, cache, Meter(spec.budget, spec.price), late_s)


def default_cache() -> Path:
    """Where judges' replies are kept for all runs."""
    return home() / "judge.sqlite"


def _per_minute(limiter: Any, limit: float | None, share: float, late_s: float) -> Any:
    """A leaky bucket that holds `share` of a minute's limit, and with it stays under the limit in every minute, also
    where what it lets through comes up to `late_s` seconds later."""
    if limit is None:
        return None
    bucket = max(1.0, share * limit)
    leak = max(limit - bucket, limit / 2) / (60 + late_s)
    return limiter(bucket, bucket / leak)
