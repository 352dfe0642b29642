"""One question to an OpenAI-compatible endpoint: cached, limited, retried, paid for at most once.

The SDK's client lives in an event loop of its own thread: trainers call `asyncio.run` once a step, and connections
don't outlive a loop. Work is handed over by asyncio: anyio's own hand-over would block the caller's loop for each."""

import asyncio
import contextlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from omni_thinker.errors import UserError
from omni_thinker.judging.cache import JudgeCache, Reply
from omni_thinker.judging.limits import Meter
from omni_thinker.judging.outage import Away, Outage
from omni_thinker.portal import open_portal
from omni_thinker.recipe import EndpointSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RETRIED = (408, 409, 425, 429)
_AWAY = (502, 503, 504)
_LONGEST_WAIT_S = 60.0
_TOP_LOGPROBS = 20
"""Likeliest tokens asked for; the most that hosted servers tell."""
_DIGIT_TOKENS = 4
_MOST_TOKENS = 1 << 40
CHANCES = "\0chances "
"""How the text of a reply begins that holds the first token's probabilities instead of words."""
_BYTES_PER_TOKEN = 2
"""A low guess, so that an estimate of tokens is a high one."""


class NoReply(Exception):
    """The endpoint gave no usable reply, after all retries."""


class ChatClient:
    """Asks; `ask` may be awaited from any event loop.

    Raises UserError for an endpoint without https that isn't on this machine, and for a key that isn't there."""

    def __init__(self, spec: EndpointSpec, cache: JudgeCache | None, meter: Meter) -> None:
        self.spec, self.cache, self.meter = spec, cache, meter
        _check_address(spec)
        self._key = _secret(spec)
        self._structured = spec.structured != "text"
        self._pending: dict[str, asyncio.Task[Reply]] = {}
        self._portal, end = open_portal("omni-judge")
        self._end_thread = weakref.finalize(self, end)  # at the latest when Python ends
        self._loop = self._portal.call(asyncio.get_running_loop)
        self._client = self._portal.call(self._open)

    async def ask(self, text: str, schema: Mapping[str, Any], *, prompt_version: str, digit: bool = False) -> Reply:
        """The reply to one user message. `digit`: one digit is wanted, with its log-probs where the server tells them.

        Raises NoReply or BudgetReached."""
        work = self._ask(text.encode("utf-8", "replace").decode(), schema, prompt_version, digit)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Close connections and end the thread. What is being asked is given up."""
        if self._end_thread.alive:
            self._portal.call(self._shut)
            self._end_thread()

    async def _open(self) -> "AsyncOpenAI":
        try:
            from aiolimiter import AsyncLimiter
            from openai import AsyncOpenAI
        except ImportError as exc:
            raise UserError(
                f"a judge behind an API needs {exc.name}: pip install 'omni-thinker[judge]'", key="judge"
            ) from None
        spec = self.spec
        self._at_once = asyncio.Semaphore(spec.concurrency)
        self._outage = Outage(f"the judge at {spec.base_url}", spec.patience_s)
        self._requests = _per_minute(AsyncLimiter, spec.requests_per_minute, 1 / 60)
        self._tokens = _per_minute(AsyncLimiter, spec.tokens_per_minute, 1 / 2)
        return AsyncOpenAI(base_url=spec.base_url, api_key=self._key, timeout=spec.timeout_s, max_retries=0)

    async def _shut(self) -> None:
        for task in self._pending.values():
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._client.close()

    async def _ask(self, text: str, schema: Mapping[str, Any], prompt_version: str, digit: bool) -> Reply:
        spec = self.spec
        key = JudgeCache.key(
            base_url=spec.base_url,
            model=spec.model,
            prompt=prompt_version,
            text=text,
            temperature=spec.temperature,
            max_tokens=spec.max_tokens,
            structured=spec.structured,
            digit=digit,
        )
        known = self.cache.get(key) if self.cache is not None else None
        if known is not None:
            return known
        if key not in self._pending:  # the same question, asked twice at a time, is asked once
            task = asyncio.ensure_future(self._fresh(key, text, schema, prompt_version, digit))
            self._pending[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(self._pending[key])

    def _forget(self, key: str, done: asyncio.Task[Reply]) -> None:
        self._pending.pop(key, None)
        if not done.cancelled():
            done.exception()  # who asked has it, or has gone

    async def _fresh(self, key: str, text: str, schema: Mapping[str, Any], prompt_version: str, digit: bool) -> Reply:
        async with self._at_once:
            reply = await self._patient(text, schema, digit)
        if self.cache is not None:
            self.cache.put(key, reply, model=self.spec.model, prompt_version=prompt_version)
        return reply

    async def _patient(self, text: str, schema: Mapping[str, Any], digit: bool) -> Reply:
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
                    reply = await asyncio.wait_for(self._retried(text, schema, digit), self.spec.deadline_s)
                except TimeoutError:
                    raise NoReply(f"no reply within {self.spec.deadline_s:g} s") from None
                except Away as exc:
                    outage.began(str(exc))
                    continue
                outage.over()
                return reply

    async def _retried(self, text: str, schema: Mapping[str, Any], digit: bool) -> Reply:
        from tenacity import AsyncRetrying, RetryError, retry_if_exception_type, stop_after_attempt

        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain), stop=stop_after_attempt(self.spec.attempts), wait=_wait
        )
        try:
            async for attempt in attempts:
                with attempt:
                    return await self._once(text, schema, digit)
        except RetryError as exc:
            cause = exc.last_attempt.exception()
            if isinstance(cause, _TryAgain) and cause.away and self._outage.bearable:
                raise Away(str(cause)) from None
            raise NoReply(f"{cause}, {self.spec.attempts} times") from None
        raise NoReply("no attempt was made")

    async def _once(self, text: str, schema: Mapping[str, Any], digit: bool) -> Reply:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        most = len(text.encode()) + 16  # a token is at least one byte
        estimate = most // _BYTES_PER_TOKEN
        if self._requests:
            await self._requests.acquire()
        if self._tokens:
            await self._tokens.acquire(min(estimate + self.spec.max_tokens, self._tokens.max_rate))
        number = self.meter.reserve(most, self.spec.max_tokens)
        lost, sent, structured = True, True, self._structured
        try:
            completion = await self._send(text, schema if structured else None, digit)
            used = _counted(completion)
            if used is None:  # an answer that isn't counted isn't free; what is no answer raises here
                self._answer(completion, digit)
                used = estimate, self.spec.max_tokens
            self.meter.settle(number, *used)  # also what is of no use was paid for
            number = 0
            return Reply(self._answer(completion, digit), *used)
        except APITimeoutError as exc:
            sent = not _unconnected(exc)
            raise _TryAgain("timed out", away=not sent) from None
        except APIStatusError as exc:
            lost = False
            status = exc.status_code
            if status in (400, 422) and structured and self.spec.structured == "auto":
                self._structured = False  # this server has no JSON schemas
                raise _TryAgain(f"status {status} for a JSON schema", wait=0.0) from None
            if status in _RETRIED or status >= 500:
                raise _TryAgain(f"status {status}", wait=_retry_after(exc), away=status in _AWAY) from None
            raise NoReply(f"status {status}: {self._short(exc)}") from None
        except APIConnectionError as exc:
            sent = not _unconnected(exc)
            raise _TryAgain(f"connection failed ({type(exc.__cause__ or exc).__name__})", away=True) from None
        except (APIError, ValueError, TypeError, AttributeError, LookupError) as exc:
            # Half a JSON object, another schema, no choices: what it was is the server's secret.
            raise _TryAgain(f"a reply that is none ({type(exc).__name__})") from None
        finally:
            if number:
                self.meter.release(number, lost=lost, sent=sent)

    @staticmethod
    def _answer(completion: Any, digit: bool) -> str:
        return (_chances(completion) if digit else None) or _text(completion)

    def _short(self, exc: Exception) -> str:
        """The server's message, with the API key masked."""
        return " ".join(str(exc).replace(self._key, "***").split())[:160]

    async def _send(self, text: str, schema: Mapping[str, Any] | None, digit: bool) -> "ChatCompletion":
        spec = self.spec
        extra: dict[str, Any] = {}
        if digit:
            extra |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
        elif schema is not None:
            extra["response_format"] = {"type": "json_schema", "json_schema": schema}
        completion: ChatCompletion = await self._client.chat.completions.create(
            model=spec.model,
            messages=[{"role": "user", "content": text}],
            temperature=spec.temperature,
            max_tokens=min(spec.max_tokens, _DIGIT_TOKENS) if digit else spec.max_tokens,
            **extra,
        )
        return completion


