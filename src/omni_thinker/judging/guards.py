"""Guards of style, around any judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.judging.base import Counting, Judge, Verdict


class LengthGuard:
    """Length-controlled preference: a win by a text more than `ratio` times as long as the other is a tie.

    Judges, people too, like longer texts; a policy that is paid for it grows without end. It holds for both sides, so
    swapping them still swaps win and lose. A loss of the longer text stays."""

    def __init__(self, judge: Judge, ratio: float) -> None:
        """Raises ValueError unless `ratio` >= 1."""
        if not ratio >= 1.0:
            raise ValueError(f"ratio must be >= 1, got {ratio}")
        self._judge, self._ratio = judge, ratio
        self.name, self.local = judge.name, judge.local
        self.caveat = f"{judge.caveat} A win by a text more than {ratio:g} times as long as the other counts as a tie."
        self._guarded = self._asked = 0

    @property
    def exhausted(self) -> bool:
        return bool(getattr(self._judge, "exhausted", False))

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        verdicts = await self._judge.compare(prompt, responses, reference)
        return [self._guard(v, text, reference) for v, text in zip(verdicts, responses, strict=True)]

    def metrics(self) -> Mapping[str, float]:
        """The judge's own, before the guard, and the share of verdicts that it turned into ties."""
        return {**self._judge.metrics(), "judge/guarded": self._guarded / max(1, self._asked)}

    def state(self) -> dict[str, Any]:
        counts = {"guarded": self._guarded, "asked": self._asked}
        return counts | ({"judge": self._judge.state()} if isinstance(self._judge, Counting) else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        self._guarded, self._asked = state["guarded"], state["asked"]
        if isinstance(self._judge, Counting):
            self._judge.restore(state["judge"])

    def _guard(self, verdict: Verdict, text: str, reference: str) -> Verdict:
        self._asked += 1
        winner, other = (text, reference) if verdict.outcome == "win" else (reference, text)
        if verdict.outcome not in ("win", "lose") or not other or len(winner) <= self._ratio * len(other):
            return verdict
        self._guarded += 1
        return Verdict("tie", verdict.margin, f"won by a text more than {self._ratio:g} times as long")
