"""Importance weights between the engine that sampled and the one that trains, which give the same tokens different
log-probs.

The gradient is a mean over what the trainer would have drawn. So a sampled token weighs as many times as much as the
trainer's distribution before the update finds it likelier than the sampler's. Weights without a bound have a variance
without one: they are truncated (arXiv 1802.01561; for a sampling engine beside a trainer "TIS", fengyao.notion.site/
off-policy-rl) or masked, token by token (IcePop, arXiv 2510.18855) or by whole samples (arXiv 2512.23075)."""

from dataclasses import replace

import torch

from omni_thinker.protocol import TokenBatch
from omni_thinker.recipe import RlSpec

_MOST_LOG = 20.0
"""Log-weights beyond this are as good as infinite."""


def measured_by_trainer(batch: TokenBatch) -> TokenBatch:
    """The batch with ratios measured from the trainer's log-probs before the update. Where nobody computed these again,
    this is the first update since sampling, and they are those of now."""
    if batch.sampler_logprobs_N is not None:
        return batch
    return replace(batch, old_logprobs_N=batch.logprobs_N.detach(), sampler_logprobs_N=batch.old_logprobs_N)


def importance_weights(batch: TokenBatch, spec: RlSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's weight, [N], without gradient, and which were outside the bounds, of a batch that is
    `measured_by_trainer`. The log-weight of a whole sample is the sum of its tokens'."""
    cap, floor = spec.importance_cap, spec.importance_floor
    assert batch.sampler_logprobs_N is not None
    assert cap is not None
    level, _, constraint = spec.importance.partition("_")
    log_N = batch.old_logprobs_N - batch.sampler_logprobs_N
    if level == "sequence":
        log_N = sample_sums(log_N, batch.sample_N)[batch.sample_N]
    weight_N = torch.exp(log_N.clamp(-_MOST_LOG, _MOST_LOG))
    cut_N = (weight_N > cap) | (weight_N < floor)
    if constraint == "mask":
        return weight_N.masked_fill(cut_N, 0.0), cut_N
    return weight_N.clamp(floor, cap), cut_N


def sample_sums(value_N: torch.Tensor, sample_N: torch.Tensor) -> torch.Tensor:
    """The sum of each sample's tokens, [S]."""
    zeros_S = torch.zeros(int(sample_N.max()) + 1, dtype=value_N.dtype, device=value_N.device)
    return zeros_S.index_add(0, sample_N, value_N)


def sample_means(value_N: torch.Tensor, sample_N: torch.Tensor) -> torch.Tensor:
    """The mean over each sample's tokens, [S]."""
    return sample_sums(value_N, sample_N) / sample_sums(torch.ones_like(value_N), sample_N)