def _per_minute(limiter: Any, limit: float | None, share: float) -> Any:
    """A leaky bucket that holds `share` of a minute's limit, and with it stays under the limit in every minute."""
    if limit is None:
        return None
    bucket = max(1.0, share * limit)
    leak = max(limit - bucket, limit / 2) / 60
    return limiter(bucket, bucket / leak)


class _TryAgain(Exception):
    def __init__(self, what: str, wait: float | None = None, *, away: bool = False) -> None:
        """`wait`: what the server asked for. `away`: nothing says that it is this question's fault."""
        super().__init__(what)
        self.wait, self.away = wait, away


def _unconnected(exc: Exception) -> bool:
    """Whether there was no connection at all. By name: which library connects is the SDK's secret."""
    return type(exc.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _wait(state: Any) -> float:
    """Seconds to wait: what the server asked for, else exponential backoff with full jitter."""
    from tenacity import wait_random_exponential

    requested = getattr(state.outcome.exception(), "wait", None)
    return float(wait_random_exponential(multiplier=0.25, max=20.0)(state)) if requested is None else requested


def _retry_after(exc: Any) -> float | None:
    """Seconds, from either spelling of the header; dates are not used by any server known to us."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(_LONGEST_WAIT_S, max(0.0, float(exc.response.headers[name]) * unit))
        except (KeyError, ValueError):
            continue
    return None


def _chances(completion: Any) -> str | None:
    """CHANCES and {token: probability} of the first token, as JSON; None where the server tells no log-probs.

    Written as text, so that a cache holds it like any reply. Spellings that differ in white space are one token."""
    content = getattr(getattr(completion.choices[0], "logprobs", None), "content", None)
    if not content:
        return None
    chances: dict[str, float] = {}
    for option in content[0].top_logprobs or []:
        token = option.token.strip()
        chances[token] = chances.get(token, 0.0) + math.exp(min(0.0, float(option.logprob)))
    finite = {token: chance for token, chance in chances.items() if math.isfinite(chance)}
    return CHANCES + json.dumps(finite) if finite else None


def _text(completion: Any) -> str:
    text = completion.choices[0].message.content
    if not isinstance(text, str):
        raise TypeError("no text")
    # Half a surrogate pair is no text, and a reply never passes for log-probs.
    return text.lstrip("\0").encode("utf-8", "replace").decode()


def _counted(completion: Any) -> tuple[int, int] | None:
    """Tokens in and out as the server counted them, None where it doesn't."""
    usage = completion.usage
    if not usage:
        return None
    sent, answered = (min(_MOST_TOKENS, max(0, int(n))) for n in (usage.prompt_tokens, usage.completion_tokens))
    return sent, answered


def _check_address(spec: EndpointSpec) -> None:
    try:
        parts = urlsplit(spec.base_url)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as exc:
        raise UserError(f"isn't an address: {exc}", key="judge.endpoint.base_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"must be an http(s) address such as https://host/v1, got {spec.base_url!r}", key="judge.endpoint.base_url"
        )
    if parts.username or parts.password:
        raise UserError("must not contain a password; use api_key_env or api_key_file", key="judge.endpoint.base_url")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not spec.allow_http:
        raise UserError(
            f"{parts.hostname} would be asked without encryption; use https, or set judge.endpoint.allow_http = true",
            key="judge.endpoint.base_url",
        )


def _secret(spec: EndpointSpec) -> str:
    """The key: from a file if one is named, else from the environment. Servers on this machine need none."""
    if spec.api_key_file:
        try:
            return Path(spec.api_key_file).expanduser().read_text("utf-8").strip()
        except (OSError, ValueError) as exc:
            raise UserError(
                f"the judge's key can't be read: {type(exc).__name__}", key="judge.endpoint.api_key_file"
            ) from None
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key.isascii():
        raise UserError("the judge's key has characters that a key can't have", key="judge.endpoint.api_key_env")
    if not key and urlsplit(spec.base_url).hostname not in _LOOPBACK:
        raise UserError(f"the environment variable {spec.api_key_env} isn't set", key="judge.endpoint.api_key_env")
    return key or "none"
