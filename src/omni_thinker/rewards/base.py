"""The Reward protocol: how the samples of one group are scored."""

from collections.abc import Hashable, Mapping
from typing import Protocol, runtime_checkable

from omni_thinker.types import Group, Problem, Sample, Score


@runtime_checkable
class Reward(Protocol):
    """Scores a whole group, so that verifiers and pairwise judges share one door."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        """One Score per sample, in order. Never raises for what a model wrote."""

    def check(self, problem: Problem) -> str | None:
        """Why this reward can't score answers to `problem`, or None. Called for every row before step 0."""

    def wrong_answer(self, problem: Problem) -> str:
        """A response of the asked form that must not score 1 (for `validate`)."""


@runtime_checkable
class Weighed(Protocol):
    """A reward whose value is a weighed mean of parts in `Score.parts`."""

    @property
    def weights(self) -> Mapping[str, float]:
        """The parts and their weights. A sample that lacks one has 0 of it."""


@runtime_checkable
class Votes(Protocol):
    """A reward that may know which answers say the same, so that they can be counted as votes."""

    @property
    def votes(self) -> bool:
        """Whether it does."""

    def vote(self, sample: Sample, score: Score, problem: Problem) -> Hashable | None:
        """What an answer with this score says, equal for answers that say the same. None: it has no vote."""
