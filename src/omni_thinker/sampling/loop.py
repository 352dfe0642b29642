"""Sampling with log-probs: every prompt is computed once for its whole group.

Each step draws one token for every sample; a decoder computes what comes next. Finished samples and groups leave the
batch. A sample depends on its seed and its number alone, not on its company: the random numbers are its own, and what
company changes is the rounding of matrix products of other shapes (about 1e-2 nats in bf16, 1e-5 in fp32)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from omni_thinker.engine.llama import knows_weights
from omni_thinker.protocol import OnGroup
from omni_thinker.sampling.decoders.base import MULTIPLE, Decoder, MaskedDecoder, NextLogits, filled
from omni_thinker.sampling.decoders.cuda_graph import StaticDecoder
from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.decoders.native import NativeDecoder, speeds_up
from omni_thinker.sampling.decoders.rows import CachedRowsDecoder, PlacedRowsDecoder, RecomputingDecoder, RowDecoder
from omni_thinker.sampling.draw import draw
from omni_thinker.sampling.thinking import Decode, Thinker, make_sample, matters
from omni_thinker.types import Group, SampleRequest, SamplingParams

DECODERS: dict[str, type[Decoder]] = {
    "native": NativeDecoder,
    "fused": FusedDecoder,
    "static": StaticDecoder,
    "masked": MaskedDecoder,
    "rows": CachedRowsDecoder,
    "placed-rows": PlacedRowsDecoder,
    "recomputing": RecomputingDecoder,
}
MAX_SEQUENCES = {"cpu": 256}
"""Samples in flight at once, by kind of device; elsewhere as many as a GPU's matrix units like."""
_MAX_ELSEWHERE = 1024
_TAIL = 8
"""Tokens beyond the length of a stop text that are looked at for it: a token may be less than a character."""


