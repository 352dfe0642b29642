"""Ranking a group: which orders it is shown in, what two rankings agree on, and tournaments of pairs."""

import asyncio
import random
from collections.abc import Sequence
from itertools import combinations

from omni_thinker.judging.base import Judge
from omni_thinker.judging.tally import POINTS
from omni_thinker.types import Score, content_hash


def both_orders(texts: Sequence[str], prompt: str) -> list[list[int]]:
    """A shuffle of the places of `texts`, and its reverse. It follows from the texts alone, so a repeated run asks the
    same questions."""
    order = sorted(range(len(texts)), key=lambda place: texts[place])
    random.Random(content_hash("\0".join([prompt, *sorted(texts)]))).shuffle(order)
    return [order, order[::-1]]


def agreed_points(
    rankings: Sequence[Sequence[int]], weight: Sequence[int]
) -> tuple[list[float], list[tuple[int, int, int]]]:
    """Shares in [0, 1] of the others that each place beats, and (i, j, lead of i over j) of each pair.

    `rankings`: places, best first. A pair on which rankings differ is a tie (0). `weight`: how many responses have
    this text; they tie with each other."""
    ranks = [{place: rank for rank, place in enumerate(ranking)} for ranking in rankings]
    count, total = len(weight), sum(weight)
    pairs: list[tuple[int, int, int]] = []
    won = [0.5 * (copies - 1) for copies in weight]
    for i, j in combinations(range(count), 2):
        leads = {1 if rank[i] < rank[j] else -1 for rank in ranks}
        lead = leads.pop() if len(leads) == 1 else 0
        pairs.append((i, j, lead))
        won[i] += weight[j] * (1 + lead) / 2
        won[j] += weight[i] * (1 - lead) / 2
    return [share / (total - 1) for share in won], pairs


async def tournament(judge: Judge, prompt: str, responses: Sequence[str], rounds: int) -> list[Score]:
    """For each response its mean result against `rounds` others, by pairs; works with any judge.

    Opponents are neighbours on both sides in a ring that follows from the texts, so each distinct text plays equally
    often (an even number of times, rounded up), and as many rounds as there are others make every pair meet. A text
    that occurs more than once ties with itself, and counts as often where it is an opponent."""
    distinct = list(dict.fromkeys(responses))
    count = len(distinct)
    if count == 1:
        return [Score.of(0.5)] * len(responses)
    ring = both_orders(distinct, prompt)[0]
    ahead = range(1, (rounds + 1) // 2 + 1)
    pairs = sorted({(min(a, b), max(a, b)) for k in ahead for a, b in _ring_pairs(ring, k)})
    if 2 * len(ahead) >= count - 1:
        pairs = list(combinations(range(count), 2))
    verdicts = await asyncio.gather(*(judge.compare(prompt, [distinct[a]], distinct[b]) for a, b in pairs))
    copies = [list(responses).count(text) for text in distinct]
    results: list[list[tuple[float, int]]] = [[] for _ in distinct]
    failures: list[Score | None] = [None] * count
    for (a, b), [verdict] in zip(pairs, verdicts, strict=True):
        if verdict.outcome in POINTS:
            results[a].append((POINTS[verdict.outcome], copies[b]))
            results[b].append((1.0 - POINTS[verdict.outcome], copies[a]))
        else:
            failed = Score.abstain if verdict.outcome == "abstain" else Score.error
            failures[a] = failures[b] = failed(verdict.reason or "no verdict")
    # One failed pair doesn't make a text unknown that others were compared with.
    scores = {
        text: _mean_result([*points, (0.5, copies[place] - 1)])
        if points
        else failures[place] or Score.error("no verdict")
        for place, (text, points) in enumerate(zip(distinct, results, strict=True))
    }
    return [scores[text] for text in responses]


def _mean_result(results: Sequence[tuple[float, int]]) -> Score:
    return Score.of(sum(points * weight for points, weight in results) / sum(weight for _, weight in results))


def _ring_pairs(ring: Sequence[int], step: int) -> list[tuple[int, int]]:
    return [(ring[i], ring[(i + step) % len(ring)]) for i in range(len(ring))]
