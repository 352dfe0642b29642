"""Log softmax at one index a row, and the entropy, with hand-written gradients: logits are the largest thing there is.

In fp32 from logits of any type, a few rows at a time; in bf16 on a CPU by the kernels in C, where there are any."""

import ctypes
from typing import Any

import torch

from omni_thinker.engine.head import relative_logits
from omni_thinker.engine.native import kernels

ROWS_AT_ONCE = 8
"""Rows of logits handled at once: what fp32 copies of them take stays in a core's own cache."""
EntropyGradient = tuple[torch.Tensor, torch.Tensor]
"""The gradient of a loss in the entropies, and these; [N] each."""


def logprob_entropy(
    logits_N_V: torch.Tensor, target_N: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute of scaled logits, in fp32: the targets' log-probs, the entropies, and what each row's log-probs are less
    than its scaled logits by; [N] each."""
    count, vocabulary = logits_N_V.shape
    chosen_N = logits_N_V.new_empty(count, dtype=torch.float32)
    entropy_N, less_N = torch.empty_like(chosen_N), torch.empty_like(chosen_N)
    if (c := _native(logits_N_V)) is not None:
        target_N = _inside(target_N, vocabulary)
        parts = (logits_N_V, target_N, chosen_N, entropy_N, less_N)
        c.logprob_entropy(*(block.data_ptr() for block in parts), scale, count, vocabulary)
        return chosen_N, entropy_N, less_N
    rows = _rows(logits_N_V)
    x_R_V = logits_N_V.new_empty(min(rows, count), vocabulary, dtype=torch.float32)
    p_R_V = torch.empty_like(x_R_V)
    for begin in range(0, count, rows):
        block = slice(begin, min(begin + rows, count))
        x, p = x_R_V[: block.stop - begin], p_R_V[: block.stop - begin]
        x.copy_(logits_N_V[block])
        if scale != 1:
            x.mul_(scale)
        # A logit of -inf has no probability and counts for nothing; as a number it makes no NaN.
        most = x.amax(dim=-1, keepdim=True)
        x.sub_(most).clamp_(min=-1e30)
        torch.exp(x, out=p)
        total = p.sum(dim=-1, keepdim=True)
        log_total = total.log()
        chosen_N[block] = (x.gather(-1, target_N[block, None]) - log_total)[:, 0]
        entropy_N[block] = (log_total - x.mul_(p).sum(dim=-1, keepdim=True) / total)[:, 0]
        less_N[block] = (most + log_total)[:, 0]
    return chosen_N, entropy_N, less_N


def logit_gradient(
    logits_N_V: torch.Tensor,
    target_N: torch.Tensor,
    less_N: torch.Tensor,
    grad_N: torch.Tensor,
    scale: float,
    out_N_V: torch.Tensor,
    entropy: EntropyGradient | None = None,
) -> torch.Tensor:
    """scale x grad x (one at the target - probabilities), into `out_N_V`, which may be the logits. With `entropy` that
    of the entropies is added, - scale x grad x probabilities x (log-probs + entropy): in torch, whatever the logits."""
    count, vocabulary = logits_N_V.shape
    if entropy is None and (c := _native(logits_N_V, out_N_V)) is not None:
        target_N, grad_N = _inside(target_N, vocabulary), grad_N.float().contiguous()
        parts = (logits_N_V, target_N, less_N, grad_N, out_N_V)
        c.logit_gradient(*(block.data_ptr() for block in parts), scale, count, vocabulary)
        return out_N_V
    factor_N_1 = (grad_N.float() * scale)[:, None]
    rows = _rows(logits_N_V)
    for begin in range(0, count, rows):
        block = slice(begin, min(begin + rows, count))
        x = logits_N_V[block].float()
        x = x.mul_(scale) if scale != 1 else x
        x.sub_(less_N[block, None])
        if entropy is None:
            x.exp_().mul_(-factor_N_1[block])
        else:
            weight_N, entropy_N = entropy
            x.clamp_(min=-1e30)  # a token without probability adds nothing, where -inf would make NaN
            more = (x + entropy_N[block, None]).mul_(weight_N[block, None].float() * scale)
            x.exp_().mul_(more.add_(factor_N_1[block]).neg_())
        # Not scatter_add_, which copies the whole tensor and back.
        at_N = target_N[block] + torch.arange(len(x), device=x.device) * vocabulary
        x.view(-1).index_add_(0, at_N, factor_N_1[block, 0])
        out_N_V[block] = x
    return out_N_V


def _rows(logits_N_V: torch.Tensor) -> int:
    return ROWS_AT_ONCE if logits_N_V.device.type == "cpu" else max(1, len(logits_N_V))


def _native(*logits: torch.Tensor) -> ctypes.CDLL | None:
    """The kernels in C, where they know these."""
    if any(x.dtype != torch.bfloat16 or x.device.type != "cpu" or not x.is_contiguous() for x in logits):
        return None
    return kernels()


def _inside(target_N: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Targets as the kernels read them. Raises IndexError for one outside the vocabulary, where torch would too."""
    if len(target_N) and not (int(target_N.min()) >= 0 and int(target_N.max()) < vocabulary):
        raise IndexError(f"a target is outside the vocabulary of {vocabulary}")
    return target_N.to(torch.int64).contiguous()


class ChosenLogprobs(torch.autograd.Function):
    """See `logprob_entropy`, of logits that somebody else made."""

    @staticmethod
    def forward(
        ctx: Any, logits_N_V: torch.Tensor, target_N: torch.Tensor, scale: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen_N, entropy_N, less_N = logprob_entropy(logits_N_V, target_N, scale)
        ctx.scale = scale
        ctx.save_for_backward(logits_N_V, target_N, less_N, entropy_N)
        ctx.set_materialize_grads(False)
        return chosen_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits_N_V, target_N, less_N, entropy_N = ctx.saved_tensors
        out = torch.empty_like(logits_N_V)
        chosen, entropy = _gradients(grads, entropy_N)
        return logit_gradient(logits_N_V, target_N, less_N, chosen, ctx.scale, out, entropy), None, None


def _gradients(
    grads: tuple[torch.Tensor | None, ...], entropy_N: torch.Tensor
) -> tuple[torch.Tensor, EntropyGradient | None]:
    """Of the log-probs and of the entropies; None where no loss depends on these."""
    chosen, entropy = grads
    return (
        torch.zeros_like(entropy_N) if chosen is None else chosen,
        None if entropy is None else (entropy, entropy_N),
    )


_HELD = 2**27
"""Bytes of logits that exist at once in `HeadLogprobs`."""


class HeadLogprobs(torch.autograd.Function):
    """The same from hidden states [N, C] and the head's weights [V, C], a chunk of tokens at a time.

    Logits and their gradient take turns in one tensor. Where all tokens are one chunk, it is kept for the gradient;
    where they are more, the gradient makes the logits of each again: a fourth product of the size of the head for
    memory that does not grow with the row."""

    @staticmethod
    def forward(
        ctx: Any, states_N_C: torch.Tensor, weight_V_C: torch.Tensor, target_N: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.chunk = max(ROWS_AT_ONCE, _HELD // (len(weight_V_C) * weight_V_C.element_size()))
        keep = any(ctx.needs_input_grad[:2])
        held = keep and len(states_N_C) <= ctx.chunk
        chunks = []
        for states, target in zip(states_N_C.split(ctx.chunk), target_N.split(ctx.chunk), strict=True):
            logits = relative_logits(states, weight_V_C, target)
            chunks.append(logprob_entropy(logits, target, scale))
        chosen_N, entropy_N, less_N = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        ctx.scale = scale
        if keep:
            ctx.save_for_backward(states_N_C, weight_V_C, target_N, less_N, entropy_N)
            ctx.logits_N_V = logits if held else None
        ctx.set_materialize_grads(False)
        return chosen_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        states_N_C, weight_V_C, target_N, less_N, entropy_N = ctx.saved_tensors
        chosen_grad, entropy_grad = _gradients(grads, entropy_N)
        held, ctx.logits_N_V = ctx.logits_N_V, None  # once
        states_grad, weight_grad = [], None
        chunks = zip(*(tensor.split(ctx.chunk) for tensor in (states_N_C, target_N, less_N, chosen_grad)), strict=True)
        for number, (states, target, less, grad) in enumerate(chunks):
            logits = held if held is not None else relative_logits(states, weight_V_C, target)
            part = slice(number * ctx.chunk, (number + 1) * ctx.chunk)
            entropy = None if entropy_grad is None else (entropy_grad[0][part], entropy_grad[1][part])
            grad_N_V = logit_gradient(logits, target, less, grad, ctx.scale, logits, entropy)
            if ctx.needs_input_grad[0]:
                states_grad.append(grad_N_V @ weight_V_C)
            if ctx.needs_input_grad[1]:
                gradient = grad_N_V.t() @ states
                # Two chunks or more are summed in fp32, as micro-batches are.
                weight_grad = (
                    gradient
                    if held is not None
                    else gradient.float()
                    if weight_grad is None
                    else weight_grad.add_(gradient)
                )
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight_V_C.dtype)
        return torch.cat(states_grad) if states_grad else None, weight_grad, None, None
