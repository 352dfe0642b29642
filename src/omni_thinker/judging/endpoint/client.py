"""One question to an OpenAI-compatible endpoint: cached, limited, retried, paid for at most once.

The SDK's client lives in an event loop of its own thread: trainers call `asyncio.run` once a step, and connections
don't outlive a loop. Work is handed over by asyncio: anyio's own hand-over would block the caller's loop for each."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from omni_thinker.errors import UserError
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.endpoint.address import NO_KEY, check_address, secret
from omni_thinker.judging.endpoint.causes import NoReply, TryAgain
from omni_thinker.judging.endpoint.desk import Desk, Turn, most_tokens
from omni_thinker.judging.endpoint.outage import Away, Outage
from omni_thinker.judging.endpoint.request import Question, Requests
from omni_thinker.judging.limits import BudgetReached
from omni_thinker.judging.verdicts import NoVerdict
from omni_thinker.portal import open_portal
from omni_thinker.recipe import EndpointSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_T = TypeVar("_T")


class ChatClient:
    """Asks; `ask` may be awaited from any event loop.

    Raises UserError for an endpoint without https that isn't on this machine, and for a key that isn't there."""

    def __init__(self, spec: EndpointSpec, desk: Desk) -> None:
        self.spec, self.desk = spec, desk
        check_address(spec)
        self._key = secret(spec)
        self._pending: set[asyncio.Task[Reply]] = set()
        self._closing = False
        self._portal, end = open_portal("omni-judge")
        self._end_thread = weakref.finalize(self, end)  # at the latest when Python ends
        self._loop = self._portal.call(asyncio.get_running_loop)
        self._client = self._portal.call(self._open)

    async def ask(
        self,
        text: str,
        schema: Mapping[str, Any],
        read: Callable[[str], _T],
        *,
        prompt_version: str,
        digit: bool = False,
    ) -> _T:
        """What `read` makes of the reply to one user message. `digit`: one digit is wanted, with its log-probs where
        the server tells them. A reply for which `read` raises NoVerdict is asked for again, and is never cached.

        Raises NoReply or BudgetReached."""
        question = Question(text.encode("utf-8", "replace").decode(), schema, read, digit)
        work = self._ask(question, prompt_version)
        return read((await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))).text)

    def close(self) -> None:
        """Close connections and end the thread. What is being asked is given up."""
        if self._end_thread.alive:
            self._portal.call(self._shut)
            self._end_thread()

    async def _open(self) -> "AsyncOpenAI":
        try:
            from openai import AsyncOpenAI

            spec = self.spec
            client = AsyncOpenAI(base_url=spec.base_url, api_key=self._key, timeout=spec.timeout_s, max_retries=0)
            self._requests = Requests(spec, self.desk, client)
        except ImportError as exc:
            raise UserError(
                f"a judge behind an API needs {exc.name}; run: pip install openai tenacity aiolimiter", key="judge"
            ) from None
        self._outage = Outage(f"the judge at {spec.base_url}", spec.patience_s)
        return client

    async def _shut(self) -> None:
        self._closing = True
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)
        await self._client.close()

    async def _ask(self, question: Question, prompt_version: str) -> Reply:
        spec = self.spec
        key = JudgeCache.key(
            base_url=spec.base_url,
            model=spec.model,
            prompt=prompt_version,
            text=question.text,
            temperature=spec.temperature,
            max_tokens=spec.max_tokens,
            structured=spec.structured,
            digit=question.digit,
        )
        turn = await self.desk.begin(key, most_tokens(question.text))
        if isinstance(turn, Reply) and not _readable(question, turn):
            turn = await self.desk.begin(key, most_tokens(question.text), unread=True)
        if isinstance(turn, Reply):
            return turn
        # A task of its own: what is being paid for is kept, also where nobody waits for it any more.
        task = asyncio.ensure_future(self._fresh(turn, question, prompt_version))
        self._pending.add(task)
        task.add_done_callback(partial(self._ended, turn))
        if self._closing:
            task.cancel()
        return await asyncio.shield(task)

    async def _fresh(self, turn: Turn, question: Question, prompt_version: str) -> Reply:
        reply = await self._patient(question, turn)
        await self.desk.end(turn, reply, prompt_version)
        return reply

    def _ended(self, turn: Turn, done: asyncio.Task[Reply]) -> None:
        """Give the turn back where there is no reply. Not within the task: one that is cancelled may never begin."""
        self._pending.discard(done)
        cause = None if done.cancelled() else done.exception()
        if isinstance(cause, NoReply | BudgetReached):
            self.desk.fail(turn, cause)
        elif done.cancelled() or cause is not None:
            self.desk.leave(turn)

    async def _patient(self, question: Question, turn: Turn) -> Reply:
        """The reply, also where the server is away for a while."""
        outage = self._outage
        while True:
            alone = outage.on
            if alone:
                self.desk.release(turn, lost=False, sent=False)  # in another minute it were a request too many
            async with outage.scout if alone else contextlib.nullcontext():
                if alone and not outage.on:
                    continue  # it is back: all at once again
                if outage.hopeless:
                    raise NoReply(f"the server was away for {self.spec.patience_s:g} s")
                if alone:
                    await outage.wait()
                left, turn.waited = self.spec.deadline_s - turn.waited, 0.0
                try:
                    reply = await asyncio.wait_for(self._retried(question, turn), left)
                except TimeoutError:
                    raise NoReply(f"no reply within {self.spec.deadline_s:g} s") from None
                except Away as exc:
                    outage.began(str(exc))
                    continue
                outage.over()
                return reply

    async def _retried(self, question: Question, turn: Turn) -> Reply:
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type

        attempts = AsyncRetrying(retry=retry_if_exception_type(TryAgain), stop=self._enough, wait=_wait)
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._requests.reply(question, turn)
        except RetryError as exc:
            cause = exc.last_attempt.exception()
            if isinstance(cause, TryAgain) and cause.away and self._outage.bearable:
                raise Away(self._masked(cause)) from None
            count = exc.last_attempt.attempt_number
            raise NoReply(f"{self._masked(cause)}, {count} times" if count > 1 else self._masked(cause)) from None
        except NoReply as exc:
            raise NoReply(self._masked(exc)) from None
        raise NoReply("no attempt was made")

    def _enough(self, state: Any) -> bool:
        most = getattr(state.outcome.exception(), "most", None)
        return int(state.attempt_number) >= min(self.spec.attempts, most or self.spec.attempts)

    def _masked(self, cause: BaseException | None) -> str:
        """The cause, with the API key masked."""
        return str(cause) if self._key == NO_KEY else str(cause).replace(self._key, "***")


def _readable(question: Question, known: Reply) -> bool:
    try:
        question.read(known.text)
    except NoVerdict:
        return False
    return True


def _wait(state: Any) -> float:
    """Seconds to wait: what the server asked for, else exponential backoff with full jitter."""
    from tenacity import wait_random_exponential

    requested = getattr(state.outcome.exception(), "wait", None)
    return float(wait_random_exponential(multiplier=0.25, max=20.0)(state)) if requested is None else requested
