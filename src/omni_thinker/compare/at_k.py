"""What several answers to a problem come to: pass@k, majority@k, and a greedy answer beside the sampled ones.

Of n answers each measure is the mean over all subsets of k, exactly: no subset is drawn by luck."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from math import comb, fsum

from omni_thinker.recipe.rl import EvalSpec
from omni_thinker.rewards.base import Reward, Votes
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.evaluate import Evaluation, Measures
from omni_thinker.types import TaskName

GREEDY = "greedy"
"""The score of the likeliest answer."""


def pass_at(scores: Sequence[float], k: int) -> float:
    """The mean over all subsets of k scores of the best one, in [0, 1] for scores there.

    With c scores of 1 among n, all others 0, this is 1 - C(n - c, k) / C(n, k), the unbiased pass@k of arXiv
    2107.03374. Raises ValueError for k below 1 or above the number of scores."""
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k lies in 1 to {n}, got {k}")
    best: Counter[float] = Counter()
    for lower, score in enumerate(sorted(scores)):
        best[score] += comb(lower, k - 1)  # subsets of which this score is the last in order
    return fsum(score * (ways / comb(n, k)) for score, ways in best.items())


def majority_at(votes: Sequence[Hashable | None], scores: Sequence[float], k: int) -> float:
    """The mean over all subsets of k answers of the score of the answer that most of them give (arXiv 2203.11171).

    votes: what each answer says, None where it says nothing and has no vote. scores: theirs, in [0, 1]; answers that
    say the same count with the mean of their scores. A tie is split evenly, which is what taking the first of the tied
    comes to over all orders. A subset without a vote scores 0. Raises ValueError as `pass_at` does."""
    n = len(votes)
    if not 1 <= k <= n:
        raise ValueError(f"k lies in 1 to {n}, got {k}")
    said: dict[Hashable, list[float]] = defaultdict(list)
    for vote, score in zip(votes, scores, strict=True):
        if vote is not None:
            said[vote].append(score)
    counts = sorted(map(len, said.values()))
    worth: dict[int, float] = defaultdict(float)
    for own in said.values():
        worth[len(own)] += sum(own) / len(own)
    blank = n - sum(counts)
    chances = {count: float(_wins(count, tuple(counts), blank, k)) for count, value in worth.items() if value}
    return fsum(worth[count] * chance for count, chance in chances.items())


@lru_cache(maxsize=4096)
def _wins(count: int, counts: tuple[int, ...], blank: int, k: int) -> Fraction:
    """How often an answer that `count` of all give wins a vote of k of them, its share of ties included.

    counts: how many give each answer, this one too. blank: answers without a vote."""
    others = list(counts)
    others.remove(count)
    won = Fraction(0)
    for votes in range(1, min(count, k) + 1):
        # Ways to choose the rest, by its size and by how many other answers have as many votes.
        ways = {(size, 0): comb(blank, size) for size in range(min(blank, k - votes) + 1)}
        for other in others:
            longer: dict[tuple[int, int], int] = defaultdict(int)
            for (size, tied), number in ways.items():
                for taken in range(min(other, votes, k - votes - size) + 1):
                    longer[size + taken, tied + (taken == votes)] += number * comb(other, taken)
            ways = longer
        shares = (Fraction(number, tied + 1) for (size, tied), number in ways.items() if size == k - votes)
        won += comb(count, votes) * sum(shares, Fraction(0))
    return won / comb(sum(counts) + blank, k)


def with_measures(
    sampled: Evaluation, spec: EvalSpec, rewards: Mapping[TaskName, Reward], greedy: Evaluation | None = None
) -> Evaluation:
    """The evaluation with the measures that `spec` asks for. Tokens of `greedy` are counted too.

    Abstentions and errors don't count as answers: a problem with fewer than k scored answers is left out of a measure.
    Tasks whose reward knows no votes have no `majority@k`."""
    measures: dict[TaskName, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for group in sampled.groups:
        own, problem = measures[group.problem.task], group.problem.id
        for k in spec.pass_at:
            if len(group.values) >= k:
                own[f"pass@{k}"][problem] = pass_at(group.values, k)
        reward = rewards[group.problem.task]
        votes = _votes(group, reward) if spec.majority_at and isinstance(reward, Votes) and reward.votes else []
        for k in spec.majority_at:
            if len(votes) >= k:
                own[f"majority@{k}"][problem] = majority_at(votes, group.values, k)
    for task, values in (greedy.values if greedy else {}).items():
        measures[task][GREEDY] = dict(values)
    plain: Measures = {task: dict(own) for task, own in measures.items() if own}
    tokens = sampled.tokens + (greedy.tokens if greedy else 0)
    means = {f"{name}/{task}": sum(v.values()) / len(v) for task, own in plain.items() for name, v in own.items()}
    return replace(sampled, measures=plain, tokens=tokens, metrics={**sampled.metrics, **means})


def _votes(group: ScoredGroup, reward: Votes) -> list[Hashable | None]:
    """Of the answers that have a score."""
    pairs = zip(group.group.samples, group.scores, strict=True)
    return [reward.vote(sample, score, group.problem) for sample, score in pairs if score.value is not None]


def without_majority(spec: EvalSpec, rewards: Mapping[TaskName, Reward]) -> str:
    """A line about the tasks that `majority@k` is asked for and isn't defined on; "" where there is none."""
    silent = [task for task, reward in rewards.items() if not (isinstance(reward, Votes) and reward.votes)]
    if not spec.majority_at or not silent:
        return ""
    return f"majority@k isn't defined for {', '.join(silent)}: nothing says which of their answers are the same."
