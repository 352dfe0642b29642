"""What studies of shared models are scored by: something that a random model gets right by halves."""

from __future__ import annotations

from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.types import Problem, Sample, Score


class Letters(SamplePart):
    """The share of an answer's signs that lie in the first half of the alphabet by their numbers."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        early = sum(ord(sign) % 2 for sign in sample.text)
        return valued(early / max(1, len(sample.text)))
