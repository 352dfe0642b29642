"""Groups laid out in one row: each prompt once, its samples side by side behind it.

A block mask lets a sample see its prompt and itself, never its siblings, so one pass over the row gives the
same log-probs as one row per sample while the prompt is computed once instead of G times."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations

import torch

from omni_thinker.protocol import TrainGroup
from omni_thinker.types import TaskName

MULTIPLE = 64
"""Rows and their answers are filled up to a multiple of this: oneDNN keeps 1 to 2 MB for every shape of a matrix
product that it has met, which comes to more than a gigabyte where no two rows are of one length."""

GPU_MULTIPLE = 512
"""The same on a GPU, where a block of attention is 128 tokens and every new length may be compiled for."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row of T tokens holding N answer tokens, both filled up to a multiple.

    `source_N` is the index in the row whose output predicts answer token n; a token is of group `group_T` and of
    sample `sample_T` (-1: the prompt). `lengths` are the tokens of each group, then of the filling where there is any;
    `shapes` those of its prompt and of each of its samples, `tasks` the task of each group. Only the first `answers`
    of the N are real."""

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    group_T: torch.Tensor
    sample_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sample_N: torch.Tensor
    lengths: tuple[int, ...]
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    tasks: tuple[TaskName, ...]
    answers: int

    @property
    def mask_T_T(self) -> torch.Tensor:
        """True where row token i may attend to row token j. Made where it is asked for: it is the square of the row,
        and the fast pass does without."""
        same_group = self.group_T[:, None] == self.group_T[None, :]
        visible = (self.sample_T[None, :] == -1) | (self.sample_T[:, None] == self.sample_T[None, :])
        causal = torch.ones(len(self.tokens_T), len(self.tokens_T), dtype=torch.bool).tril()
        return same_group & visible & causal


def pack(groups: Sequence[TrainGroup], multiple: int = MULTIPLE) -> PackedRow:
    """Lay `groups` out in one row. Samples are numbered in order over all groups; filling has the number -1."""
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
    lengths, answers = [row_length(group) for group in groups], len(target)
    if filling := -len(tokens) % multiple:  # a block of its own that nobody sees
        lengths.append(filling)
        tokens += [0] * filling
        positions += range(filling)
        owner += [(-1, -1)] * filling
    spare = -answers % multiple
    source += [len(tokens) - 1] * spare
    target += [0] * spare
    sample_of += [-1] * spare
    shapes = [(len(group.prompt), tuple(len(s.tokens) - 1 for s in group.samples)) for group in groups]
    return PackedRow(
        tokens_T=torch.tensor(tokens),
        positions_T=torch.tensor(positions),
        group_T=torch.tensor([o[0] for o in owner]),
        sample_T=torch.tensor([o[1] for o in owner]),
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        sample_N=torch.tensor(sample_of),
        lengths=tuple(lengths),
        shapes=tuple(shapes),
        tasks=tuple(group.task for group in groups),
        answers=answers,
    )


def row_length(group: TrainGroup) -> int:
    """Tokens that `group` takes in a row."""
    return len(group.prompt) + group.tokens - len(group.samples)


def micro_batches(groups: Sequence[TrainGroup], token_budget: int) -> list[list[TrainGroup]]:
    """Cut a batch into rows of at most `token_budget` tokens (a single longer group gets its own row): as few as can
    be, shorter groups first, and of these the ones whose longest row is shortest, since that one needs the memory."""
    ordered = sorted(groups, key=row_length)
    rows = _cut(ordered, token_budget)
    ends = list(accumulate(map(row_length, ordered), initial=0))
    # A row is a run of groups, so the longest row is the distance of two ends.
    lengths = sorted({b - a for a, b in combinations(ends, 2) if b - a <= token_budget})
    fewest = bisect_left(lengths, -len(rows), key=lambda length: -len(_cut(ordered, length)))
    return _cut(ordered, lengths[fewest]) if fewest < len(lengths) else rows


def _cut(groups: Sequence[TrainGroup], token_budget: int) -> list[list[TrainGroup]]:
    rows: list[list[TrainGroup]] = []
    used = 0
    for group in groups:
        length = row_length(group)
        if not rows or used + length > token_budget:
            rows.append([])
            used = 0
        rows[-1].append(group)
        used += length
    return rows
