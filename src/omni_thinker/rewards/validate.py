"""Before step 0: does a reward tell right from wrong on these problems?"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.thoughts import split_thoughts
from omni_thinker.types import Group, Problem, Sample, Score, Thoughts

_PROBLEMS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Failure:
    """A problem that its reward doesn't fit, and how."""

    problem: str
    reason: str


def sample_of(text: str) -> Sample:
    """A finished sample with this text, whose thoughts are no part of the answer. Of what model it is nobody knows, so
    all marks of thoughts count."""
    said, unfinished = split_thoughts(text)
    if said == text:
        return Sample((), (), text, "stop")
    said = said.lstrip("\r\n")
    closed = not unfinished or bool(said.strip())
    return Sample((), (), said, "stop", Thoughts("", 0, closed, whole=text))


def group_of(texts: Sequence[str]) -> Group:
    """A group of finished samples with these texts, without tokens."""
    return Group((), tuple(Sample((), (), text, "stop") for text in texts))


async def score_texts(reward: Reward, problem: Problem, texts: Sequence[str]) -> list[Score]:
    """One Score per text, as if the model had written it and stopped."""
    return await reward.score(group_of(texts), problem)


async def validate(problems: Iterable[Problem], reward: Reward) -> list[Failure]:
    """Every problem that can't be scored, whose gold answer doesn't score 1, or whose wrong answer does.

    Where a judge has a say the gates are asked instead: 1 for the gold and 0 for the wrong answer. Problems without a
    gold answer are checked with the wrong one alone. At most one failure per problem, in the problems' order."""
    limit = asyncio.Semaphore(_PROBLEMS_AT_ONCE)

    async def one(problem: Problem) -> Failure | None:
        async with limit:
            reason = reward.check(problem) or await _fault(problem, reward)
        return Failure(problem.id, reason) if reason else None

    failures = await asyncio.gather(*(one(problem) for problem in problems))
    return [failure for failure in failures if failure is not None]


async def _fault(problem: Problem, reward: Reward) -> str | None:
    judged = isinstance(reward, HybridReward) and reward.judged
    wrong = [reward.wrong_answer(problem)]
    if isinstance(reward, HybridReward) and not judged:
        wrong += reward.decoys(problem)
    texts = wrong if problem.answer is None else [*wrong, problem.answer]
    if isinstance(reward, HybridReward) and judged:
        scores = await reward.score_gates(group_of(texts), problem)
    else:
        scores = await score_texts(reward, problem, texts)
    for text, score in zip(texts, scores, strict=True):
        if score.status != "value":
            return f"the answer {text[:60]!r} is scored as {score.status}: {score.reason}"
    if problem.answer is not None and scores[-1].value != 1.0:
        return f"the gold answer {problem.answer[:60]!r} scores {scores[-1].value}: {scores[-1].reason}"
    for text, score in zip(wrong, scores, strict=False):
        if score.value == 1.0 and not (judged and not text):
            return f"the wrong answer {text[:60]!r} scores 1"
    return None
