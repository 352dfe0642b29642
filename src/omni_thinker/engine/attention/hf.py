"""Attention over a packed row, group by group.

A row holds several groups that don't see each other. Attention over the whole row would cost the square of its
length for a mask that is mostly empty; cut at the groups, the cost is the sum of their squares."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_lengths: ContextVar[tuple[int, ...]] = ContextVar("lengths", default=())


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


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' own attention by sdpa: inside `blocks` for each block by itself, elsewhere as it is."""
    lengths = _lengths.get()
    if attention_mask is None or not _can_cut(lengths, query, key, attention_mask, options):
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


def _can_cut(
    lengths: Sequence[int], query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> bool:
    """Whether queries and keys are the row's tokens, and nothing but the mask is laid over them."""
    total = sum(lengths)
    if len(lengths) < 2 or options.get("position_bias") is not None:
        return False
    return query.shape[2] == key.shape[2] == mask.shape[-1] == mask.shape[-2] == total


# In the place of the plain one, not beside it under another name: layers of sparse attention apply their own mask only
# where the attention is called "sdpa" or "eager".
AttentionInterface.register("sdpa", attention)
