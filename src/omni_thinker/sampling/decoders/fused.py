"""Decoding for Llama and its like by a short hand-written pass, tested equal to the model's own.

What it saves over the model's forward: weights that oneDNN has laid out once instead of at every product, one product
for query, key and value and one for gate and up, no copies of keys for grouped queries, and a sample's past by itself:
attention over the prompt and over the own tokens are two calls, joined by their log-sum-exp, so that siblings cost
each other nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from omni_thinker.engine.head import Linear, ShiftedHead, shifted_product
from omni_thinker.engine.llama import adapters, normed
from omni_thinker.engine.ops import gated, rotated
from omni_thinker.engine.packing import MULTIPLE as ROW_MULTIPLE
from omni_thinker.sampling.decoders.base import MULTIPLE, filled
from omni_thinker.types import TokenIds

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ROWS_EXPECTED = 64
"""Rows that the layout of weights is chosen for."""
_SHORT = 64
"""Answers up to this long keep their keys and values in fp32: torch's attention over so few is twice as fast in it as
in bf16. Longer ones are kept as they are and attended to by two matrix products, which then are the fastest."""

_MANY = 64
"""Heads of all groups, from which on two products attend faster than torch's one call."""
_PROMPT_TOKENS = 8192
"""Of prompts computed at once."""


@dataclass(frozen=True, slots=True)
class _Layer:
    before: torch.nn.Module
    """Norm in front of attention."""
    qkv: Linear
    q_norm: torch.nn.Module | None
    k_norm: torch.nn.Module | None
    out: Linear
    after: torch.nn.Module
    """Norm in front of the feed-forward part."""
    gate_up: Linear
    down: Linear
    scale: float


class FusedWeights:
    """The weights of a model laid out for decoding. Stale as soon as the model's weights change."""

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.get_decoder()
        config: Any = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [_layer(layer) for layer in decoder.layers]
        self.norm, self.embed, self.rotary = decoder.norm, decoder.embed_tokens, decoder.rotary_emb
        self.head = _head(model.get_output_embeddings())
        self.width = int(decoder.layers[0].self_attn.head_dim)


