"""Attention over a packed row in C, for bf16: what shared_attention computes. See native/train_attention.c."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from omni_thinker.engine.native import LANES, kernels


@dataclass(frozen=True, slots=True)
class RowParts:
    """Where prompts and their samples lie in a row; all are numbers of tokens or of samples, [P] or [S] long."""

    prompt_begin: torch.Tensor
    prompt_length: torch.Tensor
    samples: torch.Tensor
    """[P + 1]: a prompt's samples are those from its own number to the next."""
    sample_begin: torch.Tensor
    sample_length: torch.Tensor
    longest: tuple[int, int]
    """Length of the longest prompt and of the longest sample."""

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, Sequence[int]]]) -> "RowParts":
        """Build the places from the length of each prompt and of each of its samples, which lie one after another in
        the row."""
        at, prompts, samples, first = 0, [], [], [0]
        for size, counts in lengths:
            prompts.append((at, size))
            at += size
            for count in counts:
                samples.append((at, count))
                at += count
            first.append(len(samples))
        longest = max(size for _, size in prompts), max([1, *(count for _, count in samples)])
        one, other = (
            torch.tensor(spans, device="cpu").view(-1, 2).t().contiguous() for spans in (prompts, samples or [(0, 0)])
        )
        return cls(one[0], one[1], torch.tensor(first, device="cpu"), other[0], other[1], longest)


def suits(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `native_attention` takes these on this machine."""
    if query.shape[-1] % LANES or value.dtype != torch.bfloat16 or value.device.type != "cpu":
        return False
    return query.dtype == key.dtype == torch.float32 and kernels() is not None


def native_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: RowParts, scale: float
) -> torch.Tensor:
    """[T, heads, width] in bf16. Queries [T, heads, width] and keys [T, kv heads, width] in fp32, values in bf16."""
    out: torch.Tensor = _Native.apply(query, key, value, parts, scale)  # type: ignore[no-untyped-call]
    return out


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: RowParts, scale: float
    ) -> torch.Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out = torch.zeros_like(query, dtype=value.dtype)  # zeros for what fills the row
        _call(query, key, value, parts, scale, out=out)
        ctx.save_for_backward(query, key, value)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value = ctx.saved_tensors
        gradients = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(key)
        _call(query, key, value, ctx.parts, ctx.scale, grad=grads[0].contiguous(), gradients=gradients)
        return gradients[0], gradients[1], gradients[2].to(value.dtype), None, None


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    parts: RowParts,
    scale: float,
    *,
    out: torch.Tensor | None = None,
    grad: torch.Tensor | None = None,
    gradients: Sequence[torch.Tensor] = (),
) -> None:
    c = kernels()
    assert c is not None
    where = (parts.prompt_begin, parts.prompt_length, parts.samples, parts.sample_begin, parts.sample_length)
    given = (query, key, value, out, grad, *(gradients or (None,) * 3), *where)
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in given)
    sizes = (len(parts.prompt_begin), query.shape[1], key.shape[1], query.shape[2], *parts.longest)
    if c.attend_row(*pointers, scale, *sizes):
        raise MemoryError("no memory for attention")
