"""Attention of groups whose samples share a prompt, at the cost of what is really attended to.

A prompt attends to itself; a sample to its own past and, in a second call, to the prompt. The two are joined by their
log-sum-exp, forward and backward, as attention over the whole row would: siblings cost each other nothing, and no mask
of the square of the row exists. The backward pass of a part with the joined output and log-sum-exp is that part's share
of the whole gradient, as in ring attention (arXiv 2310.01889).

All of it in fp32, whatever the model's type: torch's backward pass on a CPU is three to ten times slower in bf16 for
parts as short as these, and the forward pass hardly faster.

    row     p p p a a b | q q c c c d       P = 2 prompts, each with its G = 2 samples; T tokens side by side
              |                             one gather (`_Route.pick`) per row: queries, keys and values of all heads
    slots   [p p p]  [a a .] [b . .]        prompts [P, T], samples [P, G, L], filled up to the longest (.)
            [q q .]  [c c c] [d . .]
              |
    calls   1 prompt: p -> p                causal
            2 own:    a -> a, b -> b        causal, each sample by itself
            3 over:   a b -> p              all samples of a group as queries of one call, filling masked
              |                             2 and 3 are joined by their log-sum-exp
    row     p p p a a b | q q c c c d       one gather back (`_Route.place`)"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Route:
    """Between a row of T tokens with some heads each, a list of vectors of the heads' width, and the slots of what
    attention takes, of which some are filling. One gather either way."""

    pick_S: torch.Tensor
    """The vector of each slot; the first of a token of zeros behind the row for what is filling."""
    place_V: torch.Tensor
    """The slot of each vector; one of zeros behind the slots for tokens that are in no part."""

    @classmethod
    def of(cls, ids_of_parts: Sequence[torch.Tensor], vectors: int) -> "_Route":
        """Build the route from the vector ids of each part's slots."""
        pick_S = torch.cat([vector_ids.flatten() for vector_ids in ids_of_parts]).clamp_(max=vectors)
        place_V = torch.full((vectors + 1,), len(pick_S))
        place_V[pick_S] = torch.arange(len(pick_S))
        return cls(pick_S, place_V[:vectors])

    def pick(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """[S, width] in fp32 from what lies side by side in a row, each [T, its heads, width]."""
        tokens, _, width = tensors[0].shape
        heads = sum(tensor.shape[1] for tensor in tensors)
        row = tensors[0].new_empty(tokens + 1, heads, width, dtype=torch.promote_types(tensors[0].dtype, torch.float32))
        torch.cat(list(tensors), dim=1, out=row[:tokens]) if len(tensors) > 1 else row[:tokens].copy_(tensors[0])
        row[tokens:] = 0
        return row.view(-1, width).index_select(0, self.pick_S)

    def place(self, slots: torch.Tensor, tokens: int) -> torch.Tensor:
        """[T, heads, width] from slots [S + 1, width], of which the last is overwritten by zeros."""
        slots[-1] = 0
        return slots.index_select(0, self.place_V).view(tokens, -1, slots.shape[-1])


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Where in a row the vectors are that attention takes. P prompts of at most T tokens, G samples of at most L, K kv
    heads, and R query heads for each.

    Slots are those of queries [P, K, R, T] and [P, K, G, R, L], then keys [P, K, T] and [P, K, G, L], then values."""

    all: _Route
    """The route of queries, keys and values side by side."""
    queries: _Route
    mask: torch.Tensor
    """[P x K, 1, 1, T], added to scores: 0 where a prompt has a token, else -inf."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the six parts, without the width."""
    tokens: int
    """Number of tokens in the row."""

    @classmethod
    def of(
        cls, lengths: Sequence[tuple[int, Sequence[int]]], tokens: int, *, heads: int, kv_heads: int
    ) -> "SharedPrompts":
        """Build the places from the length of each prompt and of each of its samples, which lie one after another in
        the row."""
        longest_prompt = max(prompt for prompt, _ in lengths)
        longest = max([1, *(length for _, samples in lengths for length in samples)])
        most = max([1, *(len(samples) for _, samples in lengths)])
        prompt_P_T = torch.full((len(lengths), longest_prompt), tokens)
        own_P_G_L = torch.full((len(lengths), most, longest), tokens)
        at = 0
        for p, (size, samples) in enumerate(lengths):
            prompt_P_T[p, :size] = torch.arange(at, at + size)
            at += size
            for g, count in enumerate(samples):
                own_P_G_L[p, g, :count] = torch.arange(at, at + count)
                at += count
        per, width = heads // kv_heads, heads + 2 * kv_heads
        query_K_R = torch.arange(heads).view(kv_heads, per)
        key_K = heads + torch.arange(kv_heads)

        def queries(width: int) -> list[torch.Tensor]:
            return [
                prompt_P_T[:, None, None] * width + query_K_R[..., None],
                own_P_G_L[:, None, :, None] * width + query_K_R[:, None, :, None],
            ]

        parts = queries(width)
        for head_K in (key_K, key_K + kv_heads):
            parts.append(prompt_P_T[:, None] * width + head_K[:, None])
            parts.append(own_P_G_L[:, None] * width + head_K[:, None, None])
        mask_P_T = torch.zeros(prompt_P_T.shape).masked_fill_(prompt_P_T == tokens, -torch.inf)
        return cls(
            all=_Route.of(parts, tokens * width),
            queries=_Route.of(queries(heads), tokens * heads),
            mask=mask_P_T.repeat_interleave(kv_heads, 0)[:, None, None],
            shapes=tuple(tuple(places.shape) for places in parts),
            tokens=tokens,
        )

    def parts(self, slots: torch.Tensor, count: int = 6) -> list[torch.Tensor]:
        """Views of the first `count` parts in slots [S, width], prompts and kv heads as one dimension."""
        views, at = [], 0
        for prompts, kv_heads, *sizes in self.shapes[:count]:
            size = prompts * kv_heads * prod(sizes)
            views.append(slots[at : at + size].view(prompts * kv_heads, *sizes, slots.shape[-1]))
            at += size
        return views


def shared_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: SharedPrompts, scale: float
) -> torch.Tensor:
    """[T, heads, width] from queries [T, heads, width], keys and values [T, kv heads, width] of a row of T tokens; of
    the type of the values."""
    out: torch.Tensor = _Shared.apply(query, key, value, where, scale)  # type: ignore[no-untyped-call]
    return out


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, where: SharedPrompts, scale: float
    ) -> torch.Tensor:
        inputs = _Inputs(where, where.all.pick((query, key, value)))
        prompt, prompt_lse = _attend(*inputs.prompt, 0.0, True, scale=scale)
        to_self, self_lse = _attend(*inputs.own, 0.0, True, scale=scale)
        cross, cross_lse = _attend(*inputs.over, 0.0, False, attn_mask=inputs.mask, scale=scale)
        cross, cross_lse = cross.view(to_self.shape), cross_lse.view(self_lse.shape)
        slots = query.new_empty(len(where.queries.pick_S) + 1, query.shape[-1], dtype=to_self.dtype)
        to_prompt, to_own = where.parts(slots, 2)
        to_prompt.copy_(prompt)
        torch.lerp(to_self, cross, torch.sigmoid(cross_lse - self_lse)[..., None], out=to_own.view(to_self.shape))
        out = where.queries.place(slots, where.tokens).to(value.dtype)
        ctx.save_for_backward(query, key, value, out)
        ctx.lse = prompt_lse, torch.logaddexp(self_lse, cross_lse)
        ctx.where, ctx.scale = where, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        query, key, value, out = ctx.saved_tensors
        (prompt_lse, own_lse), where, scale = ctx.lse, ctx.where, ctx.scale
        inputs = _Inputs(where, where.all.pick((query, key, value)))
        prompt_grad, own_grad = where.parts(where.queries.pick((grads[0],)), 2)
        prompt, own = where.parts(where.queries.pick((out,)), 2)
        heads, stacked = inputs.own[0].shape, inputs.over[0].shape
        a = _attend_backward(prompt_grad, *inputs.prompt, prompt, prompt_lse, 0.0, True, scale=scale)
        b = _attend_backward(own_grad.view(heads), *inputs.own, own.view(heads), own_lse, 0.0, True, scale=scale)
        c = _attend_backward(
            own_grad.view(stacked),
            *inputs.over,
            own.view(stacked),
            own_lse.reshape(stacked[:-1]),
            0.0,
            False,
            attn_mask=inputs.mask,
            scale=scale,
        )
        slots = query.new_empty(len(where.all.pick_S) + 1, query.shape[-1], dtype=inputs.mask.dtype)
        to_query, to_own_query, *to_keys_and_values = where.parts(slots)
        to_query.copy_(a[0])
        torch.add(b[0], c[0].view(heads), out=to_own_query.view(heads))
        for number in (1, 2):
            to_prompt, to_own = to_keys_and_values[2 * number - 2 : 2 * number]
            torch.sum(a[number], 1, out=to_prompt).add_(c[number][:, 0])
            torch.sum(b[number].view(inputs.by_query), 2, out=to_own)
        row = where.all.place(slots, where.tokens)
        split = row.split([query.shape[1], key.shape[1], value.shape[1]], dim=1)
        return split[0].to(query.dtype), split[1].to(key.dtype), split[2].to(value.dtype), None, None


class _Inputs:
    """Queries, keys and values of three calls: of each `prompt` to itself [P x K, R, T, width], of each sample to its
    `own` past [P x K, G x R, L, width], and of all a group's queries that share a key `over` the prompt
    [P x K, 1, G x R x L, width]."""

    def __init__(self, where: SharedPrompts, slots: torch.Tensor) -> None:
        query, own_query, *keys_and_values = where.parts(slots)
        keys, own_keys, values, own_values = keys_and_values
        groups, samples, per, longest, width = own_query.shape
        self.by_query = own_query.shape
        heads = (groups, samples * per, longest, width)
        repeated = (tensor[:, :, None].expand(own_query.shape).reshape(heads) for tensor in (own_keys, own_values))
        self.prompt = (query, *(tensor[:, None].expand(query.shape).contiguous() for tensor in (keys, values)))
        self.own = (own_query.view(heads), *repeated)
        self.over = (own_query.view(groups, 1, -1, width), keys[:, None], values[:, None])
        self.mask = where.mask.to(slots.dtype)
