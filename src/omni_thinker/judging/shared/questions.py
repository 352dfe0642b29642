"""The questions of all callers at one desk, by messages. Lives in the owner's event loop."""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_thinker.judging.cache import Reply
from omni_thinker.judging.endpoint.causes import NoReply
from omni_thinker.judging.endpoint.desk import LocalDesk, Turn
from omni_thinker.judging.limits import BudgetReached

_GIVEN_UP = {"failed": "this question was given up"}


@dataclass(eq=False)
class _Question:
    """One question of one caller: its turn once it has one, and what it waits for meanwhile."""

    caller: str
    turn: Turn | None = None
    waiting: set[asyncio.Future[Any]] = field(default_factory=set)


class Questions:
    """Answers the messages of `SharedDesk`s. A message about a question that is no more changes nothing."""

    def __init__(self, desk: LocalDesk) -> None:
        self.desk = desk
        self._questions: dict[str, _Question] = {}

    async def answer(self, caller: str, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Raises ValueError for a message that there isn't."""
        ticket, desk = arguments["ticket"], self.desk
        if method == "begin":
            question = self._questions[ticket] = _Question(caller)
            try:
                return await self._waited(question, self._begin(question, arguments))
            finally:
                if question.turn is None:
                    self._questions.pop(ticket, None)
        asked = self._questions.get(ticket)
        if asked is None:
            return _GIVEN_UP
        if method == "reserve":
            return await self._waited(asked, self._reserve(asked))
        if method == "leave":
            self._close(ticket, asked, lost=False)
        elif asked.turn is None:
            return _GIVEN_UP
        elif method == "settle":
            desk.settle(asked.turn, (arguments["used"][0], arguments["used"][1]))
        elif method == "release":
            desk.release(asked.turn, lost=arguments["lost"], sent=arguments["sent"])
        elif method == "end":
            self._forget(ticket, asked)
            await desk.end(asked.turn, Reply(*arguments["reply"]), arguments["prompt_version"])
        elif method == "fail":
            self._forget(ticket, asked)
            desk.fail(asked.turn, (BudgetReached if arguments["spent"] else NoReply)(arguments["why"]))
        else:
            raise ValueError(f"no such message: {method!r}")
        return {}

    def gone(self, caller: str | None = None) -> None:
        """Give up the questions of this caller, or of all: a request of theirs may be under way."""
        for ticket, question in list(self._questions.items()):
            if caller in (None, question.caller):
                self._close(ticket, question, lost=True)

    async def _begin(self, question: _Question, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        found = await self.desk.begin(arguments["key"], arguments["most"], unread=arguments["unread"])
        if isinstance(found, Reply):
            return {"reply": [found.text, found.input_tokens, found.output_tokens]}
        question.turn = found
        return {"number": found.number, "waited": found.waited}

    async def _reserve(self, question: _Question) -> Mapping[str, Any]:
        if question.turn is None:
            return _GIVEN_UP
        await self.desk.reserve(question.turn)
        return {"number": question.turn.number}

    async def _waited(self, question: _Question, work: Awaitable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The answer of `work`, unless the question is given up meanwhile. `held`: seconds that it took; `hurried`: as
        of LocalDesk."""
        began = time.monotonic()
        task = asyncio.ensure_future(work)
        question.waiting.add(task)
        try:
            return {**await task, "held": time.monotonic() - began, "hurried": self.desk.hurried}
        except NoReply as exc:
            return {"failed": str(exc)}
        except BudgetReached as exc:
            return {"spent": str(exc)}
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            return _GIVEN_UP
        finally:
            question.waiting.discard(task)

    def _close(self, ticket: str, question: _Question, *, lost: bool) -> None:
        self._forget(ticket, question)
        if question.turn is not None:
            self.desk.leave(question.turn, lost=lost)

    def _forget(self, ticket: str, question: _Question) -> None:
        self._questions.pop(ticket, None)
        for task in question.waiting:
            task.cancel()
