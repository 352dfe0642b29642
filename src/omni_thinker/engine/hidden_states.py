"""What a model has at the end of rows of tokens, for those who judge by it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, takewhile

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.llama import answer_states
from omni_thinker.engine.nodes import nodes_of
from omni_thinker.engine.packing import micro_batches, pack
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

_ROW_TOKENS = 2048
"""Most tokens in a packed row."""


@torch.no_grad()
def last_states(model: PreTrainedModel, families: Sequence[Sequence[Sequence[int]]]) -> torch.Tensor:
    """What `model`, of a kind that `forward.knows`, has at the last token of each row, in order; [N, hidden] in fp32.

    A row has at least two tokens, and rows of a family share at least the first: what they share is computed once."""
    groups = [_group(rows) for rows in families]
    places = {id(group): begin for group, begin in zip(groups, accumulate(map(len, families), initial=0), strict=False)}
    state_of: dict[int, torch.Tensor] = {}
    for batch in micro_batches(groups, _ROW_TOKENS):
        row = pack(batch)
        ends = torch.tensor([len(sample.tokens) for group in batch for sample in group.samples]).cumsum(0) - 1
        nodes = nodes_of(row) if model.device.type == "cpu" else None
        states = answer_states(model, replace(row, source_N=row.source_N[ends]), nodes=nodes).float()
        order = [places[id(group)] + n for group in batch for n in range(len(group.samples))]
        state_of |= dict(zip(order, states, strict=True))
    return torch.stack([state_of[place] for place in range(len(state_of))])


def _group(rows: Sequence[Sequence[int]]) -> TrainGroup:
    """Rows as answers to what they share, with a token more each, since a row ends before an answer's last."""
    least = min(map(len, rows)) - 1
    shared = sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, zip(*(row[:least] for row in rows), strict=True)))
    samples = tuple(Sample((*row[shared:], 0), (0.0,) * (len(row) - shared + 1), "", "length") for row in rows)
    return TrainGroup("", tuple(rows[0][:shared]), samples, (0.0,) * len(rows), (0.0,) * len(rows))
