"""From log-probs of answer tokens to what a loss sees, and to the sums that a step reports."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from omni_thinker.engine.logprobs import AnswerTokens
from omni_thinker.protocol import LossTerms, TokenBatch, TokenStats, TrainGroup


def drawn_alone(
    groups: Sequence[TrainGroup], tokens: AnswerTokens, reference_N: torch.Tensor | None
) -> tuple[AnswerTokens, torch.Tensor | None]:
    """Without the tokens that were written for the model: it chose none of them."""
    samples = [sample for group in groups for sample in group.samples]
    if not any(sample.forced for sample in samples):
        return tokens, reference_N
    chosen = [drawn for sample in samples for drawn in sample.chosen]
    drawn_N = torch.tensor(chosen, device=tokens.logprobs_N.device)
    kept = replace(
        tokens,
        logprobs_N=tokens.logprobs_N[drawn_N],
        entropy_N=tokens.entropy_N[drawn_N],
        sample_N=tokens.sample_N[drawn_N],
    )
    return kept, None if reference_N is None else reference_N[drawn_N]


def token_batch(groups: Sequence[TrainGroup], tokens: AnswerTokens, reference_N: torch.Tensor | None) -> TokenBatch:
    """What a loss sees of `tokens`, which are those that the model drew (N)."""
    logprobs_N, sample_N = tokens.logprobs_N, tokens.sample_N
    device = logprobs_N.device
    old = [x for group in groups for sample in group.samples for x in sample.drawn_logprobs]
    sampler = [x for group in groups for x in group.drawn_sampler_logprobs]
    advantages_S = torch.tensor([a for group in groups for a in group.advantages], device=device)
    weights_S = torch.tensor([w for group in groups for w in group.weights], device=device)
    return TokenBatch(
        logprobs_N=logprobs_N,
        old_logprobs_N=torch.tensor(old, device=device),
        reference_logprobs_N=reference_N,
        advantages_N=advantages_S[sample_N],
        weights_N=weights_S[sample_N],
        sample_N=sample_N,
        sampler_logprobs_N=torch.tensor(sampler, device=device) if sampler else None,
        entropy_N=tokens.entropy_N,
    )


@torch.no_grad()
def add_stats(
    stats: dict[str, TokenStats],
    groups: Sequence[TrainGroup],
    batch: TokenBatch,
    entropy_N: torch.Tensor,
    terms: LossTerms,
) -> None:
    """Add the sums over the tokens of each of `groups`' tasks to `stats`."""
    difference_N = batch.logprobs_N.detach() - batch.old_logprobs_N
    kl_N = None
    if batch.reference_logprobs_N is not None:
        ratio_N = batch.reference_logprobs_N - batch.logprobs_N.detach()
        kl_N = ratio_N.exp() - 1 - ratio_N  # k3: unbiased, never negative
    begin = 0
    for group in groups:
        tokens = slice(begin, begin + group.drawn)
        begin += group.drawn
        stats[group.task] = stats.get(group.task, TokenStats()) + TokenStats(
            tokens=group.drawn,
            entropy=float(entropy_N[tokens].sum()),
            clipped=float(terms.clipped_N[tokens].sum()),
            mismatch=float(difference_N[tokens].abs().sum()),
            kl=0.0 if kl_N is None else float(kl_N[tokens].sum()),
            kl_tokens=0 if kl_N is None else group.drawn,
            importance=0.0 if terms.importance_N is None else float(terms.importance_N[tokens].sum()),
            cut=0.0 if terms.cut_N is None else float(terms.cut_N[tokens].sum()),
            weighed=0 if terms.importance_N is None else group.drawn,
            off_policy=0.0 if terms.off_policy_N is None else float(terms.off_policy_N[tokens].sum()),
            screened=0 if terms.off_policy_N is None else group.drawn,
        )
