"""Work dealt out to ranks, so that none waits long for another."""

from collections.abc import Sequence
from dataclasses import replace

from omni_thinker.engine.packing import micro_batches, row_length
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

FILLER = TrainGroup("", (0,), (Sample((0, 0), (0.0, 0.0), "", "length"),), (0.0,), (0.0,))
"""What a rank computes, for nothing, while others have a row more: all take part in gathering each layer."""
Rows = list[list[TrainGroup]]


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Places of `costs` for each rank, in order, whose sums are as even as swaps of two and moves of one make them."""
    hands: list[list[int]] = [[] for _ in range(ranks)]
    sums = [0] * ranks
    for place in sorted(range(len(costs)), key=lambda i: -costs[i]):  # the costliest first, to who has least
        rank = sums.index(min(sums))
        hands[rank].append(place)
        sums[rank] += costs[place]
    while _even_out(costs, hands, sums):
        pass
    return [sorted(hand) for hand in hands]


def _even_out(costs: Sequence[int], hands: list[list[int]], sums: list[int]) -> bool:
    """Bring the fullest hand and the emptiest one nearer to each other; False where nothing does."""
    most, least = sums.index(max(sums)), sums.index(min(sums))
    gap = sums[most] - sums[least]
    # What goes over, less what comes back, should be half the gap.
    pairs = [(one, other) for one in hands[most] for other in [None, *hands[least]]]
    moved = {pair: costs[pair[0]] - (0 if pair[1] is None else costs[pair[1]]) for pair in pairs}
    useful = [pair for pair, by in moved.items() if 0 < by < gap]
    if not useful:
        return False
    one, other = min(useful, key=lambda pair: abs(gap - 2 * moved[pair]))
    hands[most].remove(one)
    hands[least].append(one)
    if other is not None:
        hands[least].remove(other)
        hands[most].append(other)
    sums[most] -= moved[one, other]
    sums[least] += moved[one, other]
    return True


def plan_rows(groups: Sequence[TrainGroup], ranks: int, row_tokens: int) -> list[Rows]:
    """For each rank the same number of rows of about `row_tokens` tokens; an empty one has nothing to do."""
    shares = [[groups[place] for place in hand] for hand in deal([row_length(group) for group in groups], ranks)]
    rows = [micro_batches(share, row_tokens) if share else [] for share in shares]
    count = max(map(len, rows))
    return [_split(of_rank, count) for of_rank in rows]


def _split(rows: Rows, count: int) -> Rows:
    """So many rows, by halving the longest ones; empty where there is nothing left to halve."""
    rows = list(rows)
    while len(rows) < count:
        longest = max(rows, key=len, default=[])
        if len(longest) < 2:
            rows.append([])
            continue
        rows[rows.index(longest)] = longest[: len(longest) // 2]
        rows.append(longest[len(longest) // 2 :])
    return rows


def by_sample(groups: Sequence[TrainGroup]) -> list[TrainGroup]:
    """Each sample as a group, for models that are run on one sequence at a time."""
    return [
        replace(group, samples=(sample,), advantages=(advantage,), weights=(weight,))
        for group in groups
        for sample, advantage, weight in zip(group.samples, group.advantages, group.weights, strict=True)
    ]
