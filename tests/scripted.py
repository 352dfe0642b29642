"""A reward that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omni_thinker.schedulers.base import Setting
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


def setting(tasks: Sequence[str], problems_per_step: int, seed: int = 0) -> Setting:
    """Tasks of equal weight and size, none of them judged, over 100 steps."""
    return Setting(
        dict.fromkeys(tasks, 1.0), dict.fromkeys(tasks, 100), (), 100, problems_per_step, seed, "study.schedulers.x"
    )
