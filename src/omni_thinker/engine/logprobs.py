"""Log-probs of given answers under a model: the one place where training looks at logits."""

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.attention.hf import blocks
from omni_thinker.engine.checkpointing import checkpointed
from omni_thinker.engine.llama import answer_states, knows
from omni_thinker.engine.nodes import Nodes, distinct_answers, nodes_of
from omni_thinker.engine.packing import GPU_MULTIPLE, MULTIPLE, PackedRow, pack, row_length
from omni_thinker.engine.softmax import ChosenLogprobs, HeadLogprobs
from omni_thinker.engine.through import through
from omni_thinker.protocol import TrainGroup

Layout = Literal["written-out", "packed", "padded", "single"]
"""How the answers of groups are laid out for a training pass, fastest first.

written-out: whole groups in one row, by layers that are written out here. packed: the same row through the model's own
layers, with a free mask; very long rows as single. padded: a row for each sample, filled up to one length. single: a
row for each sample by itself, without a mask: slow, and what a model is by definition."""

_LONG = 4096
"""Tokens of a row beyond which a free mask, the square of the row, costs more than prompts that are computed again."""


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """N answer tokens of some groups, samples one after another, numbered over all groups."""

    logprobs_N: torch.Tensor
    """Log-probs in nats, with gradient where it is enabled."""
    entropy_N: torch.Tensor
    """Entropies in nats, with gradient where it is enabled."""
    sample_N: torch.Tensor
    computed: int
    """Tokens that the model was run on."""


def layouts(model: PreTrainedModel) -> tuple[Layout, ...]:
    """The layouts that may suit a model, fastest first. Whether they do, only a trial tells."""
    every: tuple[Layout, ...] = get_args(Layout)
    return every if knows(model) else every[1:]


def answer_logprobs(
    model: PreTrainedModel, groups: Sequence[TrainGroup], *, temperature: float, layout: Layout, recompute: bool = False
) -> AnswerTokens:
    """Score the answers in `groups` at the temperature they were sampled at. `recompute`: keep each layer's input alone
    and compute the rest again for the gradient, where the layers know how."""
    if layout == "written-out":
        row = pack(groups, MULTIPLE if model.device.type == "cpu" else GPU_MULTIPLE)
        return _cut(*through(model, _written_out, row, temperature, recompute), row)
    score = {"packed": _packed, "padded": _padded, "single": _single}[layout]
    with checkpointed(model) if recompute and torch.is_grad_enabled() else nullcontext():
        return score(model, groups, temperature)


def accepts(model: PreTrainedModel, argument: str, *, passed_on: bool = False) -> bool:
    """Whether the model's forward takes an argument of this name, or passes on whatever it is given."""
    inside: Any = getattr(model, "get_base_model", lambda: model)()
    parameters = inspect.signature(inside.forward).parameters
    return argument in parameters or (passed_on and any(p.kind is p.VAR_KEYWORD for p in parameters.values()))


def plain_logits(model: PreTrainedModel, tokens_1_T: torch.Tensor) -> torch.Tensor:
    """Logits [1, T, V] of one sequence by the model's own forward pass: no mask, no filling, no cache."""
    no_cache = {"use_cache": False} if accepts(model, "use_cache", passed_on=True) else {}
    logits: torch.Tensor = model(input_ids=tokens_1_T, **no_cache).logits
    return logits


