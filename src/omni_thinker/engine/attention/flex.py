"""Attention over a packed row on a GPU: FlexAttention (arXiv 2412.05496) with a block mask.

Blocks of the row that nobody attends to are not computed, so siblings and other groups cost nothing but the ragged
edges of their blocks; the forward and the backward pass are one compiled kernel each."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from omni_thinker.engine.packing import PackedRow


def row_mask(row: PackedRow, device: torch.device) -> BlockMask:
    """Who sees whom in a row (see PackedRow.mask_T_T), by blocks of 128 tokens."""
    group_T, sample_T = row.group_T.to(device), row.sample_T.to(device)

    def sees(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        shared = (sample_T[key] == -1) | (sample_T[key] == sample_T[query])
        return (group_T[query] == group_T[key]) & shared & (key <= query)

    length = len(row.tokens_T)
    return create_block_mask(sees, None, None, length, length, device=device)


def flex_attention_over(
    mask: BlockMask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """[T, heads, width] from queries [T, heads, width], keys and values [T, kv heads, width]."""
    parts = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    out: torch.Tensor = _kernel(query.device.type)(*parts, block_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    """Compiled on a GPU; plain elsewhere, where it is slow and gives the same numbers."""
    attend: Any = flex_attention
    return cast("Callable[..., Any]", torch.compile(attend, dynamic=True) if device == "cuda" else attend)
