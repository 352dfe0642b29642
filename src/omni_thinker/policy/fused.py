"""Decoding for Llama and its like by a short hand-written pass, tested equal to the model's own.

What it saves over the model's forward: weights that oneDNN has laid out once instead of at every product, one product
for query, key and value and one for gate and up, no copies of keys for grouped queries, and a sample's past by itself:
attention over the prompt and over the own tokens are two calls, joined by their log-sum-exp, so that siblings cost
each other nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from omni_thinker.policy.decoder import prefill
from omni_thinker.policy.forward import knows
from omni_thinker.types import TokenIds

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ROWS_EXPECTED = 64
"""Rows that the layout of weights is chosen for."""
_SHORT = 64
"""Answers up to this long keep their keys and values in fp32: torch's attention over so few is twice as fast in it as
in bf16. Longer ones are kept as they are and attended to by two matrix products, which then are the fastest."""

Linear = Callable[[torch.Tensor], torch.Tensor]


def supports_fused(model: PreTrainedModel) -> bool:
    """Whether this pass knows the model: its family, and without adapters or quantisation."""
    if not knows(model):
        return False
    layers: Any = model.get_decoder().layers
    linears = [m for layer in layers for m in layer.modules() if "Linear" in type(m).__name__]
    return all(type(m) is torch.nn.Linear for m in linears)


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
        self.head = _linear([model.get_output_embeddings()])


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
    """One product for the outputs of `parts` side by side."""
    weight = torch.cat([part.weight for part in parts]) if len(parts) > 1 else parts[0].weight
    bias = torch.cat([part.bias for part in parts]) if parts[0].bias is not None else None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_EXPECTED)
        multiply = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError, NotImplementedError):  # a build of torch without oneDNN
        kept = weight.detach().clone()
        return lambda x: F.linear(x, kept, bias)
    return lambda x: multiply(x, packed, bias, "none", [], "")


_laid_out: WeakKeyDictionary[PreTrainedModel, tuple[int, FusedWeights]] = WeakKeyDictionary()


def fused_weights(model: PreTrainedModel) -> FusedWeights:
    """Laid out anew only where a weight was written to since the last time."""
    version = sum(p._version for p in model.parameters())
    known = _laid_out.get(model)
    if known is None or known[0] != version:
        _laid_out.pop(model, None)  # before the new ones are made
        known = _laid_out[model] = version, FusedWeights(model)
    return known[1]


class FusedDecoder:
    """See Decoder. Prompts go through the model's own pass."""

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.group_size, self.steps = model, group_size, steps
        self.weights = fused_weights(model)

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        layers, valid, logits = prefill(self.model, prompts, 0)
        self._prompt = [(layer.keys, layer.values) for layer in layers]
        keys = layers[0].keys
        self._mask = torch.zeros(valid.shape, dtype=keys.dtype).masked_fill_(~valid, -torch.inf)[:, None, None]
        self._position_P = valid.sum(1)
        _, heads, _, width = keys.shape
        shape = (len(self.weights.layers), 2, len(prompts), self.group_size, heads, self.steps, width)
        self._own = torch.empty(shape, dtype=torch.float32 if self.steps <= _SHORT else keys.dtype)
        self._used = 0
        return logits

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> torch.Tensor:
        w, (groups, columns) = self.weights, token_P_G.shape
        rows = groups * columns
        x = w.embed(token_P_G.reshape(rows))
        position = self._position_P[:, None].expand(groups, columns).reshape(1, rows)
        cos, sin = (part[0, :, None] for part in w.rotary(x[None], position))
        for number, layer in enumerate(w.layers):
            x = x + layer.out(self._attention(number, layer, layer.before(x), cos, sin, groups, columns))
            gate, up = layer.gate_up(layer.after(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate).mul_(up))
        self._used += 1
        self._position_P = self._position_P + (sample_P_G >= 0).any(1)
        logits: torch.Tensor = w.head(w.norm(x)).view(groups, columns, -1)
        return logits

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
        heads, kv_heads = self.weights.heads, self.weights.kv_heads
        qkv = layer.qkv(x).view(groups * columns, heads + 2 * kv_heads, -1)
        turned = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            turned = torch.cat([layer.q_norm(turned[:, :heads]), layer.k_norm(turned[:, heads:])], dim=1)
        half = turned.shape[-1] // 2
        turned = turned * cos + torch.cat([-turned[..., half:], turned[..., :half]], dim=-1) * sin
        keys, values = self._own[number]
        keys[:, :, :, self._used] = turned[:, heads:].view(groups, columns, kv_heads, -1)
        values[:, :, :, self._used] = qkv[:, heads + kv_heads :].view(groups, columns, kv_heads, -1)
        return self._attend(number, layer.scale, turned[:, :heads], groups, columns)

    def _attend(self, number: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        """Queries that share keys are stacked: [groups, kv heads, columns x queries] for the prompt, [groups x columns,
        kv heads, queries] for the own tokens."""
        rows, heads, width = query.shape
        kv_heads = self.weights.kv_heads
        per = heads // kv_heads
        grid = query.view(groups, columns, kv_heads, per, width)
        over = grid.transpose(1, 2).reshape(groups, kv_heads, columns * per, width)
        prompt, prompt_lse = _attend(over, *self._prompt[number], 0.0, False, attn_mask=self._mask, scale=scale)
        keys, values = (part.flatten(0, 1)[:, :, : self._used + 1] for part in self._own[number])
        own, own_lse = _attend_to_own(query.view(rows, kv_heads, per, width), keys, values, scale)
        prompt = prompt.view(groups, kv_heads, columns, per, width).transpose(1, 2)
        prompt_lse = prompt_lse.view(groups, kv_heads, columns, per).transpose(1, 2)
        share = torch.sigmoid(prompt_lse - own_lse.view(groups, columns, kv_heads, per))[..., None]
        joined = torch.lerp(own.view(groups, columns, kv_heads, per, width).float(), prompt.float(), share)
        return joined.to(query.dtype).view(rows, heads * width)

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        if len(groups) < len(self._position_P):
            self._position_P, self._mask = self._position_P[groups], self._mask[groups]
            self._prompt = [
                (keys.index_select(0, groups), values.index_select(0, groups)) for keys, values in self._prompt
            ]
        # Only what is written so far is moved.
        layers, kinds, _, _, heads, _, width = self._own.shape
        own = self._own.new_empty(layers, kinds, *columns_P_G.shape, heads, self.steps, width)
        own[..., : self._used, :] = self._own[:, :, groups[:, None], columns_P_G, :, : self._used]
        self._own = own


def _attend_to_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and their log-sum-exp; keys and values [rows, kv heads, T, width] in fp32 or as the queries are."""
    if keys.dtype == torch.float32:
        out, lse = _attend(query.float(), keys, values, 0.0, False, scale=scale)
        return out, lse
    score = torch.matmul(query, keys.transpose(2, 3)).float().mul_(scale)
    lse = score.logsumexp(-1)
    return torch.matmul(score.sub_(lse[..., None]).exp_().to(values.dtype), values), lse
