"""Scoring many groups at once, each by its own task's reward."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from omni_thinker.rewards.base import Reward
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.types import Group, Problem, TaskName


def score_groups(
    problems: Sequence[Problem], groups: Sequence[Group], rewards: Mapping[TaskName, Reward]
) -> list[ScoredGroup]:
    """Score `groups` concurrently; results in order."""

    async def one(problem: Problem, group: Group) -> ScoredGroup:
        scores = await rewards[problem.task].score(group, problem)
        return ScoredGroup(problem, group, tuple(scores))

    async def everything() -> list[ScoredGroup]:
        return list(await asyncio.gather(*map(one, problems, groups)))

    return asyncio.run(everything())
