"""Prompts in one row, in which what several begin with stands once.

A token's hidden state depends on the tokens before it alone. So the marks of a chat template and the words of a task,
which many prompts begin with, need one computation for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch.nn import functional as F

from omni_thinker.engine.attention.native_cpu import RowParts, native_attention, suits
from omni_thinker.types import TokenIds


@dataclass(frozen=True, slots=True)
class PromptRow:
    """N tokens of a row, of which the last are filling, that P prompts of at most T tokens are made of."""

    tokens_N: torch.Tensor
    positions_N: torch.Tensor
    place_P_T: torch.Tensor
    """The place in the row of each prompt's tokens; 0 behind its end."""
    slot_N: torch.Tensor
    """Where a token of the row stands in `place_P_T`, laid flat; 0 for filling."""
    length_P: torch.Tensor
    last_P: torch.Tensor
    """The place in the row of each prompt's last token."""
    end_P: torch.Tensor
    """Where each prompt's last token stands in `place_P_T`, laid flat."""

    def to(self, device: torch.device) -> "PromptRow":
        """The same on a device."""
        return PromptRow(*(getattr(self, field.name).to(device) for field in fields(self)))


def lay_out(prompts: Sequence[TokenIds], multiple: int) -> PromptRow:
    """The row of `prompts`, one or more tokens each, filled up to a multiple."""
    longest = max(map(len, prompts))
    place_P_T = torch.zeros(len(prompts), longest, dtype=torch.long)
    tokens, positions, slots = list[int](), list[int](), list[int]()
    above: TokenIds = ()
    place_T = torch.zeros(0, dtype=torch.long)
    for p in sorted(range(len(prompts)), key=lambda p: tuple(prompts[p])):  # neighbours share the most
        prompt = prompts[p]
        shared = shared_tokens(above, prompt)
        place_T = torch.cat([place_T[:shared], torch.arange(len(tokens), len(tokens) + len(prompt) - shared)])
        place_P_T[p, : len(prompt)] = place_T
        tokens += prompt[shared:]
        positions += range(shared, len(prompt))
        slots += range(p * longest + shared, p * longest + len(prompt))
        above = prompt
    filling = [0] * (-len(tokens) % multiple)
    length_P = torch.tensor(list(map(len, prompts)))
    end_P = torch.arange(len(prompts)) * longest + length_P - 1
    return PromptRow(
        tokens_N=torch.tensor([*tokens, *filling]),
        positions_N=torch.tensor([*positions, *filling]),
        place_P_T=place_P_T,
        slot_N=torch.tensor([*slots, *filling]),
        length_P=length_P,
        last_P=place_P_T.flatten()[end_P],
        end_P=end_P,
    )


def causal_attention(row: PromptRow, dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """Attention of prompts to themselves: of queries [N, heads, width], keys and values [N, kv heads, width] of a row,
    a scale and some slots, the outputs there, [slots, heads x width], in the values' type. `dtype`: what computes."""
    real_P_T = torch.arange(row.place_P_T.shape[1], device=row.length_P.device) < row.length_P[:, None]
    place_M, behind_S = row.place_P_T[real_P_T], real_P_T.flatten().cumsum(0) - 1
    parts = cache(lambda: RowParts.of([(length, ()) for length in row.length_P.tolist()]))

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, slots: torch.Tensor
    ) -> torch.Tensor:
        if dtype == query.dtype and suits(query, key, value):  # one prompt behind another
            query, key, value = (tensor.index_select(0, place_M) for tensor in (query, key, value))
            return native_attention(query, key, value, parts(), scale).index_select(0, behind_S[slots]).flatten(1)
        # Side by side, filled up at the right, which attention never sees.
        per = query.shape[1] // key.shape[1]
        queries, keys, values = (
            tensor[row.place_P_T].transpose(1, 2).to(dtype).repeat_interleave(times, dim=1)
            for tensor, times in ((query, 1), (key, per), (value, per))
        )
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)[slots].to(value.dtype)

    return attend


def shared_tokens(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
