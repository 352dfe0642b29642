"""Sampling with log-probs: every prompt is computed once for its whole group.

A group is one batch row. Each decode step feeds the model a row of G tokens, one per sample, and a mask that
lets each see its prompt and its own past. Finished samples and groups leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from omni_thinker.policy.protocol import OnGroup
from omni_thinker.types import Group, Sample, SampleRequest, SamplingParams

Decode = Callable[[Sequence[int]], str]

MULTIPLE = 8
"""Widths are filled up to a multiple of this, so that matrix products come in few shapes (see packing.MULTIPLE)."""


class _BufferLayer(CacheLayerMixin):
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
        index = rows.to(self.keys.device)
        self.keys = self.keys.index_select(0, index)
        self.values = self.values.index_select(0, index)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.size


@dataclass
class _Batch:
    """The groups still being sampled. `sample_P_G` holds the sample that each column draws for, -1 for none."""

    group_P: torch.Tensor
    sample_P_G: torch.Tensor
    owner_P_S: torch.Tensor
    """Per cache slot: -1 the prompt, -2 nothing, else the sample that wrote it."""
    cache: Cache
    layers: Sequence[_BufferLayer]
    """The layers of `cache`."""
    next_P_G: torch.Tensor
    position_P: torch.Tensor


@torch.inference_mode()
def sample_groups(
    model: PreTrainedModel,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    stop_ids: frozenset[int],
    decode: Decode,
    on_group: OnGroup | None = None,
    max_sequences: int = 128,
) -> list[Group]:
    """Draw one group per request, in order; `on_group` is told each as soon as its last sample ends.

    At most `max_sequences` sequences are in flight at once.
    """
    if not requests:
        return []
    # Requests of like length go together: less padding, and a batch ends when its longest answer does.
    order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, len(requests[i].prompt)))
    width = max(1, max_sequences // params.group_size)
    drawn: dict[int, Group] = {}
    for begin in range(0, len(order), width):
        chunk = order[begin : begin + width]

        def finished(place: int, group: Group, chunk: Sequence[int] = chunk) -> None:
            drawn[chunk[place]] = group
            if on_group is not None:
                on_group(chunk[place], group)

        _sample_chunk(model, [requests[i] for i in chunk], params, stop_ids, decode, finished)
    return [drawn[i] for i in range(len(requests))]


def _sample_chunk(
    model: PreTrainedModel,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    stop_ids: frozenset[int],
    decode: Decode,
    finished: OnGroup,
) -> None:
    count, group_size = len(requests), params.group_size
    limit_P = np.array([request.max_tokens for request in requests])
    steps = int(limit_P.max())
    uniform_P_G_T = np.stack([_uniforms(request.seed, group_size, steps) for request in requests])
    tokens = np.zeros((count, group_size, steps), dtype=np.int64)
    logprobs = np.zeros((count, group_size, steps), dtype=np.float64)
    length = np.zeros((count, group_size), dtype=np.int64)
    stopped = np.zeros((count, group_size), dtype=bool)

    batch, logits_P_V = _prefill(model, requests, group_size, steps)
    logits_P_G_V = logits_P_V[:, None, :].expand(-1, group_size, -1)
    done = np.zeros(count, dtype=bool)
    for step in range(steps):
        group_P, sample_P_G = batch.group_P.numpy(), batch.sample_P_G.numpy()
        live = sample_P_G >= 0
        column = np.maximum(sample_P_G, 0)
        uniform = torch.from_numpy(uniform_P_G_T[group_P[:, None], column, step]).to(logits_P_G_V.device)
        token, logprob = _draw(logits_P_G_V, uniform, params.temperature)
        token_np, logprob_np = token.cpu().numpy(), logprob.cpu().numpy()
        rows = np.broadcast_to(group_P[:, None], sample_P_G.shape)[live]
        columns = sample_P_G[live]
        tokens[rows, columns, step] = token_np[live]
        logprobs[rows, columns, step] = logprob_np[live]
        length[rows, columns] = step + 1
        stopped[rows, columns] = np.isin(token_np[live], list(stop_ids))
        ended = stopped[group_P[:, None], column] | (step + 1 >= limit_P[group_P])[:, None] | ~live
        # What fills up a batch is a finished group that goes on; it is told once.
        for p in sorted({int(p) for p in group_P[ended.all(1)]} - {int(p) for p in np.flatnonzero(done)}):
            done[p] = True
            finished(p, _group(requests[p], tokens[p], logprobs[p], length[p], stopped[p], decode, stop_ids))
        if ended.all():
            break
        batch.sample_P_G = torch.from_numpy(np.where(ended, -1, sample_P_G))
        batch.next_P_G = token
        _compact(batch)
        logits_P_G_V = _decode_step(model, batch)


def _uniforms(seed: int, group_size: int, steps: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One stream per sample, so that sample g is the same whatever the size of its group."""
    streams = [np.random.Generator(np.random.Philox(key=(seed % 2**64, g))) for g in range(group_size)]
    return np.stack([stream.random(steps) for stream in streams])


