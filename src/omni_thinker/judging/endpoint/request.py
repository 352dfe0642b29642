"""One attempt at a question: sent within the limits, paid for, and read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omni_thinker.judging.cache import Reply
from omni_thinker.judging.endpoint.causes import NoReply, TryAgain, short
from omni_thinker.judging.endpoint.completion import MOST_EMPTY, RETRIED, counted, text_of
from omni_thinker.judging.endpoint.desk import Desk, Turn, likely_tokens
from omni_thinker.judging.endpoint.dialect import Dialect
from omni_thinker.judging.verdicts import NoVerdict
from omni_thinker.recipe import EndpointSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_AWAY = (502, 503, 504)
_LONGEST_WAIT_S = 60.0


@dataclass
class Question:
    """What is asked, and how its reply is read. `read` raises NoVerdict for a reply that says nothing that counts.

    `plain`: a reply held to the schema was of no use, so the next one may be free."""

    text: str
    schema: Mapping[str, Any]
    read: Callable[[str], object]
    digit: bool
    plain: bool = False


class Requests:
    """Sends questions to one server. Lives in the loop of the SDK's client."""

    def __init__(self, spec: EndpointSpec, desk: Desk, client: "AsyncOpenAI") -> None:
        self._spec, self._desk = spec, desk
        self._completions = client.chat.completions  # loads what a request needs, so that none waits for it
        self._dialect = Dialect(spec)

    async def reply(self, question: Question, turn: Turn) -> Reply:
        """A reply that can be read, which is still to be settled by `Desk.end`. Raises TryAgain, NoReply or
        BudgetReached."""
        dialect = self._dialect
        while True:  # ends: each turn sends a parameter less than the one before
            schema = question.schema if dialect.wants_schema(failed=question.plain) else None
            sent = dialect.arguments(question.text, schema, digit=question.digit)
            try:
                reply = await self._sent(sent, question, turn)
            except _Refused as refused:
                if dialect.learn(sent, refused.message):
                    continue
                if dialect.schema_refused(sent, refused.status, refused.message):
                    question.plain = True
                    continue
                raise refused.cause from None
            except (TryAgain, NoVerdict) as exc:
                again = exc if isinstance(exc, TryAgain) else TryAgain(str(exc), wait=0.0, most=MOST_EMPTY)
                question.plain |= again.most is not None and "response_format" in sent
                raise again from None
            dialect.worked(sent, after_schema_failed=question.plain)
            return reply

    async def _sent(self, sent: Mapping[str, Any], question: Question, turn: Turn) -> Reply:
        from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

        await self._desk.reserve(turn)
        lost, reached, read = True, True, False
        used: tuple[int, int] | None = None
        try:
            completion = await self._completions.create(model=self._spec.model, **sent)
            used = counted(completion)
            if used is None:  # an answer that isn't counted isn't free; what is no answer raises here
                self._text(completion, question)
                used = likely_tokens(turn.most), self._spec.max_tokens
            reply = Reply(self._text(completion, question), *used)
            question.read(reply.text)
            read = True
            return reply
        except NoReply as exc:
            lost = exc.worked
            raise
        except APITimeoutError as exc:
            reached = not _unconnected(exc)
            raise TryAgain("timed out", away=not reached) from None
        except APIStatusError as exc:
            lost = False
            raise _refusal(exc) from None
        except APIConnectionError as exc:
            reached = not _unconnected(exc)
            raise TryAgain(f"connection failed ({type(exc.__cause__ or exc).__name__})", away=True) from None
        except (APIError, ValueError, TypeError, AttributeError, LookupError) as exc:
            # Half a JSON object, another schema: what it was is the server's secret.
            raise TryAgain(f"a reply that is none ({type(exc).__name__})") from None
        finally:
            if used is not None and not read:  # also what is of no use was paid for
                self._desk.settle(turn, used)
            elif not read:
                self._desk.release(turn, lost=lost, sent=reached)

    def _text(self, completion: Any, question: Question) -> str:
        return text_of(completion, digit=question.digit, max_tokens=self._spec.max_tokens)


class _Refused(Exception):
    """A status that says that the server didn't take the request; `cause` is what it means if nothing can be mended."""

    def __init__(self, status: int, message: str, cause: NoReply) -> None:
        super().__init__(message)
        self.status, self.message, self.cause = status, message, cause


def _refusal(exc: Any) -> _Refused:
    status, message = exc.status_code, str(exc).removeprefix(f"Error code: {exc.status_code} - ")
    why = f"status {status}: {short(message)}"
    if status in RETRIED or status >= 500:
        return _Refused(status, message, TryAgain(why, wait=_retry_after(exc), away=status in _AWAY))
    return _Refused(status, message, NoReply(why))


def _unconnected(exc: Exception) -> bool:
    """Whether there was no connection at all. By name: which library connects is the SDK's secret."""
    return type(exc.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _retry_after(exc: Any) -> float | None:
    """Seconds, from either spelling of the header; dates are not used by any server known to us."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(_LONGEST_WAIT_S, max(0.0, float(exc.response.headers[name]) * unit))
        except (KeyError, ValueError):
            continue
    return None
