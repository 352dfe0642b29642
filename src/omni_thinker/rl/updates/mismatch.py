"""How far the log-probs of the sampler are from the trainer's, for the same tokens and weights, and when that is too
far to train on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from omni_thinker.errors import UserError
from omni_thinker.protocol import Policy, SamplesElsewhere, ScoresTokens, TokenStats, TrainGroup
from omni_thinker.types import TaskName


def samples_elsewhere(policy: Policy) -> bool:
    """Whether the policy's sampler is another engine than its trainer."""
    return isinstance(policy, SamplesElsewhere) and policy.samples_elsewhere


def trainer_logprobs(
    policy: Policy, batch: Sequence[TrainGroup], temperatures: Mapping[TaskName, float]
) -> list[TrainGroup]:
    """The batch with log-probs as the trainer has them now, and the sampler's beside them, of tasks that have a
    temperature; the others as they are. One forward pass for each temperature.

    Raises UserError where the policy can't compute log-probs again."""
    if not isinstance(policy, ScoresTokens):
        raise UserError("this policy can't compute log-probs again", key="rl.old_logprobs")
    recomputed = dict(enumerate(batch))
    for temperature in dict.fromkeys(temperatures.values()):
        places = [place for place, group in enumerate(batch) if temperatures.get(group.task) == temperature]
        if not places:
            continue
        flat = iter(policy.logprobs([batch[place] for place in places], temperature=temperature).tolist())
        for place in places:
            group = batch[place]
            recomputed[place] = replace(
                group,
                samples=tuple(replace(s, logprobs=tuple(islice(flat, len(s.tokens)))) for s in group.samples),
                sampler_logprobs=tuple(sample.logprobs for sample in group.samples),
            )
    return list(recomputed.values())


def mismatch_sums(batch: Sequence[TrainGroup]) -> dict[TaskName, TokenStats]:
    """Absolute differences of a batch that `trainer_logprobs` made, by task; of tasks that it left alone none."""
    sums: dict[TaskName, TokenStats] = {}
    for group in batch:
        if not group.sampler_logprobs:
            continue
        trainer = [x for sample in group.samples for x in sample.drawn_logprobs]
        difference = sum(abs(x - y) for x, y in zip(group.drawn_sampler_logprobs, trainer, strict=True))
        sums[group.task] = sums.get(group.task, TokenStats()) + TokenStats(len(trainer), mismatch=difference)
    return sums


def stop_on_mismatch(stats: Mapping[TaskName, TokenStats], most: float | None) -> None:
    """Raises UserError where log-probs differ by more than `most` nats on average: what was sampled isn't the trained
    model's then. Before an update alone; after it they differ by what was learnt too."""
    tokens = sum(sums.tokens for sums in stats.values())
    if most is None or not tokens:
        return
    mismatch = sum(sums.mismatch for sums in stats.values()) / tokens
    if mismatch > most:
        raise UserError(
            f"log-probs of sampler and trainer differ by {mismatch:.3g} nats a token, more than {most:g}: the sampler "
            "may have other weights, or draw at another temperature; a higher bound allows it",
            key="rl.max_mismatch",
        )
