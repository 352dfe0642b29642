"""Attention of groups whose samples share a prompt, at the cost of what is really attended to.

A prompt attends to itself; a sample to its own past and, in a second call, to the prompt. The two are joined by their
log-sum-exp, forward and backward, as attention over the whole row would: siblings cost each other nothing, and no mask
of the square of the row exists. The backward pass of a part with the joined output and log-sum-exp is that part's share
of the whole gradient, as in ring attention (arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Where the tokens of a row are: `prompt_P_T` and `own_P_G_L` are places in the row, filled up at the right with
    place 0; the masks say which are real. P prompts of at most T tokens, G samples of at most L."""

    prompt_P_T: torch.Tensor
    prompt_real_P_T: torch.Tensor
    own_P_G_L: torch.Tensor
    own_real_P_G_L: torch.Tensor
    length: int
    """Of the row."""

    @classmethod
    def of(cls, lengths: Sequence[tuple[int, Sequence[int]]], length: int) -> SharedPrompts:
        """From the length of each prompt and of each of its samples, which lie one after another in the row."""
        longest_prompt = max(prompt for prompt, _ in lengths)
        longest = max([1, *(own for _, samples in lengths for own in samples)])
        most = max(len(samples) for _, samples in lengths)
        prompt = torch.zeros(len(lengths), longest_prompt, dtype=torch.long)
        own = torch.zeros(len(lengths), most, longest, dtype=torch.long)
        prompt_real, own_real = torch.zeros_like(prompt, dtype=torch.bool), torch.zeros_like(own, dtype=torch.bool)
        at = 0
        for p, (size, samples) in enumerate(lengths):
            prompt[p, :size], prompt_real[p, :size] = torch.arange(at, at + size), True
            at += size
            for g, count in enumerate(samples):
                own[p, g, :count], own_real[p, g, :count] = torch.arange(at, at + count), True
                at += count
        return cls(prompt, prompt_real, own, own_real, length)


def shared_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: SharedPrompts, scale: float
) -> torch.Tensor:
    """[T, heads, width] from queries [T, heads, width], keys and values [T, kv heads, width] of a row of T tokens."""
    out: torch.Tensor = _Shared.apply(query, key, value, where, scale)  # type: ignore[no-untyped-call]
    return out


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: SharedPrompts, scale: float
    ) -> torch.Tensor:
        parts = _Parts(query, key, value, where)
        prompt, prompt_lse = _attend(*parts.prompt, 0.0, True, scale=scale)
        own, own_lse = _attend(*parts.own, 0.0, True, scale=scale)
        over, over_lse = _attend(*parts.over, 0.0, False, attn_mask=parts.mask, scale=scale)
        over, over_lse = parts.by_sample(over), parts.by_sample(over_lse[..., None])[..., 0]
        joined = torch.lerp(own.float(), over.float(), torch.sigmoid(over_lse - own_lse)[..., None]).to(own.dtype)
        joined_lse = torch.logaddexp(own_lse, over_lse)
        out = query.new_zeros(query.shape)
        parts.put_prompt(out, prompt)
        parts.put_own(out, joined)
        ctx.save_for_backward(query, key, value, prompt, joined)
        ctx.lse = prompt_lse, joined_lse
        ctx.where, ctx.scale = where, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        prompt_lse, joined_lse = ctx.lse
        where, scale, dtype = ctx.where, ctx.scale, grads[0].dtype
        # In fp32: torch's backward pass on a CPU is three to ten times slower in bf16 for parts as short as these.
        query, key, value, prompt, joined, grad = (part.float() for part in (*ctx.saved_tensors, grads[0]))
        parts = _Parts(query, key, value, where)
        prompt_grad, own_grad = parts.prompt_of(grad), parts.own_of(grad)
        a = _attend_backward(prompt_grad, *parts.prompt, prompt, prompt_lse, 0.0, True, scale=scale)
        b = _attend_backward(own_grad, *parts.own, joined, joined_lse, 0.0, True, scale=scale)
        stacked = (parts.by_prompt(each) for each in (own_grad, joined, joined_lse[..., None]))
        over_grad, over_out, over_lse = stacked
        c = _attend_backward(
            over_grad, *parts.over, over_out, over_lse[..., 0], 0.0, False, attn_mask=parts.mask, scale=scale
        )
        found = [torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)]
        parts.put_prompt(found[0], a[0])
        parts.put_own(found[0], b[0] + parts.by_sample(c[0]))
        for number in (1, 2):
            parts.put_prompt(found[number], parts.per_kv_head(a[number]) + c[number])
            parts.put_own(found[number], parts.per_kv_head(b[number]))
        return found[0].to(dtype), found[1].to(dtype), found[2].to(dtype), None, None


