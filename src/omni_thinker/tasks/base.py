"""The Task protocol: what is learned."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from omni_thinker.recipe import RewardSpec
from omni_thinker.types import Problem, Split, TaskName


@runtime_checkable
class Task(Protocol):
    """Problems in three disjoint splits, and how answers to them are scored.

    A task is deterministic: the same task gives the same problems in the same order, in every process."""

    name: TaskName
    reward: RewardSpec
    verifiable: bool
    """True where the reward alone knows what is right; False where a judge is asked."""

    @property
    def max_tokens(self) -> int:
        """Longest answer, in tokens of the policy."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of a split, shuffled once. Raises UserError where the split can't be filled."""
