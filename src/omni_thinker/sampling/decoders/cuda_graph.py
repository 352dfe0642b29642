"""Decoding in tensors of fixed size, so that a GPU can play one recorded step again and again (CUDA graphs).

A small model's step is thousands of short kernels; starting each from Python takes longer than running it. Nothing in a
step depends on its number but the contents of three small tensors: the token, the position and the slot that is
written. Attention looks at the prompt and at all slots of the answer, those not yet written masked, in one softmax. On
a CPU the same pass runs without a recording, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.types import TokenIds


class StaticDecoder(FusedDecoder):
    """See Decoder."""

    attention_in_fp32 = False

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        logits = super().prefill(prompts)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=logits.device)
        self._step_S = torch.arange(self.steps, device=logits.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._prompt_bias = self._mask.float()
        return logits

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> torch.Tensor:
        position_P_G = self._position_P[:, None].expand(token_P_G.shape)
        self._slot_1.fill_(self._used)
        if token_P_G.device.type != "cuda":
            logits = self._pass(token_P_G, position_P_G)
        else:
            if self._graph is None:
                self._record(token_P_G, position_P_G)
            self._token.copy_(token_P_G)
            self._position.copy_(position_P_G)
            assert self._graph is not None
            self._graph.replay()
            logits = self._logits
        self._used += 1
        self._position_P = self._position_P + (sample_P_G >= 0).any(1)
        return logits

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        super().keep(groups, columns_P_G)
        self._prompt_bias = self._mask.float()
        self._graph = None  # its tensors are gone

    def _record(self, token_P_G: torch.Tensor, position_P_G: torch.Tensor) -> None:
        """Once without a recording, since libraries set themselves up at their first call; writing a slot twice is
        harmless."""
        self._token, self._position = token_P_G.clone(), position_P_G.contiguous().clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._pass(self._token, self._position)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._pass(self._token, self._position)

    def _make_room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.model.device)  # what is masked must still be a number

    def _store(self, number: int, key_P_G_H_W: torch.Tensor, value_P_G_H_W: torch.Tensor) -> None:
        for kept, new in zip(self._own[number], (key_P_G_H_W, value_P_G_H_W), strict=True):
            kept.index_copy_(3, self._slot_1, new.unsqueeze(3).to(kept.dtype))

    def _attend(self, number: int, scale: float, query: torch.Tensor, groups: int, columns: int) -> torch.Tensor:
        rows, heads, width = query.shape
        kv_heads = self.weights.kv_heads
        per = heads // kv_heads
        query = query.to(self._dtype)
        grid = query.view(groups, columns, kv_heads, per, width)
        over = grid.transpose(1, 2).reshape(groups, kv_heads, columns * per, width)
        keys, values = self._prompt[number]
        own_keys, own_values = (part.flatten(0, 1) for part in self._own[number])
        own_query = query.view(rows, kv_heads, per, width)
        to_prompt = torch.matmul(over, keys.transpose(2, 3)).float() * scale + self._prompt_bias
        to_own = torch.matmul(own_query, own_keys.transpose(2, 3)).float() * scale
        to_own = to_own.masked_fill(self._step_S > self._slot_1, -torch.inf)
        length = keys.shape[2]
        by_row = to_prompt.view(groups, kv_heads, columns, per, length).transpose(1, 2).reshape(rows, kv_heads, per, -1)
        share = torch.cat([by_row, to_own], dim=-1).softmax(-1).to(query.dtype)
        to_all = share[..., :length].view(groups, columns, kv_heads, per, length).transpose(1, 2)
        prompt = torch.matmul(to_all.reshape(groups, kv_heads, columns * per, length), values)
        prompt = prompt.view(groups, kv_heads, columns, per, width).transpose(1, 2).reshape(rows, heads * width)
        own = torch.matmul(share[..., length:], own_values).reshape(rows, heads * width)
        return prompt + own
