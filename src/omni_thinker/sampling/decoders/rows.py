"""Decoding with a row for each sample, for models whose layers take no free mask: state-space layers, short windows.

Rows of one group are equally long, so there is no filling and no mask. Groups wait for one another."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import accepts, plain_logits
from omni_thinker.sampling.decoders.base import NextLogits
from omni_thinker.types import TokenIds

_CACHES = ("past_key_values", "cache_params", "state")
"""What a forward pass calls the cache that it returns and takes."""


class RowDecoder(ABC):
    """See Decoder. Groups gain nothing by each other's company."""

    dense = 0.8

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.group_size = model, group_size
        self.last_only: dict[str, Any] = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}

    @abstractmethod
    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        """See Decoder."""

    @abstractmethod
    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        """See Decoder."""

    @abstractmethod
    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        """See Decoder."""


class CachedRowsDecoder(RowDecoder):
    """Through the model's own forward pass and the cache that it makes itself, a batch for each group.

    A row goes on to its group's end, whether a column still draws for it or not: few caches can drop one."""

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        self._caches: list[dict[str, Any]] = [{} for _ in prompts]
        self._length_P = [0 for _ in prompts]
        device = self.model.device
        self._row_P_G = [torch.arange(self.group_size, device=device) for _ in prompts]
        """The row of each column."""
        prompts_G_T = [torch.tensor([list(prompt)] * self.group_size, device=device) for prompt in prompts]
        return torch.stack([self._forward(p, tokens_G_T)[0] for p, tokens_G_T in enumerate(prompts_G_T)])

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        logits = []
        for p, row_G in enumerate(self._row_P_G):
            token_G = token_P_G.new_zeros(self.group_size)
            token_G[row_G] = token_P_G[p]
            logits.append(self._forward(p, token_G[:, None])[row_G])
        return NextLogits(torch.cat(logits))

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        self._caches = [self._caches[p] for p in groups.tolist()]
        self._length_P = [self._length_P[p] for p in groups.tolist()]
        self._row_P_G = [self._row_P_G[p][columns] for p, columns in zip(groups.tolist(), columns_P_G, strict=True)]

    def place(self, tokens_G_T: torch.Tensor, begin: int) -> dict[str, Any]:
        """What the forward pass is told of where these tokens stand, the first of them after `begin` others."""
        return {}

    def _forward(self, p: int, tokens_G_T: torch.Tensor) -> torch.Tensor:
        """Logits [G, V] after these tokens."""
        options = self._caches[p] | self.last_only | self.place(tokens_G_T, self._length_P[p])
        out = self.model(input_ids=tokens_G_T, use_cache=True, **options)
        self._length_P[p] += tokens_G_T.shape[1]
        self._caches[p] = {name: cache for name in _CACHES if (cache := getattr(out, name, None)) is not None}
        if not self._caches[p]:
            raise ValueError("the model returns no cache")
        logits: torch.Tensor = out.logits[:, -1]
        return logits


class PlacedRowsDecoder(CachedRowsDecoder):
    """The same for models that don't count from their cache where a token stands: they are told."""

    def place(self, tokens_G_T: torch.Tensor, begin: int) -> dict[str, Any]:
        position_T = torch.arange(begin, begin + tokens_G_T.shape[1], device=tokens_G_T.device)
        return {"position_ids": position_T.expand_as(tokens_G_T)}


class RecomputingDecoder(RowDecoder):
    """Every row anew for every token, by itself: right by definition, and slow."""

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        rows = [torch.tensor([list(prompt)], device=self.model.device) for prompt in prompts]
        self._tokens_P_G = [[row] * self.group_size for row in rows]
        return torch.stack([self._last(row) for row in rows])

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        for p, row in enumerate(self._tokens_P_G):
            self._tokens_P_G[p] = [
                torch.cat([tokens, token_P_G[p, g].view(1, 1)], dim=1) for g, tokens in enumerate(row)
            ]
        drawn = [
            [self._last(tokens) if sample_P_G[p, g] >= 0 else None for g, tokens in enumerate(row)]
            for p, row in enumerate(self._tokens_P_G)
        ]
        some = next(logits for row in drawn for logits in row if logits is not None)
        filling = torch.zeros_like(some)
        return NextLogits(torch.stack([filling if x is None else x for row in drawn for x in row]))

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        self._tokens_P_G = [
            [self._tokens_P_G[p][g] for g in columns]
            for p, columns in zip(groups.tolist(), columns_P_G.tolist(), strict=True)
        ]

    def _last(self, tokens_1_T: torch.Tensor) -> torch.Tensor:
        return plain_logits(self.model, tokens_1_T)[0, -1]
