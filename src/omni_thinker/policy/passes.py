"""What every trainer of ours does with a batch and with requests, however its weights are held."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import AnswerTokens
from omni_thinker.engine.task_gradients import Sketches, TaskGradients
from omni_thinker.protocol import Loss, LossReport, OnGroup, TokenBatch, TokenStats, TrainGroup
from omni_thinker.sampling.loop import DECODERS, sample_groups
from omni_thinker.sampling.thinking import Decode
from omni_thinker.types import Group, SampleRequest, SamplingParams

Row = tuple[Sequence[TrainGroup], torch.Tensor | None]
"""Groups of one micro-batch, and what the start makes of their answer tokens where that is wanted."""


def add_gradient(
    rows: Iterable[Row],
    score: Callable[[Sequence[TrainGroup]], AnswerTokens],
    loss: Loss,
    task_gradients: TaskGradients,
) -> LossReport:
    """Run each micro-batch forward and back."""
    total, computed = 0.0, 0
    stats: dict[str, TokenStats] = {}
    sketches: Sketches = {}
    for groups, reference_N in rows:
        with task_gradients.watching(groups, sketches):
            tokens, reference_N = _drawn(groups, score(groups), reference_N)
            token_batch = _token_batch(groups, tokens, reference_N)
            terms = loss(token_batch)
            terms.loss.backward()
        total += terms.loss.item()
        computed += tokens.computed
        _add_stats(stats, groups, token_batch, tokens.entropy_N, terms.clipped_N)
    return LossReport(total, computed, stats, sketches)


def sample_by(
    model: PreTrainedModel,
    requests: Sequence[SampleRequest],
    decoders: Sequence[str],
    params: SamplingParams,
    stop_ids: frozenset[int],
    decode: Decode,
    on_group: OnGroup | None = None,
) -> list[Group]:
    """One group per request, in order, each by the decoder of its name."""
    # Each by itself: how a request is answered must not depend on its company.
    places_of: dict[str, list[int]] = {}
    for place, decoder in enumerate(decoders):
        places_of.setdefault(decoder, []).append(place)
    groups: dict[int, Group] = {}
    for name, places in places_of.items():

        def tell(place: int, group: Group, places: Sequence[int] = places) -> None:
            if on_group is not None:
                on_group(places[place], group)

        part = [requests[place] for place in places]
        sampled = sample_groups(model, part, params, stop_ids, decode, tell, decoder=DECODERS[name])
        groups |= dict(zip(places, sampled, strict=True))
    return [groups[place] for place in range(len(requests))]


def longest(groups: Sequence[TrainGroup]) -> int:
    """Tokens of the longest sequence of some groups."""
    return max(len(group.prompt) + max(len(sample.tokens) for sample in group.samples) for group in groups)


def _drawn(
    groups: Sequence[TrainGroup], tokens: AnswerTokens, reference_N: torch.Tensor | None
) -> tuple[AnswerTokens, torch.Tensor | None]:
    """Without the tokens that were written for the model: it chose none of them."""
    samples = [sample for group in groups for sample in group.samples]
    if not any(sample.forced for sample in samples):
        return tokens, reference_N
    drawn = [place not in sample.forced for sample in samples for place in range(len(sample.tokens))]
    drawn_N = torch.tensor(drawn, device=tokens.logprobs_N.device)
    kept = replace(
        tokens,
        logprobs_N=tokens.logprobs_N[drawn_N],
        entropy_N=tokens.entropy_N[drawn_N],
        sample_N=tokens.sample_N[drawn_N],
    )
    return kept, None if reference_N is None else reference_N[drawn_N]


def _token_batch(groups: Sequence[TrainGroup], tokens: AnswerTokens, reference_N: torch.Tensor | None) -> TokenBatch:
    logprobs_N, sample_N = tokens.logprobs_N, tokens.sample_N
    device = logprobs_N.device
    old = [x for group in groups for sample in group.samples for x in sample.drawn_logprobs]
    advantages_S = torch.tensor([a for group in groups for a in group.advantages], device=device)
    weights_S = torch.tensor([w for group in groups for w in group.weights], device=device)
    return TokenBatch(
        logprobs_N=logprobs_N,
        old_logprobs_N=torch.tensor(old, device=device),
        reference_logprobs_N=reference_N,
        advantages_N=advantages_S[sample_N],
        weights_N=weights_S[sample_N],
        sample_N=sample_N,
    )


@torch.no_grad()
def _add_stats(
    stats: dict[str, TokenStats],
    groups: Sequence[TrainGroup],
    batch: TokenBatch,
    entropy_N: torch.Tensor,
    clipped_N: torch.Tensor,
) -> None:
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
            clipped=float(clipped_N[tokens].sum()),
            mismatch=float(difference_N[tokens].abs().sum()),
            kl=0.0 if kl_N is None else float(kl_N[tokens].sum()),
            kl_tokens=0 if kl_N is None else group.drawn,
        )
