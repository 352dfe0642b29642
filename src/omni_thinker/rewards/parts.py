"""Parts: what a reward is composed of."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence

from omni_thinker.types import Group, Problem, Sample, Score


class Part(ABC):
    """One way to score."""

    judged = False
    """It asks a judge instead of knowing what is right."""
    rates = False
    """Its judge must give points by a rubric, not only compare."""
    compares = False
    """It needs a reference, which the start writes where a row has none."""
    local = False
    """It computes with the same cores or device as the policy, and so waits until sampling is done."""
    uses_cores = False
    """It runs programs on this machine, and so waits until sampling is done where the policy samples with the cores."""
    votes = False
    """It reads an answer out of a response (`answer_of`), so that equal answers can be counted."""

    @abstractmethod
    async def score(self, group: Group, problem: Problem) -> list[Score]:
        """One Score per sample, in order."""

    def check(self, problem: Problem) -> str | None:
        """Why answers to `problem` can't be scored, or None."""
        return None

    def answer_of(self, sample: Sample, problem: Problem) -> Hashable | None:
        """The answer in a response, in a form that equal answers share; None where there is none. Asked of wrong
        answers alone: those that score 1 all say what the gold says."""
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        """A response of the asked form that must not score 1; None where no text can be wrong here."""
        return None

    def decoys(self, problem: Problem) -> Sequence[str]:
        """Further responses that must not score 1, which scorers of this kind are known to fall for."""
        return ()


class SamplePart(Part):
    """A part that looks at one sample at a time."""

    answer_only = False
    """Its scores don't depend on thoughts, so that samples which differ in these alone share one."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        distinct = list({self._key(sample): sample for sample in group.samples}.values())
        scores = await asyncio.gather(*(self._guarded(sample, problem) for sample in distinct))
        known = {self._key(s): score for s, score in zip(distinct, scores, strict=True)}
        return [known[self._key(sample)] for sample in group.samples]

    def _key(self, sample: Sample) -> tuple[object, ...]:
        before = () if self.answer_only or sample.dialogue is None else sample.dialogue.texts
        return sample.text, "" if self.answer_only else sample.response, sample.stop, sample.answered, before

    async def _guarded(self, sample: Sample, problem: Problem) -> Score:
        try:
            return await self.score_sample(sample, problem)
        except Exception as exc:  # a bug in a scorer is an error of the scorer, never a 0 for the model
            return Score.error(f"{type(exc).__name__}: {exc}"[:300])

    @abstractmethod
    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        """The score of one sample. What it raises becomes Score.error."""


def valued(value: float, reason: str | None = None) -> Score:
    """A value in [0, 1] with the reason for it."""
    return Score("value", Score.of(value).value, {}, reason)


def data_text(problem: Problem, key: str) -> str | None:
    """`problem.data[key]` where it is a string."""
    value = problem.data.get(key)
    return value if isinstance(value, str) else None
