"""The one process's half of a shared judge: it owns limits, budget, cache and counts, and answers all others."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from omni_thinker.judging.endpoint.desk import LATE_S, open_desk
from omni_thinker.judging.guards import guard_metrics, guard_state
from omni_thinker.judging.shared.counts import Counts
from omni_thinker.judging.shared.questions import Questions
from omni_thinker.portal import open_portal
from omni_thinker.recipe import JudgeSpec


class JudgeOwner:
    """Owns what the judges of all processes share. Its methods may be called from any thread but its own, which is the
    one that fills the futures of `submit`.

    A caller names one attempt at one unit of work, and no name is used again. What it holds comes back when it is
    `gone`, and what it counted since the last `keep` is taken back, since somebody else does that work again. Money
    never is."""

    def __init__(self, spec: JudgeSpec) -> None:
        """Raises UserError where the cache can't be opened. Asks nothing, and needs no key."""
        endpoint = spec.endpoint if spec.kind == "endpoint" else None
        self._questions = None if endpoint is None else Questions(open_desk(endpoint, LATE_S))
        self._guarded = spec.longest_win is not None
        self._counts = Counts()
        self._gone: set[str] = set()
        self._portal, self._end_thread = open_portal("omni-judge-owner")
        self._loop = self._portal.call(asyncio.get_running_loop)

    def submit(self, caller: str, method: str, arguments: Mapping[str, Any]) -> "Future[Any]":
        """The door: what a `Call` of `caller` asks. The future's result is plain JSON. It has an exception only for a
        message that no `Share` sends, and where the owner is closed."""
        return asyncio.run_coroutine_threadsafe(self._answer(caller, method, arguments), self._loop)

    def keep(self, caller: str, mark: Mapping[str, Any] | None = None) -> None:
        """What `caller` had counted at its `mark` (which its `Share.state` returned) is counted for good, as is right
        once its checkpoint or its result is in the journal; also where `caller` has gone by now. None: all of it."""
        self._portal.call(self._counts.keep, caller, None if mark is None else int(mark["mark"]))

    def gone(self, caller: str) -> None:
        """`caller` has ended or died, and nothing it sent is still to be submitted. Its slots are free, a question that
        it asked is somebody else's turn, and its reservations count against the budget, for the server may be at work
        on them. May be called twice."""
        self._portal.call(self._leave, caller)

    def metrics(self) -> dict[str, float]:
        """As those of the judge, over all processes."""
        return self._portal.call(self._metrics)

    @property
    def exhausted(self) -> bool:
        """As that of the judge: whether its budget is spent and the run is to end."""
        desk = None if self._questions is None else self._questions.desk
        return desk is not None and desk.reached and desk.spec.budget.when_reached == "stop"

    def state(self) -> dict[str, Any]:
        """What was spent, and what is counted for good. A judge of one process has and takes the same."""
        return self._portal.call(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from there. Raises KeyError, TypeError or ValueError for the state of another judge."""
        self._portal.call(self._restore, state)

    def close(self) -> None:
        """End the thread. Who waits for a turn is told that there is none."""
        self._portal.call(self._shut)
        self._end_thread()

    async def _answer(self, caller: str, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if caller in self._gone:  # what it sent before it went
            return {"failed": "this process was given up"}
        if method in ("tell", "mark", "counts"):
            self._counts.add(caller, arguments["tally"])
            if method == "mark":
                return {"mark": self._counts.mark(caller)}
            return self._seen() if method == "counts" else {}
        if self._questions is None:
            raise ValueError(f"no such message to this judge: {method!r}")
        return await self._questions.answer(caller, method, arguments)

    def _seen(self) -> dict[str, Any]:
        """What `Share.counts` promises."""
        seen: dict[str, Any] = {"tally": self._counts.all.metrics(), "guards": list(self._counts.all.guards)}
        if self._questions is not None:
            desk = self._questions.desk
            seen |= {"desk": desk.metrics(), "usage": asdict(desk.usage), "reached": desk.reached}
        return seen

    def _metrics(self) -> dict[str, float]:
        desk = {} if self._questions is None else self._questions.desk.metrics()
        guard = guard_metrics(self._counts.all) if self._guarded else {}
        return self._counts.all.metrics() | desk | guard

    def _state(self) -> dict[str, Any]:
        kept = self._counts.kept
        state = kept.state()
        if self._questions is not None:
            state = {"tally": state, **self._questions.desk.state()}
        return guard_state(kept, state) if self._guarded else state

    def _restore(self, state: Mapping[str, Any]) -> None:
        kept = self._counts.kept
        if self._guarded:
            kept.restore_guards(state["guarded"], state["asked"])
            state = state["judge"]
        if self._questions is not None:
            self._questions.desk.restore(state)
            state = state["tally"]
        kept.restore(state)
        self._counts.restored()

    def _leave(self, caller: str) -> None:
        self._gone.add(caller)
        self._counts.gone(caller)
        if self._questions is not None:
            self._questions.gone(caller)

    async def _shut(self) -> None:
        if self._questions is not None:
            self._questions.gone()
        await asyncio.sleep(0)  # the answers are on their way
