"""The hybrid reward: gates times a weighted mean."""

import asyncio
from collections.abc import Hashable, Mapping, Sequence

from omni_thinker.rewards.parts import Part
from omni_thinker.types import Group, Problem, Sample, Score


class HybridReward:
    """value = (all gates are 1) x (sum of weight x part) / (sum of weights), in [0, 1].

    Score.parts has the value of every part that was scored: all gates, and the summed parts of samples that passed
    them (a part that can't change the value isn't run). An error in any of these makes the score an error, else an
    abstention makes it an abstention."""

    def __init__(self, gates: Mapping[str, Part], parts: Mapping[str, Part], weights: Mapping[str, float]) -> None:
        self._gates, self._parts, self._weights = dict(gates), dict(parts), dict(weights)

    @property
    def weights(self) -> Mapping[str, float]:
        """The summed parts and their weights."""
        return self._weights

    @property
    def judged(self) -> bool:
        """Whether a judge has a say: then a gold answer need not score 1."""
        return any(part.judged for part in self._parts.values())

    @property
    def compares(self) -> bool:
        """Whether problems need a reference."""
        return any(part.compares for part in self._parts.values())

    @property
    def local(self) -> bool:
        """Whether a part competes with the policy for cores or device."""
        return any(part.local for part in (*self._gates.values(), *self._parts.values()))

    @property
    def uses_cores(self) -> bool:
        """Whether a part runs programs on this machine."""
        return any(part.uses_cores for part in (*self._gates.values(), *self._parts.values()))

    @property
    def votes(self) -> bool:
        """Whether exactly one summed part reads answers out of responses."""
        return sum(part.votes for part in self._parts.values()) == 1

    def vote(self, sample: Sample, score: Score, problem: Problem) -> Hashable | None:
        """What an answer says: right ones the same, wrong ones by the form that the part gives them. None where a gate
        was closed, and where there is no answer."""
        name, part = next((name, part) for name, part in self._parts.items() if part.votes)
        if name not in score.parts:
            return None
        if score.parts[name] == 1.0:
            return (True, None)
        answer = part.answer_of(sample, problem)
        return None if answer is None else (False, answer)

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        gated = await self.score_gates(group, problem)
        passed = [place for place, score in enumerate(gated) if score.status == "value" and score.value == 1.0]
        if not passed:
            return gated
        subgroup = Group(group.prompt, tuple(group.samples[place] for place in passed))
        columns = await _columns(self._parts, subgroup, problem)
        scores = list(gated)
        for row, place in enumerate(passed):
            by_part = {name: column[row] for name, column in columns.items()}
            scores[place] = self._sum(gated[place], by_part)
        return scores

    async def score_gates(self, group: Group, problem: Problem) -> list[Score]:
        """The gates alone: 1 where all are 1, else 0."""
        columns = await _columns(self._gates, group, problem)
        rows = [{name: column[row] for name, column in columns.items()} for row in range(len(group.samples))]
        return [_gate(row) for row in rows]

    def check(self, problem: Problem) -> str | None:
        faults = (part.check(problem) for part in (*self._gates.values(), *self._parts.values()))
        return next((fault for fault in faults if fault), None)

    def wrong_answer(self, problem: Problem) -> str:
        """Made by the first part that knows one, verifying parts first, then gates; "" where none does."""
        texts = (part.wrong_answer(problem) for part in (*self._parts.values(), *reversed(self._gates.values())))
        return next((text for text in texts if text is not None), "")

    def decoys(self, problem: Problem) -> list[str]:
        """Further responses that must not score 1, of all parts."""
        return [text for part in self._parts.values() for text in part.decoys(problem)]

    def _sum(self, gate: Score, by_part: Mapping[str, Score]) -> Score:
        failure = _failure(by_part)
        if failure:
            return failure
        total = sum(self._weights.values())
        value = sum(self._weights[name] * (score.value or 0.0) for name, score in by_part.items()) / total
        # Weights such as 0.1 + 0.2 don't add up exactly.
        return Score("value", min(1.0, max(0.0, value)), {**gate.parts, **_values(by_part)}, _reason(by_part))


class GatesOnly:
    """The part of a hybrid reward that needs no judge: 1 where all gates are 1, else 0."""

    def __init__(self, whole: HybridReward) -> None:
        self._whole = whole

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        return await self._whole.score_gates(group, problem)

    def check(self, problem: Problem) -> str | None:
        return self._whole.check(problem)

    def wrong_answer(self, problem: Problem) -> str:
        return self._whole.wrong_answer(problem)


async def _columns(parts: Mapping[str, Part], group: Group, problem: Problem) -> dict[str, list[Score]]:
    columns = await asyncio.gather(*(_column(name, part, group, problem) for name, part in parts.items()))
    return dict(zip(parts, columns, strict=True))


async def _column(name: str, part: Part, group: Group, problem: Problem) -> list[Score]:
    try:
        scores = await part.score(group, problem)
    except Exception as exc:  # a part's bug is an error, never a 0 for the model
        return [Score.error(f"{name}: {type(exc).__name__}: {exc}"[:300])] * len(group.samples)
    if len(scores) != len(group.samples):
        return [Score.error(f"{name}: {len(scores)} scores for {len(group.samples)} samples")] * len(group.samples)
    return scores


def _gate(by_gate: Mapping[str, Score]) -> Score:
    failure = _failure(by_gate)
    if failure:
        return failure
    return Score("value", float(all(s.value == 1.0 for s in by_gate.values())), _values(by_gate), _reason(by_gate))


def _failure(by_part: Mapping[str, Score]) -> Score | None:
    failures = (score for status in ("error", "abstain") for score in by_part.values() if score.status == status)
    return next(failures, None)


def _values(by_part: Mapping[str, Score]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, score in by_part.items():
        values |= {name: float(score.value or 0.0), **score.parts}
    return values


def _reason(by_part: Mapping[str, Score]) -> str | None:
    reasons: Sequence[str] = [f"{name}: {score.reason}" for name, score in by_part.items() if score.reason]
    return "; ".join(reasons) or None
