"""Decoding for Llama and its like by a short hand-written pass, tested equal to the model's own.

What it saves over the model's forward: weights that oneDNN has laid out once instead of at every product, one product
for query, key and value and one for gate and up, no copies of keys for grouped queries, and a sample's past by itself:
attention over the prompt and over the own tokens are two calls, joined by their log-sum-exp, so that siblings cost
each other nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from omni_thinker.engine.llama import rms_norm
from omni_thinker.engine.ops import apply_rope_no_grad, swiglu
from omni_thinker.engine.packing import MULTIPLE as ROW_MULTIPLE
from omni_thinker.sampling.decoders.base import filled
from omni_thinker.sampling.decoders.kv_cache import AttendingCache, KVCache, TwoCallCache
from omni_thinker.sampling.decoders.weights import LayerWeights, fused_weights
from omni_thinker.types import TokenIds

_PROMPT_TOKENS_AT_ONCE = 8192
"""Most prompt tokens computed at once."""


class LlamaDecoder(ABC):
    """See Decoder. What decoders for Llama and its like share: how prompts are computed, and the order of events. Each
    says in what cache keys and values are (`make_cache`) and how a token goes through the model (`forward`)."""

    cache: KVCache
    """The cache of the current groups. `prefill` makes it, so call that first."""

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.group_size, self.steps = model, group_size, steps
        self.weights = fused_weights(model)

    @abstractmethod
    def make_cache(self, lengths: Sequence[int]) -> KVCache:
        """A cache for prompts of these lengths."""

    @abstractmethod
    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor) -> torch.Tensor:
        """Every layer once, with keys and values to the cache; logits [P, G, V]."""

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        w = self.weights
        self.cache = cache = self.make_cache([len(prompt) for prompt in prompts])
        states_P_C = torch.cat(
            [self._compute_prompts(prompts[batch], cache.prompt[:, :, batch]) for batch in _parts(prompts)]
        )
        # Close to the largest logit of every token to come, which is known only once it is computed.
        cache.shift_P = w.head(states_P_C, cache.shift_P).amax(-1)
        return w.head(states_P_C, cache.shift_P)

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> torch.Tensor:
        logits = self.forward(token_P_G, self.cache.position_P[:, None].expand(token_P_G.shape))
        self.cache.advance((sample_P_G >= 0).any(1))
        return logits

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        self.cache.keep(groups, columns_P_G)

    def _compute_prompts(self, prompts: Sequence[TokenIds], cached: torch.Tensor) -> torch.Tensor:
        """Prompts one after another in a row without padding; only attention, which is causal and so never sees it, has
        them side by side, filled up at the right. Keys and values go to `cached`, [layers, 2, P, kv heads, T, width];
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
        cos, sin = (tensor[0, :, None] for tensor in w.rotary(x[None], positions_T[None].to(device)))
        per = w.heads // w.kv_heads
        for number, layer in enumerate(w.layers):
            rotated, value = self._qkv(layer, rms_norm(layer.before, x), cos, sin)
            query, keys, values = (
                tensor[place_P_T].transpose(1, 2).to(cached.dtype)
                for tensor in (rotated[:, : w.heads], rotated[:, w.heads :], value)
            )
            cached[number, 0, :, :, :longest], cached[number, 1, :, :, :longest] = keys, values
            keys, values = (tensor.repeat_interleave(per, dim=1) for tensor in (keys, values))
            out = F.scaled_dot_product_attention(query, keys, values, is_causal=True, scale=layer.scale)
            flat = F.pad(out.transpose(1, 2)[real_P_T].flatten(1), (0, 0, 0, filling)).to(value.dtype)
            if number == len(w.layers) - 1:  # of the last layer only what the first answer token is predicted from
                x, flat = x[last_P], flat[last_P]
            x = self._fed_forward(layer, x + layer.out(flat))
        return rms_norm(w.norm, x)

    def _qkv(
        self, layer: LayerWeights, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys side by side, rotated to their positions in fp32, and values: [rows, heads, width]."""
        heads, kv_heads = self.weights.heads, self.weights.kv_heads
        qkv = layer.qkv(x).view(len(x), heads + 2 * kv_heads, -1)
        unrotated = qkv[:, : heads + kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            unrotated = torch.cat(
                [rms_norm(layer.q_norm, unrotated[:, :heads]), rms_norm(layer.k_norm, unrotated[:, heads:])], dim=1
            )
        return apply_rope_no_grad(unrotated, cos, sin), qkv[:, heads + kv_heads :]

    def _fed_forward(self, layer: LayerWeights, x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_up(rms_norm(layer.after, x)).chunk(2, dim=-1)
        return x + layer.down(swiglu(gate, up))


class FusedDecoder(LlamaDecoder):
    """Decoding with torch's own functions, on any device."""

    cache: AttendingCache

    def make_cache(self, lengths: Sequence[int]) -> AttendingCache:
        return TwoCallCache(self.weights, lengths, self.group_size, self.steps)

    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor) -> torch.Tensor:
        w, cache, (groups, columns) = self.weights, self.cache, token_P_G.shape
        grid = (groups, columns, w.kv_heads, -1)
        x = w.embed(token_P_G.reshape(-1)).float()
        cos, sin = (table[0, :, None] for table in w.rotary(x[None], position_P_G.reshape(1, -1)))
        for number, layer in enumerate(w.layers):
            rotated, value = self._qkv(layer, rms_norm(layer.before, x), cos, sin)
            cache.store(number, rotated[:, w.heads :].view(grid), value.view(grid))
            out = cache.attend(number, layer.scale, rotated[:, : w.heads], groups, columns)
            x = self._fed_forward(layer, x + layer.out(out))
        shift_P_G = cache.shift_P[:, None].expand(token_P_G.shape)
        return w.head(rms_norm(w.norm, x), shift_P_G.flatten()).view(groups, columns, -1)


def _parts(prompts: Sequence[TokenIds]) -> Iterator[slice]:
    """Neighbours of at most `_PROMPT_TOKENS_AT_ONCE` tokens together; a single longer prompt is a part."""
    begin = total = 0
    for end, length in enumerate(map(len, prompts)):
        if end > begin and total + length > _PROMPT_TOKENS_AT_ONCE:
            yield slice(begin, end)
            begin, total = end, 0
        total += length
    yield slice(begin, len(prompts))
