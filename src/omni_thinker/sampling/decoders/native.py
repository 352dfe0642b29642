"""The decoding pass with everything between its matrix products in C: see native/."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.native import LANES, kernels
from omni_thinker.sampling.decoders.fused import LlamaDecoder
from omni_thinker.sampling.decoders.kv_cache import KVCache
from omni_thinker.sampling.decoders.twins import Rows

_BF16 = 2
"""Bytes of a number."""


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

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        super().__init__(model, group_size, steps)
        self._norms = [(_address(layer.before), _address(layer.after)) for layer in self.weights.layers]

    def make_cache(self, lengths: Sequence[int]) -> KVCache:
        wide = torch.float32
        return KVCache(
            self.weights, lengths, self.group_size, self.steps, prompt_dtype=wide, answer_dtype=wide, multiple=LANES
        )

    def keep_prompts(self, cached: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        longest, keys = key.shape[1], cached[0].view(*cached.shape[1:3], cached.shape[4], cached.shape[3])
        keys[..., :longest] = key.permute(0, 2, 3, 1)
        keys[..., longest:] = 0
        cached[1][:, :, :longest] = value.transpose(1, 2)
        cached[1][:, :, longest:] = 0

    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor, rows: Rows) -> torch.Tensor:
        # A step of few rows takes about as long as Python takes to ask for it. So addresses are looked up once.
        w, cache, c, (groups, columns) = self.weights, self.cache, kernels(), token_P_G.shape
        assert c is not None
        x = w.embed(rows.pick(token_P_G.reshape(-1))).float()
        (computed, channels), drawn = x.shape, groups * columns
        cos, sin = (tensor[0].contiguous() for tensor in w.rotary(x[None], position_P_G.reshape(1, -1)))
        if token_P_G.shape != cache.answers.shape[2:4]:
            raise IndexError(f"no room for {tuple(token_P_G.shape)} samples")
        normed = torch.empty_like(x, dtype=torch.bfloat16)
        queries = x.new_empty(drawn, w.heads, w.width)
        attended = normed.new_empty(drawn, w.heads * w.width)
        tokens, slots = cache.prompt.shape[4], cache.answers.shape[5]
        to_x, to_normed, to_attended = x.data_ptr(), normed.data_ptr(), attended.data_ptr()
        to_cos, to_sin, to_queries = cos.data_ptr(), sin.data_ptr(), queries.data_ptr()
        to_lengths, to_wanted = cache.length_P.data_ptr(), None if rows.wanted_N is None else rows.wanted_N.data_ptr()
        stored = (drawn, w.heads, w.kv_heads, slots, cache.used, w.width)
        sizes = (groups, columns, w.heads, w.kv_heads, w.width, tokens, slots, cache.used + 1)
        branch: torch.Tensor | None = None
        gated: torch.Tensor | None = None

        def norm(module: tuple[int, float]) -> None:
            more = None if branch is None else branch.data_ptr()
            c.add_norm(to_x, more, module[0], to_normed, None, computed, channels, module[1])

        for layer, (before, after), keys, values, own_keys, own_values in zip(
            w.layers, self._norms, *_halves(cache.prompt), *_halves(cache.answers), strict=True
        ):
            norm(before)
            product = rows.spread(layer.qkv(normed)).contiguous()
            c.turn_and_store(product.data_ptr(), to_cos, to_sin, to_queries, own_keys, own_values, *stored)
            tensors = (to_queries, keys, values, to_lengths, own_keys, own_values, to_attended, to_wanted)
            if c.attend(*tensors, layer.scale, *sizes):
                raise MemoryError("no memory for attention")
            branch = layer.out(rows.pick(attended)).contiguous()
            norm(after)
            both = layer.gate_up(normed).contiguous()
            width = both.shape[1] // 2
            gated = both.new_empty(computed, width) if gated is None else gated
            c.gate(both.data_ptr(), both.data_ptr() + width * _BF16, gated.data_ptr(), computed, width, 2 * width)
            branch = layer.down(gated).contiguous()
        norm(_address(w.norm))
        shift_N = cache.shift_P[:, None].expand(token_P_G.shape).flatten()
        return w.head(normed, rows.pick(shift_N))


def _address(norm: Any) -> tuple[int, float]:
    """Of a norm's weights, and its epsilon."""
    return norm.weight.data_ptr(), norm.variance_epsilon


def _halves(cached: torch.Tensor) -> tuple[range, range]:
    """Addresses of each layer's keys and of its values, of a tensor [layers, 2, ...]."""
    begin, half = cached.data_ptr(), cached.stride(1) * cached.element_size()
    end = begin + 2 * half * len(cached)
    return range(begin, end, 2 * half), range(begin + half, end + half, 2 * half)
