"""Groups laid out in one row: each prompt once, its samples side by side behind it.

A block mask lets a sample see its prompt and itself, never its siblings, so one pass over the row gives the
same log-probs as one row per sample while the prompt is computed once instead of G times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from omni_thinker.policy.protocol import TrainGroup


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of T tokens holding N answer tokens.

    `source_N` is the index in the row whose output predicts answer token n; `mask_T_T` is True where row
    token i may attend to row token j.
    """

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    mask_T_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sample_N: torch.Tensor


def pack(groups: Sequence[TrainGroup]) -> PackedRow:
    """Lay `groups` out in one row. Samples are numbered in order over all groups."""
    tokens: list[int] = []
    positions: list[int] = []
    owner: list[tuple[int, int]] = []  # (group, sample or -1 for the prompt) of each row token
    source: list[int] = []
    target: list[int] = []
    sample_of: list[int] = []
    number = 0
    for g, group in enumerate(groups):
        last_prompt = len(tokens) + len(group.prompt) - 1
        tokens += group.prompt
        positions += range(len(group.prompt))
        owner += [(g, -1)] * len(group.prompt)
        for sample in group.samples:
            begin = len(tokens)
            # The last answer token predicts nothing, so it is not part of the row.
            inputs = sample.tokens[:-1]
            tokens += inputs
            positions += range(len(group.prompt), len(group.prompt) + len(inputs))
            owner += [(g, number)] * len(inputs)
            source += [last_prompt, *range(begin, begin + len(inputs))]
            target += sample.tokens
            sample_of += [number] * len(sample.tokens)
            number += 1
    group_T = torch.tensor([o[0] for o in owner])
    sample_T = torch.tensor([o[1] for o in owner])
    same_group = group_T[:, None] == group_T[None, :]
    visible = (sample_T[None, :] == -1) | (sample_T[:, None] == sample_T[None, :])
    causal = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    return PackedRow(
        tokens_T=torch.tensor(tokens),
        positions_T=torch.tensor(positions),
        mask_T_T=same_group & visible & causal,
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        sample_N=torch.tensor(sample_of),
    )


def row_length(group: TrainGroup) -> int:
    """Tokens that `group` takes in a row."""
    return len(group.prompt) + group.tokens - len(group.samples)


def micro_batches(groups: Sequence[TrainGroup], token_budget: int) -> Iterator[list[TrainGroup]]:
    """Cut a batch into rows of at most `token_budget` tokens (a single longer group gets its own row)."""
    row: list[TrainGroup] = []
    used = 0
    for group in sorted(groups, key=row_length):
        length = row_length(group)
        if row and used + length > token_budget:
            yield row
            row, used = [], 0
        row.append(group)
        used += length
    if row:
        yield row
