"""Preference: a judge compares the response with a reference."""

from __future__ import annotations

from omni_thinker.judging import Judge, Verdict
from omni_thinker.rewards.parts import Part, data_text, valued
from omni_thinker.types import Group, Problem, Score

_VALUES = {"win": 1.0, "tie": 0.5, "lose": 0.0}


class Preference(Part):
    """Against data["reference"]: win 1, tie 0.5, lose 0. The same text is a tie and costs no judgement.

    A judge that fails or gives no verdict is an error, as is a missing reference. `check` doesn't ask for one:
    references may be written later, by the starting model.
    """

    judged = True

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        reference = data_text(problem, "reference")
        if reference is None:
            return [Score.error("preference: the problem has no reference")] * len(group.samples)
        asked = list(dict.fromkeys(s.text for s in group.samples if not _alike(s.text, reference)))
        try:
            verdicts = await self._judge.compare(problem.prompt, asked, reference) if asked else []
            known = dict(zip(asked, verdicts, strict=True))
        except Exception as exc:  # whatever a judge raises says nothing about the response
            return [Score.error(f"preference: {type(exc).__name__}: {exc}"[:300])] * len(group.samples)
        return [_score(known.get(s.text), s.text, reference) for s in group.samples]


def _alike(text: str, reference: str) -> bool:
    return text.split() == reference.split()


def _score(verdict: Verdict | None, text: str, reference: str) -> Score:
    if verdict is None:
        return valued(0.5, "same text as the reference")
    if verdict.outcome == "abstain":
        return Score.abstain(f"preference: {verdict.reason or 'no verdict'}")
    if verdict.outcome not in _VALUES:
        return Score.error(f"preference: {verdict.reason or 'no verdict'}")
    return valued(_VALUES[verdict.outcome], verdict.reason)
