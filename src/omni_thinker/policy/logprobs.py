"""Log-probs of given answers under a model: the one place where training looks at logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.policy.blocks import blocks
from omni_thinker.policy.forward import answer_states, knows
from omni_thinker.policy.head import relative_logits
from omni_thinker.policy.packing import GPU_MULTIPLE, MULTIPLE, PackedRow, pack
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
    model: PreTrainedModel, groups: Sequence[TrainGroup], *, temperature: float, packed: bool, recompute: bool = False
) -> AnswerTokens:
    """Score the answers in `groups` at the temperature they were sampled at.

    `packed` lays all groups out in one row (each prompt once); otherwise every sample has its padded row, which
    any causal LM understands and which is the reference that the packed layout is tested against. `recompute` keeps
    fewer activations where the model's layers are written out here; elsewhere the model's own switch decides.
    """
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
    logprobs_N, entropy_N = _HeadLogprobs.apply(states_N_C, head.weight, target_N, scale)  # type: ignore[no-untyped-call]
    return _cut(logprobs_N, entropy_N, row)


def _answers(logits_N_V: torch.Tensor, row: PackedRow, temperature: float) -> AnswerTokens:
    return _cut(*_select(logits_N_V, row.target_N.to(logits_N_V.device), temperature), row)


def _cut(logprobs_N: torch.Tensor, entropy_N: torch.Tensor, row: PackedRow) -> AnswerTokens:
    """Without what fills up the row."""
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
    logprobs_N, entropy_N = _ChosenLogprobs.apply(logits_N_V, target_N, _scale(temperature))  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N


def _scale(temperature: float) -> float:
    return 1.0 if temperature == 0 else 1.0 / temperature


ROWS = 8
"""Rows of logits handled at once: what fp32 copies of them take stays in a core's own cache."""


def _weigh(
    logits_N_V: torch.Tensor, target_N: torch.Tensor, scale: float, *, keep: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log softmax of scaled logits at one index a row, and the entropy, in fp32 from logits of any dtype. With `keep`,
    the probabilities take the place of the logits, in their dtype, which is what a gradient is rounded to anyway."""
    count, vocabulary = logits_N_V.shape
    chosen_N = logits_N_V.new_empty(count, dtype=torch.float32)
    entropy_N = torch.empty_like(chosen_N)
    rows = ROWS if logits_N_V.device.type == "cpu" else max(1, count)
    x_R_V = logits_N_V.new_empty(min(rows, count), vocabulary, dtype=torch.float32)
    p_R_V = torch.empty_like(x_R_V)
    for begin in range(0, count, rows):
        part = slice(begin, min(begin + rows, count))
        x, p = x_R_V[: part.stop - begin], p_R_V[: part.stop - begin]
        x.copy_(logits_N_V[part])
        if scale != 1:
            x.mul_(scale)
        # A logit of -inf has no probability and counts for nothing; as a number it makes no NaN.
        x.sub_(x.amax(dim=-1, keepdim=True)).clamp_(min=-1e30)
        torch.exp(x, out=p)
        total = p.sum(dim=-1, keepdim=True)
        log_total = total.log()
        chosen_N[part] = (x.gather(-1, target_N[part, None]) - log_total)[:, 0]
        entropy_N[part] = (log_total - x.mul_(p).sum(dim=-1, keepdim=True) / total)[:, 0]
        if keep:
            logits_N_V[part] = p.div_(total)
    return chosen_N, entropy_N


def _logit_gradient(
    probs_N_V: torch.Tensor, target_N: torch.Tensor, grad_N: torch.Tensor, scale: float
) -> torch.Tensor:
    """Of logits, in the place of their probabilities: scale x grad x (one at the target - probabilities)."""
    scaled_N = (grad_N * scale).to(probs_N_V.dtype)
    probs_N_V.mul_(-scaled_N[:, None])
    # Not scatter_add_, which copies the whole tensor and back.
    at_N = target_N + torch.arange(len(target_N), device=target_N.device) * probs_N_V.shape[1]
    probs_N_V.view(-1).index_add_(0, at_N, scaled_N)
    return probs_N_V


class _ChosenLogprobs(torch.autograd.Function):
    """See `_weigh`, of logits that somebody else made. Its gradient can be taken once."""

    @staticmethod
    def forward(
        ctx: Any, logits_N_V: torch.Tensor, target_N: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keep = ctx.needs_input_grad[0]
        probs_N_V = logits_N_V.clone() if keep else logits_N_V
        chosen_N, entropy_N = _weigh(probs_N_V, target_N, scale, keep=keep)
        ctx.scale = scale
        ctx.save_for_backward(probs_N_V if keep else logits_N_V.new_empty(0), target_N)
        ctx.mark_non_differentiable(entropy_N)
        return chosen_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        probs_N_V, target_N = ctx.saved_tensors
        return _logit_gradient(probs_N_V, target_N, grads[0], ctx.scale), None, None


_HELD = 2**27
"""Bytes of logits that exist at once in `_HeadLogprobs`."""


class _HeadLogprobs(torch.autograd.Function):
    """The same from hidden states [N, C] and the head's weights [V, C], a chunk of tokens at a time.

    Logits, probabilities and their gradient take turns in one tensor. Where all tokens are one chunk, it is kept for
    the gradient; where they are more, the gradient makes each chunk's logits again: a fourth product of the head's size
    for memory that doesn't grow with the row.
    """

    @staticmethod
    def forward(
        ctx: Any, states_N_C: torch.Tensor, weight_V_C: torch.Tensor, target_N: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.chunk = max(ROWS, _HELD // (len(weight_V_C) * weight_V_C.element_size()))
        keep = any(ctx.needs_input_grad[:2])
        held = keep and len(states_N_C) <= ctx.chunk
        chosen, entropy = [], []
        for states, target in zip(states_N_C.split(ctx.chunk), target_N.split(ctx.chunk), strict=True):
            logits = relative_logits(states, weight_V_C, target)
            own_chosen, own_entropy = _weigh(logits, target, scale, keep=held)
            chosen.append(own_chosen)
            entropy.append(own_entropy)
        ctx.scale = scale
        if keep:
            ctx.save_for_backward(states_N_C, weight_V_C, target_N)
            ctx.probs_N_V = logits if held else None
        entropy_N = torch.cat(entropy)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(chosen), entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        states_N_C, weight_V_C, target_N = ctx.saved_tensors
        held, ctx.probs_N_V = ctx.probs_N_V, None  # once
        states_grad, weight_grad = [], None
        chunks = zip(*(part.split(ctx.chunk) for part in (states_N_C, target_N, grads[0])), strict=True)
        for states, target, grad in chunks:
            probs = held
            if probs is None:
                probs = relative_logits(states, weight_V_C, target)
                _weigh(probs, target, ctx.scale, keep=True)
            grad_N_V = _logit_gradient(probs, target, grad, ctx.scale)
            if ctx.needs_input_grad[0]:
                states_grad.append(grad_N_V @ weight_V_C)
            if ctx.needs_input_grad[1]:
                own = grad_N_V.t() @ states
                # Two chunks or more are summed in fp32, as micro-batches are.
                weight_grad = own if held is not None else own.float() if weight_grad is None else weight_grad.add_(own)
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight_V_C.dtype)
        return torch.cat(states_grad) if states_grad else None, weight_grad, None, None
