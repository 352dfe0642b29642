"""What every trainer of ours does with a batch and with requests, however its weights are held."""

from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import AnswerTokens
from omni_thinker.engine.task_gradients import Sketches, TaskGradients
from omni_thinker.policy.tokens import add_stats, drawn_alone, token_batch
from omni_thinker.protocol import Loss, LossReport, OnGroup, TokenStats, TrainGroup
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
            tokens, reference_N = drawn_alone(groups, score(groups), reference_N)
            seen = token_batch(groups, tokens, reference_N)
            terms = loss(seen)
            terms.loss.backward()
        total += terms.loss.item()
        computed += tokens.computed
        add_stats(stats, groups, seen, tokens.entropy_N, terms)
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
