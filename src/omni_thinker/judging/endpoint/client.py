"""One question to an OpenAI-compatible endpoint: cached, limited, retried, paid for at most once.

The SDK's client lives in an event loop of its own thread: trainers call `asyncio.run` once a step, and connections
don't outlive a loop. Work is handed over by asyncio: anyio's own hand-over would block the caller's loop for each."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from omni_thinker.errors import UserError
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.endpoint.address import NO_KEY, check_address, secret
from omni_thinker.judging.endpoint.causes import NoReply, TryAgain
from omni_thinker.judging.endpoint.outage import Away, Outage
from omni_thinker.judging.endpoint.request import Question, Requests
from omni_thinker.judging.limits import Meter
from omni_thinker.judging.verdicts import NoVerdict
from omni_thinker.portal import open_portal
from omni_thinker.recipe import EndpointSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_T = TypeVar("_T")


class ChatClient:
    """Asks; `ask` may be awaited from any event loop.

    Raises UserError for an endpoint without https that isn't on this machine, and for a key that isn't there."""

    def __init__(self, spec: EndpointSpec, cache: JudgeCache | None, meter: Meter) -> None:
        self.spec, self.cache, self.meter = spec, cache, meter
        check_address(spec)
        self._key = secret(spec)
        self._pending: dict[str, asyncio.Task[Reply]] = {}
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
            self._requests = Requests(spec, self.meter, client)
        except ImportError as exc:
            raise UserError(
                f"a judge behind an API needs {exc.name}; run: pip install openai tenacity aiolimiter", key="judge"
            ) from None
        self._at_once = asyncio.Semaphore(spec.concurrency)
        self._outage = Outage(f"the judge at {spec.base_url}", spec.patience_s)
        return client

    async def _shut(self) -> None:
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
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
        known = self._known(key, question)
        if known is not None:
            return known
        if key not in self._pending:  # the same question, asked twice at a time, is asked once
            task = asyncio.ensure_future(self._fresh(key, question, prompt_version))
            self._pending[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(self._pending[key])

    def _known(self, key: str, question: Question) -> Reply | None:
        """The cached reply. One that can't be read (an earlier version kept those, too) is dropped."""
        known = self.cache.get(key) if self.cache is not None else None
        if self.cache is None or known is None:
            return None
        try:
            question.read(known.text)
        except NoVerdict:
            self.cache.drop(key)
            return None
        return known

    def _forget(self, key: str, done: asyncio.Task[Reply]) -> None:
        self._pending.pop(key, None)
        if not done.cancelled():
            done.exception()  # who asked has it, or has gone

    async def _fresh(self, key: str, question: Question, prompt_version: str) -> Reply:
        async with self._at_once:
            reply = await self._patient(question)
        if self.cache is not None:
            self.cache.put(key, reply, model=self.spec.model, prompt_version=prompt_version)
        return reply

    async def _patient(self, question: Question) -> Reply:
        """The reply, also where the server is away for a while."""
        outage = self._outage
        while True:
            alone = outage.on
            async with outage.scout if alone else contextlib.nullcontext():
                if alone and not outage.on:
                    continue  # it is back: all at once again
                if outage.hopeless:
                    raise NoReply(f"the server was away for {self.spec.patience_s:g} s")
                if alone:
                    await outage.wait()
                try:
                    reply = await asyncio.wait_for(self._retried(question), self.spec.deadline_s)
                except TimeoutError:
                    raise NoReply(f"no reply within {self.spec.deadline_s:g} s") from None
                except Away as exc:
                    outage.began(str(exc))
                    continue
                outage.over()
                return reply

    async def _retried(self, question: Question) -> Reply:
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type

        attempts = AsyncRetrying(retry=retry_if_exception_type(TryAgain), stop=self._enough, wait=_wait)
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._requests.reply(question)
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


def _wait(state: Any) -> float:
    """Seconds to wait: what the server asked for, else exponential backoff with full jitter."""
    from tenacity import wait_random_exponential

    requested = getattr(state.outcome.exception(), "wait", None)
    return float(wait_random_exponential(multiplier=0.25, max=20.0)(state)) if requested is None else requested