class _Parts:
    """The row cut up: `prompt` and `own` hold queries, keys and values [batch, heads, tokens, width] of each prompt and
    each sample; `over` stacks all queries of a group that share a key: [P, kv heads, G x per x L, width]."""

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: SharedPrompts) -> None:
        self.where, (_, heads, _), self.kv_heads = where, query.shape, key.shape[1]
        self.per = heads // self.kv_heads
        self.groups, self.samples, self.longest = where.own_P_G_L.shape
        keys, values = self.prompt_of(key, real=False), self.prompt_of(value, real=False)
        self.prompt = (self.prompt_of(query, real=False), self._repeated(keys), self._repeated(values))
        own = self.own_of(query, real=False)
        self.own = (own, *(self._repeated(self.own_of(each, real=False)) for each in (key, value)))
        self.over = (self.by_prompt(own), keys, values)
        self.mask = torch.zeros(where.prompt_P_T.shape, dtype=query.dtype)
        self.mask = self.mask.masked_fill_(~where.prompt_real_P_T, -torch.inf)[:, None, None]

    def prompt_of(self, rows: torch.Tensor, *, real: bool = True) -> torch.Tensor:
        """[P, heads, T, width]; `real`: zeros where it is filled up."""
        found = rows[self.where.prompt_P_T]
        return (found * self.where.prompt_real_P_T[..., None, None] if real else found).transpose(1, 2)

    def own_of(self, rows: torch.Tensor, *, real: bool = True) -> torch.Tensor:
        """[P x G, heads, L, width]."""
        found = rows[self.where.own_P_G_L]
        found = found * self.where.own_real_P_G_L[..., None, None] if real else found
        return found.flatten(0, 1).transpose(1, 2)

    def put_prompt(self, rows: torch.Tensor, part: torch.Tensor) -> None:
        rows[self.where.prompt_P_T[self.where.prompt_real_P_T]] = part.transpose(1, 2)[self.where.prompt_real_P_T]

    def put_own(self, rows: torch.Tensor, part: torch.Tensor) -> None:
        real = self.where.own_real_P_G_L
        rows[self.where.own_P_G_L[real]] = part.transpose(1, 2).unflatten(0, (self.groups, self.samples))[real]

    def by_prompt(self, part: torch.Tensor) -> torch.Tensor:
        """[P x G, heads, L, width] to [P, kv heads, G x per x L, width]."""
        cut = part.view(self.groups, self.samples, self.kv_heads, self.per, self.longest, part.shape[-1])
        return cut.transpose(1, 2).reshape(self.groups, self.kv_heads, -1, part.shape[-1])

    def by_sample(self, part: torch.Tensor) -> torch.Tensor:
        """The other way."""
        cut = part.reshape(self.groups, self.kv_heads, self.samples, self.per, self.longest, part.shape[-1])
        heads = self.kv_heads * self.per
        return cut.transpose(1, 2).reshape(self.groups * self.samples, heads, self.longest, part.shape[-1])

    def _repeated(self, part: torch.Tensor) -> torch.Tensor:
        return part.repeat_interleave(self.per, dim=1) if self.per > 1 else part

    def per_kv_head(self, part: torch.Tensor) -> torch.Tensor:
        """Sums over the queries that share a key."""
        return part.unflatten(1, (self.kv_heads, self.per)).sum(2) if self.per > 1 else part
