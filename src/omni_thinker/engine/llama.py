"""The training pass over a packed row for Llama and its like, written out: see shared_attention and kernels.

Weights are used through the model's own modules, so that biases and adapters count; what is left out is what
transformers does for the general case. Tested equal to the model's own pass over padded rows, gradients included.

What layers add up to is kept in fp32, here and in the decoder, and so are queries and keys once they are rotated to
their positions: what is rounded to bf16 between two products is what sampler and trainer disagree by."""

from functools import cache, partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from omni_thinker.engine import ops
from omni_thinker.engine.attention.flex import flex_attention_over, row_mask
from omni_thinker.engine.attention.native_cpu import RowParts, native_attention, suits
from omni_thinker.engine.attention.shared_prompts import SharedPrompts, shared_attention
from omni_thinker.engine.nodes import Attend, Nodes
from omni_thinker.engine.ops import apply_rope, swiglu
from omni_thinker.engine.packing import PackedRow
from omni_thinker.engine.through import through

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def knows(model: PreTrainedModel) -> bool:
    """Whether the model is of a family whose layers are written out here and in the decoder, without windows, and on a
    device whose attention we know."""
    config: Any = model.config
    if config.model_type not in _FAMILIES or model.device.type not in ("cpu", "cuda") or config.hidden_act != "silu":
        return False
    if getattr(config, "use_sliding_window", False):
        return False
    return config.model_type != "mistral" or getattr(config, "sliding_window", None) is None


def knows_weights(model: PreTrainedModel) -> bool:
    """`knows`, and every matrix is a plain one or a plain one with LoRA: no quantisation, no other adapter."""
    if not knows(model):
        return False
    decoder: Any = model.get_decoder()
    linears = {
        module
        for layer in decoder.layers
        for block in (layer.self_attn, layer.mlp)
        for name, module in block.named_children()
        if name.endswith("_proj")
    }
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and all(type(m) is torch.nn.Linear or _is_lora(m) for m in linears)


def adapters(module: Any) -> list[str]:
    """Names of the LoRA adapters at work in a linear layer."""
    if not hasattr(module, "lora_A") or module.disable_adapters or module.merged:
        return []
    return [name for name in module.active_adapters if name in module.lora_A]


def _is_lora(module: Any) -> bool:
    """Whether a layer of peft does just base(x) + scaling x B(A(x)) where nothing drops out."""
    base = getattr(module, "base_layer", None)
    if type(base) is not torch.nn.Linear or not hasattr(module, "lora_A"):
        return False
    if getattr(module, "lora_variant", None) or not all(isinstance(m, torch.nn.Linear) for m in module.lora_A.values()):
        return False
    return all(m.bias is None for m in module.lora_B.values())


def answer_states(
    model: PreTrainedModel, row: PackedRow, *, nodes: Nodes | None = None, recompute: bool = False
) -> torch.Tensor:
    """Last hidden states that the answer tokens are predicted from, [N, C]. `nodes`: those of the row, where it is to
    be computed by these. `recompute`: keep each layer's input alone and compute the rest again for the gradient."""
    decoder: Any = model.get_decoder()
    device = model.device
    attend = _attend_by(model, row, nodes)
    tokens, positions, source_N = row.tokens_T, row.positions_T, row.source_N
    if nodes is not None:
        attend = nodes.around(attend)
        tokens, positions, source_N = nodes.tokens_U, nodes.positions_U, nodes.node_T[source_N]
    x = decoder.embed_tokens(tokens.to(device)).float()
    cos, sin = (table[0, :, None] for table in decoder.rotary_emb(x[None], positions[None].to(device)))
    for layer in decoder.layers:
        if recompute and torch.is_grad_enabled():
            arguments = (through, layer, _layer, x, cos, sin, attend)
            x = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            x = through(layer, _layer, x, cos, sin, attend)
    return rms_norm(decoder.norm, x[source_N.to(device)])


def _attend_by(model: PreTrainedModel, row: PackedRow, nodes: Nodes | None) -> Attend:
    config: Any = model.config
    device = model.device
    if device.type == "cpu":
        heads = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads}
        shapes, tokens = (row.shapes, len(row.tokens_T)) if nodes is None else (nodes.shapes, len(nodes.node_K))
        native = cache(lambda: RowParts.of(shapes))
        shared = cache(lambda: SharedPrompts.of(shapes, tokens, **heads))

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
            if suits(query, key, value):
                return native_attention(query, key, value, native(), scale)
            return shared_attention(query, key, value, shared(), scale)

        return attend
    flex = partial(flex_attention_over, row_mask(row, device))
    return lambda query, key, value, scale: flex(query.to(value.dtype), key.to(value.dtype), value, scale)


def _layer(layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
    x = x + _attention(layer.self_attn, rms_norm(layer.input_layernorm, x), cos, sin, attend)
    h, mlp = rms_norm(layer.post_attention_layernorm, x), layer.mlp
    down: torch.Tensor = mlp.down_proj(swiglu(mlp.gate_proj(h), mlp.up_proj(h)))
    return x + down


def _attention(attention: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
    projections = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    query, key, value = (projection.view(len(x), -1, attention.head_dim) for projection in projections)
    if hasattr(attention, "q_norm"):
        query, key = rms_norm(attention.q_norm, query), rms_norm(attention.k_norm, key)
    out = attend(apply_rope(query, cos, sin), apply_rope(key, cos, sin), value, attention.scaling)
    projected: torch.Tensor = attention.o_proj(out.flatten(1))
    return projected


def rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return ops.rms_norm(x, module.weight, module.variance_epsilon)