def _prefill(
    model: PreTrainedModel, requests: Sequence[SampleRequest], group_size: int, steps: int
) -> tuple[_Batch, torch.Tensor]:
    """Compute all prompts, left-padded; logits of the first answer token, [P, V]."""
    device = model.device
    count, width = len(requests), _filled(max(len(request.prompt) for request in requests), MULTIPLE)
    tokens = torch.zeros(count, width, dtype=torch.long)
    valid = torch.zeros(count, width, dtype=torch.bool)
    for p, request in enumerate(requests):
        tokens[p, width - len(request.prompt) :] = torch.tensor(request.prompt)
        valid[p, width - len(request.prompt) :] = True
    length_P = valid.sum(1)
    positions = (torch.arange(width)[None] - (width - length_P)[:, None]).clamp(min=0)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding attends to itself: a row of the mask without a single True would give NaN.
    mask = (causal[None] & valid[:, None, :]) | torch.eye(width, dtype=torch.bool)[None]
    depth = model.config.get_text_config().num_hidden_layers
    layers = [_BufferLayer(width + steps * group_size) for _ in range(depth)]
    cache = Cache(layers=list(layers))
    out = model(
        input_ids=tokens.to(device),
        position_ids=positions.to(device),
        attention_mask=mask[:, None].to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    batch = _Batch(
        group_P=torch.arange(count),
        sample_P_G=torch.arange(group_size).repeat(count, 1),
        owner_P_S=torch.where(valid, -1, -2),
        cache=cache,
        layers=layers,
        next_P_G=torch.zeros(count, group_size, dtype=torch.long),
        position_P=length_P,
    )
    return batch, out.logits[:, -1]


def _decode_step(model: PreTrainedModel, batch: _Batch) -> torch.Tensor:
    """Feed the tokens just drawn; logits of the next ones, [P, G, V]."""
    device = model.device
    # Columns without a sample see the prompt alone; what they write is marked as nobody's.
    written = torch.where(batch.sample_P_G >= 0, batch.sample_P_G, -2)
    batch.owner_P_S = torch.cat([batch.owner_P_S, written], dim=1)
    prompt = batch.owner_P_S[:, None, :] == -1
    own = (batch.owner_P_S[:, None, :] == batch.sample_P_G[:, :, None]) & (batch.sample_P_G >= 0)[:, :, None]
    out = model(
        input_ids=batch.next_P_G.to(device),
        position_ids=batch.position_P[:, None].expand_as(batch.next_P_G).to(device),
        attention_mask=(prompt | own)[:, None].to(device),
        past_key_values=batch.cache,
        use_cache=True,
    )
    batch.position_P = batch.position_P + (batch.sample_P_G >= 0).any(1)  # a finished group may be at the last one
    logits: torch.Tensor = out.logits
    return logits


def _filled(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _compact(batch: _Batch) -> None:
    """Drop finished groups, and columns that no group needs, where that saves at least a fifth of the rows.

    Columns stay a power of two and sequences a multiple of `MULTIPLE` (finished groups fill up): few shapes.
    """
    live = batch.sample_P_G >= 0
    going = live.any(1)
    columns = min(live.shape[1], 1 << (int(live.sum(1).max()) - 1).bit_length())
    count = _filled(int(going.sum()), max(1, MULTIPLE // columns))
    if count * columns > 0.8 * live.numel():
        return
    # The groups still going, and as many others as fill up, in the order they have.
    keep = torch.sort(torch.sort((~going).to(torch.int8), stable=True).indices[:count]).values
    # Samples still going move to the left, in order; the order of a stable sort of booleans.
    order = torch.sort((~live[keep]).to(torch.int8), dim=1, stable=True).indices[:, :columns]
    batch.sample_P_G = batch.sample_P_G[keep].gather(1, order)
    batch.next_P_G = batch.next_P_G[keep.to(batch.next_P_G.device)].gather(1, order.to(batch.next_P_G.device))
    if len(keep) < len(live):
        batch.group_P = batch.group_P[keep]
        batch.position_P = batch.position_P[keep]
        batch.owner_P_S = batch.owner_P_S[keep]
        for layer in batch.layers:
            layer.keep_rows(keep)


def _draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draw: exact, one uniform per token, and far cheaper than `torch.multinomial` on a CPU."""
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1)
        return best, logits.log_softmax(-1).gather(-1, best[..., None])[..., 0]
    probs = torch.softmax(logits / temperature if temperature != 1 else logits, dim=-1)
    cdf = probs.cumsum(-1)
    # A double just below 1 would round to 1 and draw past the last token that has any probability.
    below_one = uniform.to(cdf.dtype).clamp_(max=1 - 2.0**-24)
    target = (below_one * cdf[..., -1])[..., None]
    token = torch.searchsorted(cdf, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return token[..., 0], probs.gather(-1, token)[..., 0].log()


def _group(
    request: SampleRequest,
    tokens: np.ndarray[Any, np.dtype[np.int64]],
    logprobs: np.ndarray[Any, np.dtype[np.float64]],
    length: np.ndarray[Any, np.dtype[np.int64]],
    stopped: np.ndarray[Any, np.dtype[np.bool_]],
    decode: Decode,
    stop_ids: frozenset[int],
) -> Group:
    samples = []
    for g in range(len(length)):
        ids = tuple(int(t) for t in tokens[g, : length[g]])
        text = decode([t for t in ids if t not in stop_ids])
        logs = tuple(float(x) for x in logprobs[g, : length[g]])
        samples.append(Sample(ids, logs, text, "stop" if stopped[g] else "length"))
    return Group(tuple(request.prompt), tuple(samples))
