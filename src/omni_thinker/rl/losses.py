"""Policy losses: small pure functions on flat answer tokens, in one typed table.

Every loss is a weighted sum over tokens; the weights (see `batch.py`) hold the normaliser, so micro-batches
add up to the whole batch by construction. Notation: rho is the ratio of the policy's probability of a token to
the sampler's, A the advantage."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from omni_thinker.protocol import FormedLoss, LossForm, LossKind, LossTerms, TokenBatch
from omni_thinker.recipe import RlSpec

Surrogate = Callable[[TokenBatch, float, float], tuple[torch.Tensor, torch.Tensor]]
"""(batch, eps_low, eps_high) -> (loss per token, clipped per token)."""


def clipped_ratio(batch: TokenBatch, eps_low: float, eps_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """- min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A): PPO's clip (arXiv 1707.06347) as used by GRPO
    (2402.03300); with eps_high > eps_low DAPO's clip-higher (2503.14476)."""
    return _clip(torch.exp(batch.logprobs_N - batch.old_logprobs_N), batch.advantages_N, eps_low, eps_high)


def sequence_ratio(batch: TokenBatch, eps_low: float, eps_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """GSPO (arXiv 2507.18071): rho is the geometric mean over a sample's tokens, and whole samples are clipped."""
    difference_N = batch.logprobs_N - batch.old_logprobs_N
    samples = int(batch.sample_N.max()) + 1
    zeros_S = torch.zeros(samples, dtype=difference_N.dtype, device=difference_N.device)
    sum_S = zeros_S.index_add(0, batch.sample_N, difference_N)
    count_S = zeros_S.index_add(0, batch.sample_N, torch.ones_like(difference_N))
    return _clip(torch.exp(sum_S / count_S)[batch.sample_N], batch.advantages_N, eps_low, eps_high)


def clipped_weight(batch: TokenBatch, eps_low: float, eps_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """CISPO (arXiv 2506.13585): REINFORCE with rho clipped from above as a constant weight, so that no token
    loses its gradient. `eps_low` is unused, as in the paper's experiments."""
    ratio_N = torch.exp(batch.logprobs_N - batch.old_logprobs_N).detach()
    weight_N = ratio_N.clamp(max=1 + eps_high)
    clipped_N = (ratio_N > 1 + eps_high) & (batch.advantages_N > 0)
    return -weight_N * batch.advantages_N * batch.logprobs_N, clipped_N


def _clip(
    ratio_N: torch.Tensor, advantages_N: torch.Tensor, eps_low: float, eps_high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    bounded_N = ratio_N.clamp(1 - eps_low, 1 + eps_high)
    loss_N = -torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N)
    low_N = (ratio_N < 1 - eps_low) & (advantages_N < 0)
    high_N = (ratio_N > 1 + eps_high) & (advantages_N > 0)
    return loss_N, low_N | high_N


SURROGATES: Mapping[str, Surrogate] = {
    "grpo": clipped_ratio,
    "dapo": clipped_ratio,
    "dr_grpo": clipped_ratio,
    "gspo": sequence_ratio,
    "cispo": clipped_weight,
}
_KINDS: Mapping[Surrogate, LossKind] = {
    clipped_ratio: "clipped_ratio",
    sequence_ratio: "sequence_ratio",
    clipped_weight: "clipped_weight",
}


def form_of(spec: RlSpec) -> LossForm:
    """Which function the loss of a recipe is."""
    preset = spec.preset
    eps_low = preset.eps_low if spec.eps_low is None else spec.eps_low
    eps_high = preset.eps_high if spec.eps_high is None else spec.eps_high
    return LossForm(_KINDS[SURROGATES[spec.loss]], eps_low, eps_high, spec.kl_beta)


def make_loss(spec: RlSpec) -> FormedLoss:
    """The loss that a recipe asks for, with beta times the k3 estimate of KL(policy || start) added."""
    surrogate, form = SURROGATES[spec.loss], form_of(spec)

    return FormedLoss(form, partial(_weighted, surrogate=surrogate, form=form))


def _weighted(batch: TokenBatch, *, surrogate: Surrogate, form: LossForm) -> LossTerms:
    # By its name, and not inside `make_loss`: other processes are told which loss it is.
    loss_N, clipped_N = surrogate(batch, form.eps_low, form.eps_high)
    if form.kl_beta > 0:
        if batch.reference_logprobs_N is None:
            raise ValueError("kl_beta > 0 needs the start model's log-probs")
        difference_N = batch.reference_logprobs_N - batch.logprobs_N
        loss_N = loss_N + form.kl_beta * (torch.exp(difference_N) - 1 - difference_N)
    return LossTerms((loss_N * batch.weights_N).sum(), clipped_N)
