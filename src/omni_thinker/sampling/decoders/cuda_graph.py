"""Decoding in tensors of fixed size, so that a GPU can play one recorded step again and again (CUDA graphs).

A small model's step is thousands of short kernels; starting each from Python takes longer than running it. Nothing in a
step depends on its number but the contents of three small tensors: the token, the position and the slot that is
written. Attention looks at the prompt and at all slots of the answer, those not yet written masked, in one softmax. On
a CPU the same pass runs without a recording, which is how it is tested."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.decoders.kv_cache import AttendingCache
from omni_thinker.sampling.decoders.twins import Rows
from omni_thinker.sampling.decoders.weights import FusedWeights
from omni_thinker.types import TokenIds


class FixedCache(AttendingCache):
    """Attends to all slots of the answers, whichever are written, in one softmax with the prompt."""

    def __init__(self, weights: FusedWeights, lengths: Sequence[int], group_size: int, steps: int) -> None:
        dtype = weights.embed.weight.dtype
        super().__init__(
            weights, lengths, group_size, steps, prompt_dtype=dtype, answer_dtype=dtype, fixed=True
        )  # what is masked must still be a number
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=self.prompt.device)
        self._step_S = torch.arange(steps, device=self.prompt.device)

    def advance(self, going_P: torch.Tensor) -> None:
        super().advance(going_P)
        self._slot_1.fill_(self.used)

    def store(self, layer: int, key_P_G_H_W: torch.Tensor, value_P_G_H_W: torch.Tensor) -> None:
        for cached, new in zip(self.answers[layer], (key_P_G_H_W, value_P_G_H_W), strict=True):
            cached.index_copy_(3, self._slot_1, new.unsqueeze(3).to(cached.dtype))

    def attend(self, layer: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        rows, heads, width = query.shape
        kv_heads = self.kv_heads
        per = heads // kv_heads
        query = query.to(self.dtype)
        grid = query.view(groups, columns, kv_heads, per, width)
        over = grid.transpose(1, 2).reshape(groups, kv_heads, columns * per, width)
        keys, values = self.prompt[layer]
        own_keys, own_values = (cached.flatten(0, 1) for cached in self.answers[layer])
        own_query = query.view(rows, kv_heads, per, width)
        to_prompt = torch.matmul(over, keys.transpose(2, 3)).float() * scale + self.mask
        to_own = torch.matmul(own_query, own_keys.transpose(2, 3)).float() * scale
        to_own = to_own.masked_fill(self._step_S > self._slot_1, -torch.inf)
        length = keys.shape[2]
        by_row = to_prompt.view(groups, kv_heads, columns, per, length).transpose(1, 2).reshape(rows, kv_heads, per, -1)
        share = torch.cat([by_row, to_own], dim=-1).softmax(-1).to(query.dtype)
        to_all = share[..., :length].view(groups, columns, kv_heads, per, length).transpose(1, 2)
        prompt = torch.matmul(to_all.reshape(groups, kv_heads, columns * per, length), values)
        prompt = prompt.view(groups, kv_heads, columns, per, width).transpose(1, 2).reshape(rows, heads * width)
        answer = torch.matmul(share[..., length:], own_values).reshape(rows, heads * width)
        return prompt + answer


class StaticDecoder(FusedDecoder):
    """FusedDecoder in a FixedCache, on a GPU from a recording. So a row for each column: their number is fixed."""

    shares, dense = False, 0.8

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        super().__init__(model, group_size, steps)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._token = self._position = self._logits = torch.empty(0)
        """What a recording reads and writes."""

    def make_cache(self, lengths: Sequence[int]) -> FixedCache:
        return FixedCache(self.weights, lengths, self.group_size, self.steps)

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        self._graph = None
        return super().prefill(prompts)

    def forward(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor, rows: Rows) -> torch.Tensor:
        if token_P_G.device.type != "cuda":
            return super().forward(token_P_G, position_P_G, rows)
        graph = self._graph or self._record(token_P_G, position_P_G)
        self._token.copy_(token_P_G)
        self._position.copy_(position_P_G)
        graph.replay()
        return self._logits

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        super().keep(groups, columns_P_G)
        self._graph = None  # its tensors are gone

    def _record(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor) -> torch.cuda.CUDAGraph:
        """Once without a recording, since libraries set themselves up at their first call; writing a slot twice is
        harmless."""
        self._token, self._position = token_P_G.clone(), position_P_G.contiguous().clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            super().forward(self._token, self._position, Rows())
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = super().forward(self._token, self._position, Rows())
        return graph
