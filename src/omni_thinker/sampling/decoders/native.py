"""The decoding pass with everything between its matrix products in C: see native/."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.native import LANES, kernels
from omni_thinker.engine.ops import swiglu
from omni_thinker.sampling.decoders.fused import LlamaDecoder
from omni_thinker.sampling.decoders.kv_cache import KVCache
from omni_thinker.sampling.decoders.twins import Rows
from omni_thinker.types import TokenIds


def speeds_up(model: PreTrainedModel) -> bool:
    """Whether a model that FusedDecoder knows can be decoded by NativeDecoder on this machine."""
    config: Any = model.config
    if model.device.type != "cpu" or config.model_type == "qwen3":
        return False  # Qwen3 norms its queries and keys
    if any(p.dtype != torch.bfloat16 for name, p in model.named_parameters() if "lora_" not in name):
        return False
    return kernels() is not None


class NativeDecoder(LlamaDecoder):
    """Decoding with kernels in C between matrix products. Keys and values in fp32; those of prompts with their tokens
    last, [kv heads, width, T], so that scores are sums of whole vectors."""

    def make_cache(self, lengths: Sequence[int]) -> KVCache:
        wide = torch.float32
        return KVCache(
            self.weights, lengths, self.group_size, self.steps, prompt_dtype=wide, answer_dtype=wide, multiple=LANES
        )

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        logits = super().prefill(prompts)
        for keys, _ in self.cache.prompt:
            keys.copy_(keys.transpose(2, 3).contiguous().view(keys.shape))
        return logits

    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor, rows: Rows) -> torch.Tensor:
        w, cache, c, (groups, columns) = self.weights, self.cache, kernels(), token_P_G.shape
        assert c is not None
        x = w.embed(rows.pick(token_P_G.reshape(-1))).float()
        (computed, channels), drawn = x.shape, groups * columns
        cos, sin = (tensor[0].contiguous() for tensor in w.rotary(x[None], position_P_G.reshape(1, -1)))
        if token_P_G.shape != cache.answers.shape[2:4] or cache.used == cache.steps:
            raise IndexError(f"no room for token {cache.used + 1} of {tuple(token_P_G.shape)} samples")
        normed = torch.empty_like(x, dtype=torch.bfloat16)
        queries = x.new_empty(drawn, w.heads, w.width)
        attended = normed.new_empty(drawn, w.heads * w.width)
        tokens, slots = cache.prompt.shape[4], cache.steps
        branch: torch.Tensor | None = None

        def norm(module: Any) -> None:
            more = None if branch is None else branch.data_ptr()
            weight, eps = module.weight.data_ptr(), module.variance_epsilon
            c.add_norm(x.data_ptr(), more, weight, normed.data_ptr(), None, computed, channels, eps)

        for number, layer in enumerate(w.layers):
            norm(layer.before)
            product = rows.spread(layer.qkv(normed)).contiguous()
            (keys, values), (own_keys, own_values) = cache.prompt[number], cache.answers[number]
            c.turn_and_store(
                *(tensor.data_ptr() for tensor in (product, cos, sin, queries, own_keys, own_values)),
                *(drawn, w.heads, w.kv_heads, slots, cache.used, w.width),
            )
            tensors = (queries, keys, values, cache.length_P, own_keys, own_values, attended, rows.wanted_N)
            sizes = (groups, columns, w.heads, w.kv_heads, w.width, tokens, slots, cache.used + 1)
            pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
            if c.attend(*pointers, layer.scale, *sizes):
                raise MemoryError("no memory for attention")
            branch = layer.out(rows.pick(attended)).contiguous()
            norm(layer.after)
            both = layer.gate_up(normed).contiguous()
            branch = layer.down(swiglu(*both.chunk(2, dim=-1))).contiguous()
        norm(w.norm)
        shift_N = cache.shift_P[:, None].expand(token_P_G.shape).flatten()
        return rows.spread(w.head(normed, rows.pick(shift_N))).view(groups, columns, -1)
