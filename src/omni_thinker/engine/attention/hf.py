"""Attention over a packed row, group by group.

A row holds several groups that don't see each other. Attention over the whole row would cost the square of its
length for a mask that is mostly empty; cut at the groups, the cost is the sum of their squares."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "omni_thinker_blocks"
_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths", default=())


def use_blocks(model: PreTrainedModel) -> None:
    """Let a model that attends by sdpa do it in blocks inside `blocks`; outside nothing changes."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


@contextmanager
def blocks(lengths: Sequence[int]) -> Iterator[None]:
    """Inside, a row is made of blocks of these lengths. They must add up to the row's length."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def computed_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For layers that are checkpointed (`context_fn` of torch.utils.checkpoint): computed again for the gradient they
    see the blocks that they see now."""
    return nullcontext(), blocks(_lengths.get())


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    lengths = _lengths.get()
    if len(lengths) < 2 or attention_mask is None:
        whole: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole
    # split, not slices: its backward is one concatenation instead of a padded copy for each block.
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out, begin = [], 0
    for length, (q, k, v) in zip(lengths, parts, strict=True):
        segment = slice(begin, begin + length)
        begin += length
        out.append(sdpa_attention_forward(module, q, k, v, attention_mask[:, :, segment, segment], **options)[0])
    return torch.cat(out, dim=1), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
