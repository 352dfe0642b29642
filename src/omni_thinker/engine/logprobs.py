"""Log-probs of given answers under a model: the one place where training looks at logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.attention.hf import blocks
from omni_thinker.engine.llama import answer_states, knows
from omni_thinker.engine.packing import GPU_MULTIPLE, MULTIPLE, PackedRow, pack
from omni_thinker.engine.softmax import ChosenLogprobs, HeadLogprobs
from omni_thinker.protocol import TrainGroup


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """N answer tokens of some groups, samples one after another, numbered over all groups."""

    logprobs_N: torch.Tensor
    """Log-probs in nats, with gradient where it is enabled."""
    entropy_N: torch.Tensor
    """Entropies in nats, without gradient."""
    sample_N: torch.Tensor
    computed: int
    """Tokens that the model was run on."""


def answer_logprobs(
    model: PreTrainedModel, groups: Sequence[TrainGroup], *, temperature: float, packed: bool, recompute: bool = False
) -> AnswerTokens:
    """Score the answers in `groups` at the temperature they were sampled at.

    `packed` lays all groups out in one row (each prompt once); otherwise every sample has its padded row, which
    any causal LM understands and which is the reference that the packed layout is tested against. `recompute` keeps
    fewer activations where the model's layers are written out here; elsewhere the model's own switch decides."""
    if packed and knows(model):
        row = pack(groups, MULTIPLE if model.device.type == "cpu" else GPU_MULTIPLE)
        return _from_states(model, answer_states(model, row, recompute=recompute), row, temperature)
    return (_packed if packed else _padded)(model, groups, temperature)


def _packed(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
    row = pack(groups)
    device = model.device
    with blocks(row.lengths):
        out = model(
            input_ids=row.tokens_T[None].to(device),
            position_ids=row.positions_T[None].to(device),
            attention_mask=row.mask_T_T[None, None].to(device),
            use_cache=False,
            logits_to_keep=row.source_N.to(device),
        )
    return _answers(out.logits[0], row, temperature)


def _from_states(model: PreTrainedModel, states_N_C: torch.Tensor, row: PackedRow, temperature: float) -> AnswerTokens:
    head: Any = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or getattr(head, "bias", None) is not None:  # an adapter, or more
        return _answers(head(states_N_C), row, temperature)
    target_N = row.target_N.to(states_N_C.device)
    scale = _scale(temperature)
    logprobs_N, entropy_N = HeadLogprobs.apply(states_N_C, head.weight, target_N, scale)  # type: ignore[no-untyped-call]
    return _cut(logprobs_N, entropy_N, row)


def _answers(logits_N_V: torch.Tensor, row: PackedRow, temperature: float) -> AnswerTokens:
    return _cut(*_select(logits_N_V, row.target_N.to(logits_N_V.device), temperature), row)


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


def _select(logits_N_V: torch.Tensor, target_N: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_N, entropy_N = ChosenLogprobs.apply(logits_N_V, target_N, _scale(temperature))  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _scale(temperature: float) -> float:
    return 1.0 if temperature == 0 else 1.0 / temperature
