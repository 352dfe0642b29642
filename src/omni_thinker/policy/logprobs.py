"""Log-probs of given answers under a model: the one place where training looks at logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.policy.blocks import blocks
from omni_thinker.policy.forward import answer_states, knows
from omni_thinker.policy.packing import PackedRow, pack
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
    if knows(model):
        head: Any = model.get_output_embeddings()
        return _answers(head(answer_states(model, row)), row, temperature)
    with blocks(row.lengths):
        out = model(
            input_ids=row.tokens_T[None].to(device),
            position_ids=row.positions_T[None].to(device),
            attention_mask=row.mask_T_T[None, None].to(device),
            use_cache=False,
            logits_to_keep=row.source_N.to(device),
        )
    return _answers(out.logits[0], row, temperature)


def _answers(logits_N_V: torch.Tensor, row: PackedRow, temperature: float) -> AnswerTokens:
    device = logits_N_V.device
    logprobs_N, entropy_N = _select(logits_N_V, row.target_N.to(device), temperature)
    real = slice(row.answers)
    return AnswerTokens(logprobs_N[real], entropy_N[real], row.sample_N[real].to(device), len(row.tokens_T))


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
    scale = 1.0 if temperature == 0 else 1.0 / temperature
    logprobs_N, entropy_N = _ChosenLogprobs.apply(logits_N_V, target_N, scale)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


ROWS = 64
"""Rows of logits handled at once: what fp32 copies of them take stays in the processor's cache."""


class _ChosenLogprobs(torch.autograd.Function):
    """log softmax of scaled logits at one index per row, and the entropy, in fp32 from logits of any dtype.

    Same numbers as `log_softmax` and `gather`, without fp32 tensors of [N, V]: only the probabilities are kept,
    in the dtype of the logits, which is what their gradient is rounded to anyway.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_N_V: torch.Tensor, target_N: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(target_N)
        chosen_N = logits_N_V.new_empty(count, dtype=torch.float32)
        entropy_N = torch.empty_like(chosen_N)
        keep = ctx.needs_input_grad[0]
        probs_N_V = torch.empty_like(logits_N_V) if keep else logits_N_V.new_empty(0)
        for begin in range(0, count, ROWS):
            rows = slice(begin, begin + ROWS)
            x = logits_N_V[rows].float() * scale
            total = torch.logsumexp(x, dim=-1)
            chosen_N[rows] = x.gather(-1, target_N[rows, None])[:, 0] - total
            p = torch.softmax(x, dim=-1)
            # -sum p log p, with log p = x - total; a logit of -inf has p = 0 and counts for nothing.
            entropy_N[rows] = total - p.mul(x).nan_to_num_(nan=0.0).sum(-1)
            if keep:
                probs_N_V[rows] = p.to(probs_N_V.dtype)
        ctx.scale = scale
        ctx.save_for_backward(probs_N_V, target_N)
        ctx.mark_non_differentiable(entropy_N)
        return chosen_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        probs_N_V, target_N = ctx.saved_tensors
        grad_N = (grads[0] * ctx.scale)[:, None].to(probs_N_V.dtype)
        grad_N_V = probs_N_V * -grad_N
        grad_N_V.scatter_add_(-1, target_N[:, None], grad_N)
        return grad_N_V, None, None
