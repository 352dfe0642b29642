"""Decoding for Llama and its like by a short hand-written pass, tested equal to the model's own.

What it saves over the model's forward: weights that oneDNN has laid out once instead of at every product, one product
for query, key and value and one for gate and up, no copies of keys for grouped queries, and a sample's past by itself:
attention over the prompt and over the own tokens are two calls, joined by their log-sum-exp, so that siblings cost
each other nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.llama import rms_norm
from omni_thinker.engine.ops import apply_rope_no_grad, swiglu
from omni_thinker.engine.packing import MULTIPLE as ROW_MULTIPLE
from omni_thinker.sampling.decoders.base import NextLogits
from omni_thinker.sampling.decoders.beginnings import causal_attention, lay_out
from omni_thinker.sampling.decoders.kv_cache import AttendingCache, KVCache, TwoCallCache
from omni_thinker.sampling.decoders.twins import Rows, Twins
from omni_thinker.sampling.decoders.weights import LayerWeights, fused_weights
from omni_thinker.types import TokenIds

_PROMPT_TOKENS_AT_ONCE = 8192
"""Most prompt tokens computed at once."""


class LlamaDecoder(ABC):
    """See Decoder. What decoders for Llama and its like share: how prompts are computed, and the order of events. Each
    says in what cache keys and values are (`make_cache`) and how a token goes through the model (`forward`)."""

    cache: KVCache
    """The cache of the current groups. `prefill` makes it, so call that first."""
    twins: Twins | None
    """None where every column is a row of its own."""
    shares = True
    """Whether columns of a group that have drawn the same so far are computed once, and those without a sample not."""
    dense = 0.5
    """Columns without a sample cost no more than their place in the cache."""

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.group_size, self.steps = model, group_size, steps
        self.weights = fused_weights(model)

    @abstractmethod
    def make_cache(self, lengths: Sequence[int]) -> KVCache:
        """A cache for prompts of these lengths."""

    @abstractmethod
    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Every layer once over `rows`, with keys and values of each column to the cache; logits [R, V]."""

    def keep_prompts(self, cached: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store a layer's keys and values of prompts, [P, T, kv heads, width], in `cached`, [2, P, kv heads, T or more,
        width]: what fills it up is zero."""
        longest = key.shape[1]
        for kept, new in zip(cached, (key, value), strict=True):
            kept[:, :, :longest] = new.transpose(1, 2)
            kept[:, :, longest:] = 0

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        w = self.weights
        self.cache = cache = self.make_cache([len(prompt) for prompt in prompts])
        self.twins = Twins(len(prompts), self.group_size, self.model.device) if self.shares else None
        states_P_C = torch.cat(
            [self._compute_prompts(prompts[batch], cache.prompt[:, :, batch]) for batch in _parts(prompts)]
        )
        # Close to the largest logit of every token to come, which is known only once it is computed.
        cache.shift_P = w.head(states_P_C, cache.shift_P).amax(-1)
        return w.head(states_P_C, cache.shift_P)

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        rows = Rows() if self.twins is None else self.twins.feed(token_P_G, sample_P_G)
        self.cache.make_room()
        logits = self.forward(token_P_G, self.cache.position_P[:, None].expand(token_P_G.shape), rows)
        self.cache.advance((sample_P_G >= 0).any(1))
        return NextLogits(logits, rows.row_N)

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        self.cache.keep(groups, columns_P_G)
        if self.twins is not None:
            self.twins.keep(groups, columns_P_G)

    def _compute_prompts(self, prompts: Sequence[TokenIds], cached: torch.Tensor) -> torch.Tensor:
        """Prompts in a row without padding, what several begin with once. Keys and values go to `cached`, [layers, 2,
        P, kv heads, T, width]; returns the hidden states that the first answer tokens are predicted from, [P, C]."""
        w, device = self.weights, self.model.device
        row = lay_out(prompts, ROW_MULTIPLE).to(device)
        x = w.embed(row.tokens_N).float()
        cos, sin = (tensor[0, :, None] for tensor in w.rotary(x[None], row.positions_N[None]))
        attend = causal_attention(row, cached.dtype)
        for number, layer in enumerate(w.layers):
            rotated, value = self._qkv(layer, rms_norm(layer.before, x), cos, sin)
            query, key = rotated[:, : w.heads], rotated[:, w.heads :]
            self.keep_prompts(cached[number], key[row.place_P_T], value[row.place_P_T])
            # Of the last layer only what the first answer token is predicted from.
            last = number == len(w.layers) - 1
            x = x[row.last_P] if last else x
            out = attend(query, key, value, layer.scale, row.end_P if last else row.slot_N)
            x = self._fed_forward(layer, x + layer.out(out))
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

    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor, rows: Rows) -> torch.Tensor:
        w, cache, (groups, columns) = self.weights, self.cache, token_P_G.shape
        grid = (groups, columns, w.kv_heads, -1)
        x = w.embed(rows.pick(token_P_G.reshape(-1))).float()
        cos, sin = (table[0, :, None] for table in w.rotary(x[None], rows.pick(position_P_G.reshape(-1))[None]))
        for number, layer in enumerate(w.layers):
            rotated, value = self._qkv(layer, rms_norm(layer.before, x), cos, sin)
            rotated, value = rows.spread(rotated), rows.spread(value)
            cache.store(number, rotated[:, w.heads :].view(grid), value.view(grid))
            out = rows.pick(cache.attend(number, layer.scale, rotated[:, : w.heads], groups, columns))
            x = self._fed_forward(layer, x + layer.out(out))
        shift_N = cache.shift_P[:, None].expand(token_P_G.shape).flatten()
        return w.head(rms_norm(w.norm, x), rows.pick(shift_N))


def _parts(prompts: Sequence[TokenIds]) -> Iterator[slice]:
    """Neighbours of at most `_PROMPT_TOKENS_AT_ONCE` tokens together; a single longer prompt is a part."""
    begin = total = 0
    for end, length in enumerate(map(len, prompts)):
        if end > begin and total + length > _PROMPT_TOKENS_AT_ONCE:
            yield slice(begin, end)
            begin, total = end, 0
        total += length
    yield slice(begin, len(prompts))