def free_mask(model: PreTrainedModel, visible: torch.Tensor) -> torch.Tensor:
    """A mask of any shape, True where a token is seen, as the model's attention reads masks: many that aren't sdpa add
    theirs to the scores."""
    if model.config._attn_implementation == "sdpa":
        return visible
    dtype = model.dtype
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def _packed(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
    if sum(map(row_length, groups)) > _LONG:
        return _single(model, groups, temperature)
    row = pack(groups)
    device = model.device
    source_N = row.source_N.to(device)
    fewer: dict[str, Any] = {"logits_to_keep": source_N} if accepts(model, "logits_to_keep") else {}
    with blocks(row.lengths):
        out = model(
            input_ids=row.tokens_T[None].to(device),
            position_ids=row.positions_T[None].to(device),
            attention_mask=free_mask(model, row.mask_T_T[None, None].to(device)),
            use_cache=False,
            **fewer,
        )
    logits_N_V = out.logits[0] if fewer else out.logits[0, source_N]
    return _cut(*_select(logits_N_V, row.target_N.to(device), temperature), row)


def _written_out(
    model: PreTrainedModel, row: PackedRow, temperature: float, recompute: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    # A GPU has room for what is the same, and its attention is compiled for the row.
    if (nodes := nodes_of(row) if model.device.type == "cpu" else None) is not None:
        distinct, pair_N = distinct_answers(row, nodes)
        logprobs, entropies = _scored(model, distinct, temperature, recompute, nodes)
        return logprobs[pair_N], entropies[pair_N]
    return _scored(model, row, temperature, recompute)


def _scored(
    model: PreTrainedModel, row: PackedRow, temperature: float, recompute: bool, nodes: Nodes | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    states_N_C = answer_states(model, row, nodes=nodes, recompute=recompute)
    target_N = row.target_N.to(states_N_C.device)
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or getattr(head, "bias", None) is not None:  # an adapter, or more
        return _select(head(states_N_C), target_N, temperature)
    scale = _scale(temperature)
    logprobs_N, entropy_N = HeadLogprobs.apply(states_N_C, head.weight, target_N, scale)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _cut(logprobs_N: torch.Tensor, entropy_N: torch.Tensor, row: PackedRow) -> AnswerTokens:
    """Drop the padding of the row."""
    real = slice(row.answers)
    samples_N = row.sample_N[real].to(logprobs_N.device)
    return AnswerTokens(logprobs_N[real], entropy_N[real], samples_N, len(row.tokens_T))


def _padded(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
    device = model.device
    rows = [(group.prompt, sample.tokens) for group in groups for sample in group.samples]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    valid = torch.zeros(len(rows), width, dtype=torch.long)
    source: list[tuple[int, int]] = []
    for r, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens[r, :end] = torch.tensor((*prompt, *answer))
        valid[r, :end] = 1
        source += [(r, t) for t in range(len(prompt) - 1, end - 1)]
    out = model(input_ids=tokens.to(device), attention_mask=valid.to(device), use_cache=False)
    at = torch.tensor(source, device=device)
    target_N = torch.tensor([t for _, answer in rows for t in answer], device=device)
    logprobs_N, entropy_N = _select(out.logits[at[:, 0], at[:, 1]], target_N, temperature)
    sample_N = torch.tensor([r for r, (_, answer) in enumerate(rows) for _ in answer], device=device)
    return AnswerTokens(logprobs_N, entropy_N, sample_N, tokens.numel())


def _single(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
    parts = []
    for group in groups:
        for sample in group.samples:
            row = torch.tensor([[*group.prompt, *sample.tokens]], device=model.device)
            logits_N_V = plain_logits(model, row)[0, len(group.prompt) - 1 : -1]
            parts.append(_select(logits_N_V, row[0, len(group.prompt) :], temperature))
    logprobs, entropies = zip(*parts, strict=True)
    counts = torch.tensor([len(part) for part in logprobs])
    sample_N = torch.arange(len(parts)).repeat_interleave(counts).to(model.device)
    computed = sum(len(group.prompt) + len(sample.tokens) for group in groups for sample in group.samples)
    return AnswerTokens(torch.cat(logprobs), torch.cat(entropies), sample_N, computed)


def _select(logits_N_V: torch.Tensor, target_N: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_N, entropy_N = ChosenLogprobs.apply(logits_N_V, target_N, _scale(temperature))  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _scale(temperature: float) -> float:
    return 1.0 if temperature == 0 else 1.0 / temperature