@torch.inference_mode()
def sample_groups(
    model: PreTrainedModel,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    stop_ids: frozenset[int],
    decode: Decode,
    on_group: OnGroup | None = None,
    max_sequences: int | None = None,
    *,
    decoder: type[Decoder] | None = None,
) -> list[Group]:
    """Draw one group per request, in order; `on_group` is told each as soon as its last sample ends.

    At most `max_sequences` sequences are in flight at once. `decoder`: by default the fastest that knows the model."""
    if not requests:
        return []
    make = decoder or fastest_decoder(model)
    max_sequences = max_sequences or MAX_SEQUENCES.get(model.device.type, _MAX_ELSEWHERE)
    # Requests of like length go together: less padding, and a batch ends when its longest answer does. The longest go
    # first: what is left over for a last, small batch has few steps then.
    order = sorted(range(len(requests)), key=lambda i: (-requests[i].longest, len(requests[i].prompt)))
    width = 1 if issubclass(make, RowDecoder) else max(1, max_sequences // params.group_size)
    drawn: dict[int, Group] = {}
    for begin in range(0, len(order), width):
        chunk = order[begin : begin + width]

        def finished(place: int, group: Group, chunk: Sequence[int] = chunk) -> None:
            drawn[chunk[place]] = group
            if on_group is not None:
                on_group(chunk[place], group)

        chunk_requests = [requests[i] for i in chunk]
        pass_ = make(model, params.group_size, max(request.longest for request in chunk_requests))
        _Chunk(pass_, chunk_requests, params, stop_ids, decode, finished).run()
    return [drawn[i] for i in range(len(requests))]


def decoders(model: PreTrainedModel) -> list[str]:
    """Names of the decoders that may suit a model, fastest first. Whether they do, only a trial tells.

    Hand-written where the model's layers are known: static for a GPU; for a CPU native, or fused without it."""
    written_out: list[str] = []
    if knows_weights(model):
        written_out = ["static"] if model.device.type != "cpu" else [*["native"] * speeds_up(model), "fused"]
    return [*written_out, "masked", "rows", "placed-rows", "recomputing"]


def fastest_decoder(model: PreTrainedModel) -> type[Decoder]:
    """The first of `decoders`."""
    return DECODERS[decoders(model)[0]]


class _Chunk:
    """Requests that are sampled together. [R] requests, [P, G] the columns still in the batch."""

    def __init__(
        self,
        decoder: Decoder,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        stop_ids: frozenset[int],
        decode: Decode,
        finished: OnGroup,
    ) -> None:
        self.decoder, self.requests, self.params, self.decode = decoder, requests, params, decode
        self.stop_ids, self.finished = stop_ids, finished
        count, size = len(requests), params.group_size
        self.steps = max(request.longest for request in requests)
        self.limit_R_G = np.tile(np.array([[request.max_tokens] for request in requests]), (1, size))
        self.uniform_R_G_T = np.stack([uniforms(request.seed, size, self.steps) for request in requests])
        self.tokens_R_G_T = np.zeros((count, size, self.steps), dtype=np.int64)
        self.logprobs_R_G_T = np.zeros((count, size, self.steps))
        self.length_R_G = np.zeros((count, size), dtype=np.int64)
        self.stopped_R_G = np.zeros((count, size), dtype=bool)
        self.cut_R_G = np.full((count, size), -1)
        """Characters before a stop text, -1 where none was met."""
        self.thinkers = {
            (r, g): Thinker(request, decode)
            for r, request in enumerate(requests)
            for g in range(size)
            if matters(request)
        }
        for place, one in self.thinkers.items():
            self.limit_R_G[place] = one.limit
        self.told_R = np.zeros(count, dtype=bool)
        self.group_P = np.arange(count)
        self.sample_P_G = np.tile(np.arange(size), (count, 1))
        """The sample that a column draws for, -1 for none."""

    def run(self) -> None:
        logits_P_V = self.decoder.prefill([request.prompt for request in self.requests])
        group_N = torch.arange(len(self.requests), device=logits_P_V.device).repeat_interleave(self.params.group_size)
        logits = NextLogits(logits_P_V, group_N)
        for step in range(self.steps):
            token_P_G = self._take(logits, step)
            if (self.sample_P_G < 0).all():
                return
            token_P_G = self._compact(token_P_G)
            logits = self.decoder.step(token_P_G, torch.from_numpy(self.sample_P_G).to(token_P_G.device))

    def _take(self, logits: NextLogits, step: int) -> torch.Tensor:
        """Draw a token for each live sample, note it, and let go of samples that end. [P, G]; 0 where nobody draws."""
        live = self.sample_P_G >= 0
        rows = np.broadcast_to(self.group_P[:, None], live.shape)[live]
        columns = self.sample_P_G[live]
        device = logits.logits_R_V.device
        place_M = torch.from_numpy(np.flatnonzero(live)).to(device)
        uniform_M = torch.from_numpy(self.uniform_R_G_T[rows, columns, step]).to(device)
        token_M, logprob_M = draw(logits.logits_R_V, uniform_M, self.params, logits.rows(place_M))
        token_P_G = token_M.new_zeros(live.shape).flatten().index_copy_(0, place_M, token_M).view(live.shape)
        logprob_P_G = logprob_M.new_zeros(live.shape).flatten().index_copy_(0, place_M, logprob_M).view(live.shape)
        written = np.zeros(len(rows), dtype=bool)
        if self.thinkers:
            token_P_G, logprob_P_G, written = self._write(token_P_G, logprob_P_G, rows, columns, live)
        taken = token_P_G.cpu().numpy()[live]
        self.tokens_R_G_T[rows, columns, step] = taken
        self.logprobs_R_G_T[rows, columns, step] = logprob_P_G.cpu().numpy()[live]
        self.length_R_G[rows, columns] = step + 1
        self.stopped_R_G[rows, columns] = np.isin(taken, list(self.stop_ids)) & ~written
        self._follow(rows, columns, taken)
        self._meet_stop_texts(rows, columns)
        samples = self.group_P[:, None], np.maximum(self.sample_P_G, 0)
        ended = self.stopped_R_G[samples] | (step + 1 >= self.limit_R_G[samples])
        self.sample_P_G = np.where(ended | ~live, -1, self.sample_P_G)
        for p in self.group_P[(self.sample_P_G < 0).all(1)]:
            if not self.told_R[p]:  # what fills up a batch is a finished group that goes on; it is told once
                self.told_R[p] = True
                self.finished(int(p), self._group(int(p)))
        return token_P_G

    def _write(
        self,
        token_P_G: torch.Tensor,
        logprob_P_G: torch.Tensor,
        rows: NDArray[Any],
        columns: NDArray[Any],
        live: NDArray[Any],
    ) -> tuple[torch.Tensor, torch.Tensor, NDArray[Any]]:
        """The marks that end thoughts in place of draws, and which live samples got one."""
        marks = [one.next() if (one := self.thinkers.get(place)) else -1 for place in zip(rows, columns, strict=True)]
        mark_P_G = np.full(live.shape, -1)
        mark_P_G[live] = marks
        mark = torch.from_numpy(mark_P_G).to(token_P_G.device)
        return torch.where(mark < 0, token_P_G, mark), logprob_P_G.masked_fill(mark >= 0, 0.0), np.array(marks) >= 0

    def _follow(self, rows: NDArray[Any], columns: NDArray[Any], taken: NDArray[Any]) -> None:
        if not self.thinkers:
            return
        for r, g, token in zip(rows, columns, taken, strict=True):
            if (one := self.thinkers.get((r, g))) is not None:
                one.saw(int(token))
                self.limit_R_G[r, g] = one.limit

    def _meet_stop_texts(self, rows: NDArray[Any], columns: NDArray[Any]) -> None:
        for r, g in zip(rows, columns, strict=True):
            texts = self.requests[r].stop
            if not texts or self.stopped_R_G[r, g]:
                continue
            begin = 0
            if (one := self.thinkers.get((r, g))) is not None:
                if one.thinking:
                    continue
                begin = one.end or 0
            answer = self.tokens_R_G_T[r, g, begin : self.length_R_G[r, g]].tolist()
            if (place := stop_place(answer, texts, self.decode, after="\r\n" if begin else "")) is not None:
                self.stopped_R_G[r, g], self.cut_R_G[r, g] = True, place

    def _compact(self, token_P_G: torch.Tensor) -> torch.Tensor:
        """Drop finished groups, and columns that no group needs, where few enough are left (`Decoder.dense`).

        Columns stay a power of two and sequences a multiple of `MULTIPLE` (finished groups fill up): few shapes."""
        live = self.sample_P_G >= 0
        going = live.any(1)
        columns = min(live.shape[1], 1 << (int(live.sum(1).max()) - 1).bit_length())
        count = filled(int(going.sum()), max(1, MULTIPLE // columns))
        if count * columns > self.decoder.dense * live.size:
            return token_P_G
        # The groups still going, and as many others as fill up, in the order they have.
        keep = np.sort(np.argsort(~going, kind="stable")[:count])
        # Samples still going move to the left, in order.
        order = np.argsort(~live[keep], axis=1, kind="stable")[:, :columns]
        self.group_P = self.group_P[keep]
        self.sample_P_G = np.take_along_axis(self.sample_P_G[keep], order, axis=1)
        groups, places = (torch.from_numpy(indices).to(token_P_G.device) for indices in (keep, order))
        self.decoder.keep(groups, places)
        return token_P_G[groups].gather(1, places)

    def _group(self, r: int) -> Group:
        samples = []
        for g, length in enumerate(self.length_R_G[r]):
            tokens, logprobs = self.tokens_R_G_T[r, g, :length], self.logprobs_R_G_T[r, g, :length]
            samples.append(
                make_sample(
                    tokens.tolist(),
                    logprobs.tolist(),
                    "stop" if self.stopped_R_G[r, g] else "length",
                    self.stop_ids,
                    self.requests[r],
                    self.decode,
                    followed=self.thinkers.get((r, g)),
                    cut=int(self.cut_R_G[r, g]),
                )
            )
        return Group(tuple(self.requests[r].prompt), tuple(samples))


def stop_place(ids: Sequence[int], texts: Sequence[str], decode: Decode, after: str = "") -> int | None:
    """Where in the text of `ids` the first of `texts` begins that their last tokens complete; None where none does.

    `after`: characters at the beginning that are no part of the text."""
    if not texts:
        return None
    tail = decode(ids[-(max(map(len, texts)) + _TAIL) :])
    if not any(text in tail for text in texts):
        return None
    whole = decode(ids)
    begin = len(whole) - len(whole.lstrip(after)) if after else 0
    return min((place for text in texts if (place := whole.find(text, begin)) >= 0), default=None)


def uniforms(seed: int, group_size: int, steps: int) -> NDArray[np.float64]:
    """One stream per sample, so that sample g is the same whatever the size of its group."""
    streams = [
        np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, g], np.uint64))) for g in range(group_size)
    ]
    return np.stack([stream.random(steps) for stream in streams])
