"""Policy losses: small pure functions on flat answer tokens, in one typed table.

Every loss is a weighted sum over tokens; the weights (see `batch.py`) hold the normaliser, so micro-batches
add up to the whole batch by construction. Notation: rho is the ratio of the policy's probability of a token to
the sampler's, A the advantage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from omni_thinker.protocol import LossTerms, TokenBatch
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.importance import importance_weights, measured_by_trainer, sample_sums

Surrogate = Callable[[TokenBatch, float, float], tuple[torch.Tensor, torch.Tensor]]
"""(batch, eps_low, eps_high) -> (loss per token, clipped per token)."""


def clipped_ratio(batch: TokenBatch, eps_low: float, eps_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """- min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A): PPO's clip (arXiv 1707.06347) as used by GRPO
    (2402.03300); with eps_high > eps_low DAPO's clip-higher (2503.14476)."""
    return _clip(torch.exp(batch.logprobs_N - batch.old_logprobs_N), batch.advantages_N, eps_low, eps_high)


def sequence_ratio(batch: TokenBatch, eps_low: float, eps_high: float) -> tuple[torch.Tensor, torch.Tensor]:
    """GSPO (arXiv 2507.18071): rho is the geometric mean over a sample's tokens, and whole samples are clipped."""
    difference_N = batch.logprobs_N - batch.old_logprobs_N
    sum_S = sample_sums(difference_N, batch.sample_N)
    count_S = sample_sums(torch.ones_like(difference_N), batch.sample_N)
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


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss that a recipe asks for: a surrogate, times importance weights where sampler and trainer differ, plus
    beta times the k3 estimate of KL(policy || start).

    `spec` has no key left to be set by `between`. A trainer that has losses of its own, such as a service, reads it."""

    spec: RlSpec

    @property
    def bounds(self) -> tuple[float, float]:
        """eps_low and eps_high."""
        spec, preset = self.spec, self.spec.preset
        low = preset.eps_low if spec.eps_low is None else spec.eps_low
        return low, preset.eps_high if spec.eps_high is None else spec.eps_high

    def __call__(self, batch: TokenBatch) -> LossTerms:
        importance_N = cut_N = None
        if self.spec.importance_cap:
            batch = measured_by_trainer(batch)
            importance_N, cut_N = importance_weights(batch, self.spec)
        loss_N, clipped_N = SURROGATES[self.spec.loss](batch, *self.bounds)
        if importance_N is not None:
            loss_N = loss_N * importance_N
        if self.spec.kl_beta > 0:
            if batch.reference_logprobs_N is None:
                raise ValueError("kl_beta > 0 needs the start model's log-probs")
            difference_N = batch.reference_logprobs_N - batch.logprobs_N
            loss_N = loss_N + self.spec.kl_beta * (torch.exp(difference_N) - 1 - difference_N)
        return LossTerms((loss_N * batch.weights_N).sum(), clipped_N, importance_N, cut_N)


def make_loss(spec: RlSpec, *, different_engines: bool = False) -> PolicyLoss:
    """The loss of a recipe. `different_engines`: whether sampler and trainer are."""
    return PolicyLoss(spec.between(different_engines))
