"""Parts whose scorer isn't trusted: it runs inside the sandbox, in a fresh process for each answer."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, TextEvaluated, WalledScorer, launch
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.types import Problem, Sample, Score


class WalledPart(SamplePart):
    """Asks `scorer`, whose file answers {"score": a number in [0, 1]} to what `request` gives it, and may add a reason.

    An exception of the scorer, a value outside [0, 1], a missed deadline, and an attempt to run a text as code are
    errors, never a 0. Raises UserError where there is no sandbox."""

    answer_only = True
    uses_cores = True
    scorer: ClassVar[WalledScorer]
    deadline_s: ClassVar[float] = 10.0
    longest: ClassVar[int] = 20_000
    """Characters of an answer that the scorer gets to see."""

    def __init__(self) -> None:
        try:
            launch()
        except IsolationError as exc:
            raise UserError(str(exc), key="reward") from None

    @abstractmethod
    def request(self, text: str, problem: Problem) -> Mapping[str, Any]:
        """What the scorer is asked about an answer; plain JSON."""

    def settings(self, problem: Problem) -> Mapping[str, Any] | None:
        """What the scorer's `prepare` is given beforehand, if anything."""
        return None

    def evaluates(self, problem: Problem) -> bool:
        """Whether the scorer may run the answer as code, beside what it compares it with."""
        return False

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        name, text = type(self).__name__, sample.text.strip()[: self.longest]
        try:
            reply = await self.scorer.call(
                self.request(text, problem),
                self.deadline_s,
                settings=self.settings(problem),
                evaluates=self.evaluates(problem),
            )
        except TextEvaluated:
            return Score.error(f"{name}: the scorer tried to run the answer as code, which this task doesn't allow")
        except IsolationError as exc:
            return Score.error(f"{name}: {exc}")
        value = reply.get("score")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            return Score.error(f"{name}: the score {value!r} is not in [0, 1]"[:300])
        reason = reply.get("reason")
        return valued(float(value), reason[:300] if isinstance(reason, str) else None)
