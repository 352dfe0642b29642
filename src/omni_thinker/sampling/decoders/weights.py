"""Weights of Llama and its like, laid out for decoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from omni_thinker.engine.head import Linear, ShiftedHead, shifted_product
from omni_thinker.engine.llama import adapters

_ROWS_EXPECTED = 64
"""Rows that the layout of weights is chosen for."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
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

    def __init__(self, model: PreTrainedModel, *, take: bool = False) -> None:
        """`take`: let the model's matrices go, each layer's as soon as it is laid out."""
        decoder: Any = model.get_decoder()
        config: Any = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = []
        for layer in decoder.layers:
            self.layers.append(_layer(layer))
            if take:
                _let_go(layer)
        self.norm, self.embed, self.rotary = decoder.norm, decoder.embed_tokens, decoder.rotary_emb
        self.head = _head(model.get_output_embeddings())
        self.width = int(decoder.layers[0].self_attn.head_dim)


def _head(head: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function from hidden states [rows, C] and what to take off a row's logits [rows], to logits [rows, V]."""
    weight, bias = head.weight.detach(), head.bias
    if bias is not None or weight.dtype != torch.bfloat16:
        plain = _product(weight, bias)
        return lambda x, _: plain(x)
    if weight.device.type == "cpu":
        return ShiftedHead(weight, lambda laid_out: _product(laid_out, None))
    return lambda x, shift: shifted_product(x, weight, shift)


def _layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerWeights(
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


def _let_go(layer: Any) -> None:
    for block in (layer.self_attn, layer.mlp):
        for name, module in block.named_children():
            if name.endswith("_proj"):
                weight = getattr(module, "base_layer", module).weight
                weight.data = weight.data.new_empty(0)  # what is laid out holds what it still needs


@torch.no_grad()
def _linear(layers: Sequence[Any]) -> Linear:
    """One product for the outputs of `layers` side by side, and two small ones more where they have adapters."""
    bases = [getattr(layer, "base_layer", layer) for layer in layers]
    weight = torch.cat([base.weight for base in bases]) if len(bases) > 1 else bases[0].weight
    bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
    plain = _product(weight.detach(), bias)
    if not any(adapters(layer) for layer in layers):
        return plain
    down, up = _factors(layers, weight.dtype)
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


def _factors(layers: Sequence[Any], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The low-rank factors of `layers`, for one product each: all that lead down stacked, [ranks, in], and those that
    lead up on a diagonal of blocks, [out, ranks]. Kept apart from the weights: added to weights in bf16, an update as
    small as an adapter's would be lost to rounding."""
    downs, ups = [], []
    for layer in layers:
        width = getattr(layer, "base_layer", layer).weight
        factors = [(layer.lora_A[n].weight, layer.lora_B[n].weight * layer.scaling[n]) for n in adapters(layer)]
        downs += [a for a, _ in factors] or [width.new_empty(0, width.shape[1])]
        ups.append(torch.cat([b for _, b in factors], dim=1) if factors else width.new_empty(width.shape[0], 0))
    return torch.cat([a.to(dtype) for a in downs]), torch.block_diag(*(b.to(dtype) for b in ups))


_laid_out: WeakKeyDictionary[PreTrainedModel, tuple[int, FusedWeights]] = WeakKeyDictionary()


def fused_weights(model: PreTrainedModel, *, take: bool = False) -> FusedWeights:
    """Laid out anew only where a weight was written to since the last time. `take`: see FusedWeights."""
    version = sum(p._version for p in model.parameters())
    known = _laid_out.get(model)
    if known is None or known[0] != version:
        _laid_out.pop(model, None)  # before the new ones are made
        known = _laid_out[model] = version, FusedWeights(model, take=take)
    return known[1]


def drop_layout(model: PreTrainedModel) -> None:
    """What is laid out for decoding takes as much memory as the model: not while it is trained."""
    _laid_out.pop(model, None)
