"""Log-probs of given answers under a model: the one place where training looks at logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from omni_thinker.policy.packing import pack
from omni_thinker.policy.protocol import TrainGroup


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """N answer tokens of some groups, samples one after another, numbered over all groups."""

    logprobs_N: torch.Tensor
    """Nats, with gradient where it is enabled."""
    entropy_N: torch.Tensor
    """Nats, without gradient."""
    sample_N: torch.Tensor
    computed: int
    """Tokens that the model was run on."""


def answer_logprobs(
    model: PreTrainedModel, groups: Sequence[TrainGroup], *, temperature: float, packed: bool
) -> AnswerTokens:
    """Score the answers in `groups` at the temperature they were sampled at.

    `packed` lays all groups out in one row (each prompt once); otherwise every sample has its padded row, which
    any causal LM understands and which is the reference that the packed layout is tested against.
    """
    return (_packed if packed else _padded)(model, groups, temperature)


def _packed(model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
    row = pack(groups)
    device = model.device
    out = model(
        input_ids=row.tokens_T[None].to(device),
        position_ids=row.positions_T[None].to(device),
        attention_mask=row.mask_T_T[None, None].to(device),
        use_cache=False,
        logits_to_keep=row.source_N.to(device),
    )
    logprobs_N, entropy_N = _select(out.logits[0], row.target_N.to(device), temperature)
    return AnswerTokens(logprobs_N, entropy_N, row.sample_N.to(device), len(row.tokens_T))


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


def _select(
    logits_N_V: torch.Tensor, target_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_N_V = logits_N_V.float()
    if temperature not in (0.0, 1.0):
        logits_N_V = logits_N_V / temperature
    logprobs_N_V = torch.log_softmax(logits_N_V, dim=-1)
    chosen_N = logprobs_N_V.gather(-1, target_N[:, None])[:, 0]
    with torch.no_grad():
        entropy_N = -(logprobs_N_V.exp() * logprobs_N_V).sum(-1)
    return chosen_N, entropy_N
