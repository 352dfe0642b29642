"""The training pass over a packed row for Llama and its like, written out: see shared_attention and kernels.

Weights are used through the model's own modules, so that biases and adapters count; what is left out is what
transformers does for the general case. Tested equal to the model's own pass over padded rows, gradients included.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.policy.kernels import gated_silu, rms_norm, rotate
from omni_thinker.policy.packing import PackedRow
from omni_thinker.policy.shared_attention import SharedPrompts, shared_attention

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def knows(model: PreTrainedModel) -> bool:
    """Whether the model is of a family whose layers are written out here and in the decoder, without windows, and on a
    CPU, where both calls of attention tell their log-sum-exp."""
    config: Any = model.config
    if config.model_type not in _FAMILIES or model.device.type != "cpu" or config.hidden_act != "silu":
        return False
    if getattr(config, "use_sliding_window", False):
        return False
    return config.model_type != "mistral" or getattr(config, "sliding_window", None) is None


def answer_states(model: PreTrainedModel, row: PackedRow) -> torch.Tensor:
    """Last hidden states that the answer tokens are predicted from, [N, C]."""
    decoder: Any = model.get_decoder()
    where = SharedPrompts.of(row.shapes, len(row.tokens_T))
    x = decoder.embed_tokens(row.tokens_T)
    cos, sin = (part[0, :, None] for part in decoder.rotary_emb(x[None], row.positions_T[None]))
    for layer in decoder.layers:
        x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), cos, sin, where)
        h, mlp = _norm(layer.post_attention_layernorm, x), layer.mlp
        x = x + mlp.down_proj(gated_silu(mlp.gate_proj(h), mlp.up_proj(h)))
    return _norm(decoder.norm, x[row.source_N])


def _attention(
    attention: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, where: SharedPrompts
) -> torch.Tensor:
    parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    query, key, value = (part.view(len(x), -1, attention.head_dim) for part in parts)
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    out = shared_attention(rotate(query, cos, sin), rotate(key, cos, sin), value, where, attention.scaling)
    projected: torch.Tensor = attention.o_proj(out.flatten(1))
    return projected


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)
