"""A reward that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable

from omni_thinker.types import Group, Problem, Score


class Scripted:
    """`value`: the score of a problem's n-th sample."""

    local = True

    def __init__(self, value: Callable[[Problem, int], float]) -> None:
        self.value = value

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        return [Score.of(self.value(problem, n)) for n in range(len(group.samples))]

    def check(self, problem: Problem) -> str | None:
        return None

    def wrong_answer(self, problem: Problem) -> str:
        return ""


def in_turns(problem: Problem, n: int) -> float:
    """Wrong, right, wrong ...: every group has something to teach."""
    return float(n % 2)
