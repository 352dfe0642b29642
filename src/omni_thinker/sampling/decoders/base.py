"""Decoding of groups, one token a sample at a time, behind one interface; and the one that any causal LM can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from omni_thinker.engine.logprobs import accepts, free_mask
from omni_thinker.types import TokenIds

MULTIPLE = 8
"""Widths are filled up to a multiple of this, so that matrix products come in few shapes (see packing.MULTIPLE)."""


@dataclass(frozen=True, slots=True)
class NextLogits:
    """Logits of the next token of N columns. Those that have drawn the same so far share one of R rows."""

    logits_R_V: torch.Tensor
    row_N: torch.Tensor | None = None
    """The row of each column, all groups laid flat. None: each column has its own, in order."""

    def rows(self, columns_M: torch.Tensor) -> torch.Tensor:
        """The rows of some columns."""
        return columns_M if self.row_N is None else self.row_N[columns_M]

    def of_columns(self, size: int) -> torch.Tensor:
        """The logits of every column, [P, G, V], of groups of `size` columns."""
        spread = self.logits_R_V if self.row_N is None else self.logits_R_V[self.row_N]
        return spread.view(-1, size, spread.shape[-1])


class Decoder(Protocol):
    """Holds P groups of G columns. A column draws for one sample, or for none."""

    dense: float
    """Share of the columns that must be left for it to be worth going on without the others."""

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        """A decoder for groups of `group_size` samples of at most `steps` tokens."""

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        """Compute all prompts; logits of the first answer token, [P, V]."""

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        """Feed one token a column; logits of the next. `sample_P_G`: whom a column draws for, or -1: it has none."""

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        """Go on with these groups, and of each with these columns in this order."""


class BufferLayer(CacheLayerMixin):
    """Keys and values of one layer in a buffer of fixed size, filled from the left."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.used = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.size, width)
        self.values = value_states.new_empty(rows, value_states.shape[1], self.size, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep_rows(self, rows: torch.Tensor) -> None:
        if not self.is_initialized:  # a layer that uses another's keys
            return
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.size


def filled(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def prefill(
    model: PreTrainedModel, prompts: Sequence[TokenIds], room: int
) -> tuple[list[BufferLayer], torch.Tensor, torch.Tensor]:
    """Compute prompts, left-padded; layers of keys and values with `room` for more, which slots are no padding [P, T],
    and the logits of the first answer token [P, V]."""
    device = model.device
    width = filled(max(map(len, prompts)), MULTIPLE)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    valid = torch.zeros(len(prompts), width, dtype=torch.bool)
    for p, prompt in enumerate(prompts):
        tokens[p, width - len(prompt) :] = torch.tensor(prompt)
        valid[p, width - len(prompt) :] = True
    positions = (torch.arange(width)[None] - (width - valid.sum(1))[:, None]).clamp(min=0)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding attends to itself: a row of the mask without a single True would give NaN.
    mask = (causal[None] & valid[:, None, :]) | torch.eye(width, dtype=torch.bool)[None]
    layers = [BufferLayer(width + room) for _ in range(model.config.get_text_config().num_hidden_layers)]
    out = model(
        input_ids=tokens.to(device),
        position_ids=positions.to(device),
        attention_mask=free_mask(model, mask[:, None].to(device)),
        past_key_values=Cache(layers=list(layers)),
        use_cache=True,
        **({"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}),
    )
    return layers, valid.to(device), out.logits[:, -1]


class MaskedDecoder:
    """Through the model's own forward pass: a group is one row of the batch, and a mask lets each of its columns see
    the prompt and its own past."""

    dense = 0.8

    def __init__(self, model: PreTrainedModel, group_size: int, steps: int) -> None:
        self.model, self.room = model, group_size * steps

    def prefill(self, prompts: Sequence[TokenIds]) -> torch.Tensor:
        self._layers, valid, logits = prefill(self.model, prompts, self.room)
        self._cache = Cache(layers=list(self._layers))
        # Of each slot: -1 the prompt, -2 nothing, else the sample that wrote it.
        self._owner_P_S = torch.where(valid, -1, -2)
        self._position_P = valid.sum(1)
        return logits

    def step(self, token_P_G: torch.Tensor, sample_P_G: torch.Tensor) -> NextLogits:
        # Columns without a sample see the prompt alone; what they write is marked as nobody's.
        written = torch.where(sample_P_G >= 0, sample_P_G, -2)
        self._owner_P_S = torch.cat([self._owner_P_S, written], dim=1)
        prompt = self._owner_P_S[:, None, :] == -1
        own_answer = (self._owner_P_S[:, None, :] == sample_P_G[:, :, None]) & (sample_P_G >= 0)[:, :, None]
        out = self.model(
            input_ids=token_P_G,
            position_ids=self._position_P[:, None].expand_as(token_P_G),
            attention_mask=free_mask(self.model, (prompt | own_answer)[:, None]),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._position_P = self._position_P + (sample_P_G >= 0).any(1)  # a finished group may be at the last one
        return NextLogits(out.logits.flatten(0, 1))

    def keep(self, groups: torch.Tensor, columns_P_G: torch.Tensor) -> None:
        if len(groups) < len(self._position_P):
            self._position_P, self._owner_P_S = self._position_P[groups], self._owner_P_S[groups]
            for layer in self._layers:
                layer.keep_rows(groups)