def _head(head: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """From hidden states [rows, C] and what to take off a row's logits [rows], to logits [rows, V]."""
    weight, bias = head.weight.detach(), head.bias
    if bias is not None or weight.dtype != torch.bfloat16:
        plain = _product(weight, bias)
        return lambda x, _: plain(x)
    if weight.device.type == "cpu":
        return ShiftedHead(weight, lambda laid_out: _product(laid_out, None))
    return lambda x, shift: shifted_product(x, weight, shift)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        before=layer.input_layernorm,
        qkv=_linear([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=getattr(attention, "q_norm", None),
        k_norm=getattr(attention, "k_norm", None),
        out=_linear([attention.o_proj]),
        after=layer.post_attention_layernorm,
        gate_up=_linear([mlp.gate_proj, mlp.up_proj]),
        down=_linear([mlp.down_proj]),
        scale=float(attention.scaling),
    )


@torch.no_grad()
def _linear(parts: Sequence[Any]) -> Linear:
    """One product for the outputs of `parts` side by side, and two small ones more where they have adapters."""
    bases = [getattr(part, "base_layer", part) for part in parts]
    weight = torch.cat([base.weight for base in bases]) if len(bases) > 1 else bases[0].weight
    bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
    plain = _product(weight.detach(), bias)
    if not any(adapters(part) for part in parts):
        return plain
    down, up = _factors(parts, weight.dtype)
    return lambda x: plain(x) + F.linear(F.linear(x, down), up)


def _product(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    if weight.device.type == "cpu":
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_EXPECTED)
            multiply = torch.ops.mkldnn._linear_pointwise
            return lambda x: multiply(x, packed, bias, "none", [], "")
        except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without oneDNN
            pass
    return lambda x: F.linear(x, weight, bias)


def _factors(parts: Sequence[Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The low-rank factors of `parts`, for one product each: all that lead down stacked, [ranks, in], and those that
    lead up on a diagonal of blocks, [out, ranks]. Kept apart from the weights: added to weights in bf16, an update as
    small as an adapter's would be lost to rounding."""
    downs, ups = [], []
    for part in parts:
        width = getattr(part, "base_layer", part).weight
        own = [(part.lora_A[n].weight, part.lora_B[n].weight * part.scaling[n]) for n in adapters(part)]
        downs += [a for a, _ in own] or [width.new_empty(0, width.shape[1])]
        ups.append(torch.cat([b for _, b in own], dim=1) if own else width.new_empty(width.shape[0], 0))
    return torch.cat([a.to(dtype) for a in downs]), torch.block_diag(*(b.to(dtype) for b in ups))


_laid_out: WeakKeyDictionary[PreTrainedModel, tuple[int, FusedWeights]] = WeakKeyDictionary()


def fused_weights(model: PreTrainedModel) -> FusedWeights:
    """Laid out anew only where a weight was written to since the last time."""
    version = sum(p._version for p in model.parameters())
    known = _laid_out.get(model)
    if known is None or known[0] != version:
        _laid_out.pop(model, None)  # before the new ones are made
        known = _laid_out[model] = version, FusedWeights(model)
    return known[1]


def drop_layout(model: PreTrainedModel) -> None:
    """What is laid out for decoding takes as much memory as the model: not while it is trained."""
    _laid_out.pop(model, None)


class FusedDecoder:
    """See Decoder. Attends to prompts in fp32, as the training pass does, so that nothing is rounded here but where it
    is rounded there."""

    attention_in_fp32 = True
    multiple = MULTIPLE
    """To which prompts are filled up."""

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.group_size, self.steps = model, group_size, steps
        self.weights = fused_weights(model)

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        w, device = self.weights, self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = filled(int(lengths.max()), self.multiple)
        self._dtype = dtype = w.embed.weight.dtype
        self._attention_dtype = torch.promote_types(dtype, torch.float32) if self.attention_in_fp32 else dtype
        shape = (len(w.layers), 2, len(prompts), w.kv_heads, longest, w.width)
        self._prompt = torch.zeros(shape, dtype=self._attention_dtype, device=device)
        last = []
        for part in _parts(lengths.tolist()):
            last.append(self._compute_prompts(prompts[part], self._prompt[:, :, part]))
        real = torch.arange(longest) < lengths[:, None]
        mask = torch.zeros(real.shape, dtype=self._attention_dtype).masked_fill_(~real, -torch.inf)
        self._mask = mask[:, None, None].to(device)
        self._position_P = lengths.to(device)
        own_shape = (len(w.layers), 2, len(prompts), self.group_size, w.kv_heads, self.steps, w.width)
        self._own = self._make_room(own_shape, dtype)
        self._used = 0
        states_P_C = torch.cat(last)
        # Close to the largest logit of every token to come, which is known only once it is computed.
        self._shift_P = w.head(states_P_C, torch.zeros(len(prompts), device=device)).amax(-1)
        return w.head(states_P_C, self._shift_P)

    def _compute_prompts(self, prompts: Sequence[TokenIds], kept: torch.Tensor) -> torch.Tensor:
        """Prompts one after another in a row without padding; only attention, which is causal and so never sees it, has
        them side by side, filled up at the right. Keys and values go to `kept`, [layers, 2, P, kv heads, T, width];
        returns the hidden states that the first answer tokens are predicted from, [P, C]."""
        w, device = self.weights, self.model.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest, count = int(lengths.max()), int(lengths.sum())
        real_P_T = torch.arange(longest) < lengths[:, None]
        place_P_T = torch.zeros(real_P_T.shape, dtype=torch.long)
        place_P_T[real_P_T] = torch.arange(count)
        filling = filled(count, ROW_MULTIPLE) - count
        tokens_T = torch.tensor([t for prompt in prompts for t in prompt] + [0] * filling, device=device)
        positions_T = torch.cat([torch.arange(longest).expand_as(real_P_T)[real_P_T], torch.zeros(filling).long()])
        last_P = (lengths.cumsum(0) - 1).to(device)
        real_P_T, place_P_T = real_P_T.to(device), place_P_T.to(device)
        x = w.embed(tokens_T).float()
        cos, sin = (part[0, :, None] for part in w.rotary(x[None], positions_T[None].to(device)))
        per = w.heads // w.kv_heads
        for number, layer in enumerate(w.layers):
            turned, value = self._turned(layer, normed(layer.before, x), cos, sin)
            query, keys, values = (
                part[place_P_T].transpose(1, 2).to(self._attention_dtype)
                for part in (turned[:, : w.heads], turned[:, w.heads :], value)
            )
            kept[number, 0, :, :, :longest], kept[number, 1, :, :, :longest] = keys, values
            keys, values = (part.repeat_interleave(per, dim=1) for part in (keys, values))
            out = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=layer.scale)
            flat = F.pad(out.transpose(1, 2)[real_P_T].flatten(1), (0, 0, 0, filling)).to(value.dtype)
            if number == len(w.layers) - 1:  # of the last layer only what the first answer token is predicted from
                x, flat = x[last_P], flat[last_P]
            x = self._fed_forward(layer, x + layer.out(flat))
        return normed(w.norm, x)

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> torch.Tensor:
        position_P_G = self._position_P[:, None].expand(token_P_G.shape)
        logits = self._pass(token_P_G, position_P_G)
        self._used += 1
        self._position_P = self._position_P + (sample_P_G >= 0).any(1)
        return logits

    def _pass(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor) -> torch.Tensor:
        """Every layer once; logits [P, G, V]."""
        w, (groups, columns) = self.weights, token_P_G.shape
        x = w.embed(token_P_G.reshape(-1)).float()
        cos, sin = (part[0, :, None] for part in w.rotary(x[None], position_P_G.reshape(1, -1)))
        for number, layer in enumerate(w.layers):
            out = self._attention(number, layer, normed(layer.before, x), cos, sin, groups, columns)
            x = self._fed_forward(layer, x + layer.out(out))
        shift_P_G = self._shift_P[:, None].expand(token_P_G.shape)
        return w.head(normed(w.norm, x), shift_P_G.flatten()).view(groups, columns, -1)

    def _attention(
        self,
        number: int,
        layer: _Layer,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        groups: int,
        columns: int,
    ) -> torch.Tensor:
        heads = self.weights.heads
        turned, value = self._turned(layer, x, cos, sin)
        grid = (groups, columns, self.weights.kv_heads, -1)
        self._store(number, turned[:, heads:].view(grid), value.view(grid))
        return self._attend(number, layer.scale, turned[:, :heads], groups, columns)

    def _turned(
        self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys side by side, turned to their positions in fp32, and values: [rows, heads, width]."""
        heads, kv_heads = self.weights.heads, self.weights.kv_heads
        qkv = layer.qkv(x).view(len(x), heads + 2 * kv_heads, -1)
        turned = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            turned = torch.cat(
                [normed(layer.q_norm, turned[:, :heads]), normed(layer.k_norm, turned[:, heads:])], dim=1
            )
        return rotated(turned, cos, sin), qkv[:, heads + kv_heads :]

    def _fed_forward(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(normed(layer.after, x)).chunk(2, dim=-1)
        return x + layer.down(gated(gate, up))

    def _make_room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """For keys and values of answers, of a model that computes in `dtype`."""
        return torch.empty(shape, dtype=torch.float32 if self.steps <= _SHORT else dtype, device=self.model.device)

    def _store(self, number: int, key_P_G_H_W: torch.Tensor, value_P_G_H_W: torch.Tensor) -> None:
        keys, values = self._own[number]
        keys[:, :, :, self._used] = key_P_G_H_W
        values[:, :, :, self._used] = value_P_G_H_W

    def _attend(self, number: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        """Queries that share keys are stacked: [groups, kv heads, columns x queries] for the prompt, [groups x columns,
        kv heads, queries] for the own tokens."""
        rows, heads, width = query.shape
        kv_heads = self.weights.kv_heads
        per = heads // kv_heads
        grid = query.view(groups, columns, kv_heads, per, width)
        over = grid.transpose(1, 2).reshape(groups, kv_heads, columns * per, width).to(self._attention_dtype)
        keys, values = self._prompt[number]
        if groups * kv_heads >= _MANY:
            prompt, prompt_lse = _attend_by_products(over, keys, values, scale, self._mask)
        else:
            prompt, prompt_lse = _attend(over, keys, values, 0.0, False, attn_mask=self._mask, scale=scale)
        keys, values = (part.flatten(0, 1)[:, :, : self._used + 1] for part in self._own[number])
        own, own_lse = _attend_to_own(query.view(rows, kv_heads, per, width), keys, values, scale)
        prompt = prompt.view(groups, kv_heads, columns, per, width).transpose(1, 2)
        prompt_lse = prompt_lse.view(groups, kv_heads, columns, per).transpose(1, 2)
        share = torch.sigmoid(prompt_lse - own_lse.view(groups, columns, kv_heads, per))[..., None]
        joined = torch.lerp(own.view(groups, columns, kv_heads, per, width).float(), prompt.float(), share)
        return joined.to(self._dtype).view(rows, heads * width)

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        if len(groups) < len(self._position_P):
            self._position_P, self._mask = self._position_P[groups], self._mask[groups]
            self._shift_P = self._shift_P[groups]
            self._prompt = self._prompt[:, :, groups]
        # Only what is written so far is moved.
        layers, kinds, _, _, heads, _, width = self._own.shape
        own = self._make_room((layers, kinds, *columns_P_G.shape, heads, self.steps, width), self._own.dtype)
        own[..., : self._used, :] = self._own[:, :, groups[:, None], columns_P_G, :, : self._used]
        self._own = own


def _parts(lengths: Sequence[int]) -> Iterator[slice]:
    """Neighbours of at most `_PROMPT_TOKENS` tokens together; a single longer prompt is a part."""
    begin = total = 0
    for end, length in enumerate(lengths):
        if end > begin and total + length > _PROMPT_TOKENS:
            yield slice(begin, end)
            begin, total = end, 0
        total += length
    yield slice(begin, len(lengths))


def _attend_to_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and their log-sum-exp; keys and values [rows, kv heads, T, width] in fp32 or as the queries are."""
    if keys.dtype == torch.float32:
        out, lse = _attend(query.float(), keys, values, 0.0, False, scale=scale)
        return out, lse
    return _attend_by_products(query.to(keys.dtype), keys, values, scale)


def _attend_by_products(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for few queries of many heads, where torch's one call for it takes twice as long in bf16."""
    score = torch.matmul(query, keys.transpose(2, 3)).float().mul_(scale)
    if mask is not None:
        score.add_(mask)
    lse = score.logsumexp(-1)
    return torch.matmul(score.sub_(lse[..., None]).exp_().to(values.dtype), values), lse
