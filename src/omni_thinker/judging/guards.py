"""Guards of style, around any judge."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.judging.base import Counting, Judge, Verdict
from omni_thinker.judging.tally import Tally


class LengthGuard:
    """Length-controlled preference: a win by a text more than `ratio` times as long as the other is a tie.

    Judges, people too, like longer texts; a policy that is paid for it grows without end. It holds for both sides, so
    swapping them still swaps win and lose. A loss of the longer text stays."""

    def __init__(self, judge: Judge, ratio: float, tally: Tally | None = None) -> None:
        """`tally`: where verdicts are counted; None: in one of its own. Raises ValueError unless `ratio` >= 1."""
        if not ratio >= 1.0:
            raise ValueError(f"ratio must be >= 1, got {ratio}")
        self._judge, self._ratio = judge, ratio
        self.name, self.local = judge.name, judge.local
        self.caveat = f"{judge.caveat} A win by a text more than {ratio:g} times as long as the other counts as a tie."
        self._tally = tally or Tally()

    @property
    def exhausted(self) -> bool:
        return bool(getattr(self._judge, "exhausted", False))

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        verdicts = await self._judge.compare(prompt, responses, reference)
        return [self._guard(v, text, reference) for v, text in zip(verdicts, responses, strict=True)]

    def metrics(self) -> Mapping[str, float]:
        """The judge's own, before the guard, and the share of verdicts that it turned into ties."""
        return {**self._judge.metrics(), **guard_metrics(self._tally)}

    def state(self) -> dict[str, Any]:
        return guard_state(self._tally, self._judge.state() if isinstance(self._judge, Counting) else None)

    def restore(self, state: Mapping[str, Any]) -> None:
        self._tally.restore_guards(state["guarded"], state["asked"])
        if isinstance(self._judge, Counting):
            self._judge.restore(state["judge"])

    def _guard(self, verdict: Verdict, text: str, reference: str) -> Verdict:
        winner, other = (text, reference) if verdict.outcome == "win" else (reference, text)
        if verdict.outcome not in ("win", "lose") or not other or len(winner) <= self._ratio * len(other):
            self._tally.guard(guarded=False)
            return verdict
        self._tally.guard(guarded=True)
        return Verdict("tie", verdict.margin, f"won by a text more than {self._ratio:g} times as long")


def guard_metrics(tally: Tally) -> dict[str, float]:
    """The share of verdicts that a guard turned into ties."""
    guarded, asked = tally.guards
    return {"judge/guarded": guarded / max(1, asked)}


def guard_state(tally: Tally, judge: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a guard's `restore` takes. judge: the state of the judge that it guards."""
    guarded, asked = tally.guards
    return {"guarded": guarded, "asked": asked, **({} if judge is None else {"judge": judge})}
