"""Policy losses: small pure functions on flat answer tokens, in one typed table.

Every loss is a weighted sum over tokens; the weights (see `batch.py`) hold the normaliser, so micro-batches
add up to the whole batch by construction. Notation: rho is the ratio of the policy's probability of a token to
the sampler's, A the advantage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from omni_thinker.errors import UserError
from omni_thinker.protocol import LossForm, LossKind, LossTerms, TokenBatch
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.updates.importance import importance_weights, measured_by_trainer, sample_means


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds of rho: 1 - low and 1 + high, and `delta` where the advantage is negative (None: no such bound)."""

    low: float
    high: float
    delta: float | None = None


Surrogate = Callable[[TokenBatch, Clip], tuple[torch.Tensor, torch.Tensor]]
"""(batch, bounds) -> (loss per token, clipped per token)."""


def clipped_ratio(batch: TokenBatch, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """- min(rho A, clip(rho, 1 - low, 1 + high) A): PPO's clip (arXiv 1707.06347) as used by GRPO (2402.03300); with
    high > low DAPO's clip-higher (2503.14476)."""
    return _clip(torch.exp(batch.logprobs_N - batch.old_logprobs_N), batch.advantages_N, clip)


def sequence_ratio(batch: TokenBatch, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """GSPO (arXiv 2507.18071): rho is the geometric mean over a sample's tokens, and whole samples are clipped."""
    mean_S = sample_means(batch.logprobs_N - batch.old_logprobs_N, batch.sample_N)
    return _clip(torch.exp(mean_S)[batch.sample_N], batch.advantages_N, clip)


def clipped_weight(batch: TokenBatch, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """CISPO (arXiv 2506.13585): REINFORCE with rho clipped from above as a constant weight, so that no token
    loses its gradient. `low` is unused, as in the paper's experiments."""
    ratio_N = torch.exp(batch.logprobs_N - batch.old_logprobs_N).detach()
    weight_N = ratio_N.clamp(max=1 + clip.high)
    clipped_N = (ratio_N > 1 + clip.high) & (batch.advantages_N > 0)
    return -weight_N * batch.advantages_N * batch.logprobs_N, clipped_N


def _clip(ratio_N: torch.Tensor, advantages_N: torch.Tensor, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """With `delta` the two-sided clip of INTELLECT-2 (arXiv 2505.07291)."""
    bounded_N = ratio_N.clamp(1 - clip.low, 1 + clip.high)
    free_N = ratio_N if clip.delta is None else ratio_N.clamp(max=clip.delta)
    loss_N = -torch.minimum(free_N * advantages_N, bounded_N * advantages_N)
    low_N = (ratio_N < 1 - clip.low) & (advantages_N < 0)
    high_N = (ratio_N > 1 + clip.high) & (advantages_N > 0)
    if clip.delta is not None:
        low_N = low_N | ((ratio_N > clip.delta) & (advantages_N < 0))
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


def kl_to_start(batch: TokenBatch, unbiased: bool) -> torch.Tensor:
    """The k3 estimate of KL(policy || start) per token. It is of what the policy draws; `unbiased` weighs it by rho for
    tokens that another one drew, which makes its gradient that of the KL too (arXiv 2512.02556)."""
    if batch.reference_logprobs_N is None:
        raise ValueError("kl_beta > 0 needs the start model's log-probs")
    difference_N = batch.reference_logprobs_N - batch.logprobs_N
    kl_N = torch.exp(difference_N) - 1 - difference_N
    return kl_N * torch.exp(batch.logprobs_N - batch.old_logprobs_N) if unbiased else kl_N


def off_policy(batch: TokenBatch, most: float) -> torch.Tensor:
    """Which tokens are of samples with a negative advantage whose sampler is more than `most` nats a token from the
    policy, by the mean of log-prob differences (arXiv 2512.02556)."""
    sampler_N = batch.old_logprobs_N if batch.sampler_logprobs_N is None else batch.sampler_logprobs_N
    kl_S = sample_means(sampler_N - batch.logprobs_N.detach(), batch.sample_N)
    return (batch.advantages_N < 0) & (kl_S > most)[batch.sample_N]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss that a recipe asks for: a surrogate, weighed and masked token by token, plus beta times the KL to the
    start, less the entropy bonus.

    `spec` has no key left to be set by `between`. A trainer that has losses of its own, such as a service, reads it.
    `least_entropy`: tokens of less are left out of the surrogate and of the bonus (arXiv 2506.01939)."""

    spec: RlSpec
    least_entropy: float | None = None

    @property
    def form(self) -> LossForm:
        """For trainers with losses of their own. Raises UserError for a loss with parts that none of them has."""
        spec = self.spec
        parts = ("importance_cap", "delta", "off_policy_kl", "entropy_beta")
        if (part := next((part for part in parts if getattr(spec, part)), None)) or self.least_entropy is not None:
            raise UserError("isn't part of this trainer's losses; leave it out", key=f"rl.{part or 'top_entropy'}")
        return LossForm(_KINDS[SURROGATES[spec.loss]], *spec.clip, spec.kl_beta)

    def __call__(self, batch: TokenBatch) -> LossTerms:
        spec = self.spec
        importance_N = cut_N = off_policy_N = kept_N = None
        if spec.importance_cap:
            batch = measured_by_trainer(batch)
            importance_N, cut_N = importance_weights(batch, spec)
        loss_N, clipped_N = SURROGATES[spec.loss](batch, Clip(*spec.clip, spec.delta))
        if importance_N is not None:
            loss_N = loss_N * importance_N
        if spec.off_policy_kl is not None:
            off_policy_N = off_policy(batch, spec.off_policy_kl)
            loss_N = loss_N.masked_fill(off_policy_N, 0.0)
        if self.least_entropy is not None:
            kept_N = _entropy(batch).detach() >= self.least_entropy
            loss_N = loss_N * kept_N
        if spec.entropy_beta > 0:
            bonus_N = spec.entropy_beta * _entropy(batch)
            loss_N = loss_N - (bonus_N if kept_N is None else bonus_N * kept_N)
        if spec.kl_beta > 0:
            loss_N = loss_N + spec.kl_beta * kl_to_start(batch, spec.kl_unbiased)
        return LossTerms((loss_N * batch.weights_N).sum(), clipped_N, importance_N, cut_N, off_policy_N)


def make_loss(spec: RlSpec, *, different_engines: bool = False) -> PolicyLoss:
    """The loss of a recipe. `different_engines`: whether sampler and trainer are."""
    return PolicyLoss(spec.between(different_engines))


def _entropy(batch: TokenBatch) -> torch.Tensor:
    if batch.entropy_N is None:
        raise UserError("this policy can't say the entropy of tokens", key="rl.entropy_beta")
    return batch.entropy_N
