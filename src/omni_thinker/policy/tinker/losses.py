"""Our losses as those of a training service: which of its functions, and with which numbers for each token.

Ours is a sum over tokens with a weight for each sample. A service sums too, or it divides each sequence's sum by the
sequence's length and all by the number of sequences. The weights, and what it will divide by, are folded into the
advantages. They are positive, so a clip decides as it would without them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Literal

import torch

from omni_thinker.engine.logprobs import AnswerTokens
from omni_thinker.errors import UserError
from omni_thinker.protocol import LossForm, TrainGroup
from omni_thinker.types import Sample

LossName = Literal["cross_entropy", "importance_sampling", "ppo", "cispo"]


@dataclass(frozen=True, slots=True)
class Scale:
    """What a service divides a sum over tokens by: the tokens of each sequence, the number of sequences of an update,
    both or neither."""

    tokens: bool = False
    sequences: bool = False


SCALES: Mapping[str, Scale] = {"sum": Scale(), "mean": Scale(tokens=True, sequences=True)}


@dataclass(frozen=True, slots=True)
class ServiceLoss:
    """A loss of the service, and its settings."""

    name: LossName
    config: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence as a service takes it: all tokens but the last, what follows each, and numbers for each of these.

    `answer`: the first target that is part of the answer. `divisor`: what the service divides this row's sum by."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    numbers: Mapping[str, list[float]]
    answer: int
    divisor: float = 1.0


def service_loss(form: LossForm) -> ServiceLoss:
    """The service's function that is a loss of ours. Raises UserError where it has none."""
    if form.kl_beta > 0:
        raise UserError("a training service's losses have no KL term; set it to 0", key="rl.kl_beta")
    if form.kind == "likelihood":
        return ServiceLoss("cross_entropy")
    if form.kind == "clipped_ratio":
        bounds = {"clip_low_threshold": 1 - form.eps_low, "clip_high_threshold": 1 + form.eps_high}
        return ServiceLoss("ppo", bounds)
    if form.kind == "clipped_weight":  # from above alone
        return ServiceLoss("cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 1 + form.eps_high})
    raise UserError(
        "a training service clips ratios of tokens, not of sequences; use grpo, dapo, dr_grpo or cispo", key="rl.loss"
    )


def rows(groups: Sequence[TrainGroup], loss: ServiceLoss, scale: Scale) -> list[Row]:
    """The samples of `groups` as rows for `loss`, such that the service's gradient is ours.

    Raises UserError for weights of a likelihood that a service which divides by their sum would lose."""
    count = sum(len(group.samples) for group in groups)
    return [
        _row(group.prompt, sample, advantage, weight, count, loss, scale)
        for group in groups
        for sample, advantage, weight in zip(group.samples, group.advantages, group.weights, strict=True)
    ]


def _row(
    prompt: Sequence[int], sample: Sample, advantage: float, weight: float, count: int, loss: ServiceLoss, scale: Scale
) -> Row:
    whole = (*prompt, *sample.tokens)
    before, length = len(prompt) - 1, len(whole) - 1
    drawn = sample.chosen
    sequences = count if scale.sequences else 1
    if loss.name == "cross_entropy":
        value, divisor = weight * sequences, float(sequences)
        if scale.tokens:  # it divides by the sum of the weights, so any weight is that of a mean
            if not isclose(weight * sample.drawn * sequences, 1.0, rel_tol=1e-6):
                raise UserError("this service can't weigh gold answers unequally", key="engine.tinker.loss_scale")
            value, divisor = 1.0, float(sequences * sample.drawn)
        numbers = {"weights": [0.0] * before + [value * one for one in drawn]}
    else:
        divisor = float(sequences * (length if scale.tokens else 1))
        folded = advantage * weight * divisor
        numbers = {
            "advantages": [0.0] * before + [folded * one for one in drawn],
            "logprobs": [0.0] * before + list(sample.logprobs),
        }
    return Row(whole[:-1], whole[1:], numbers, before, divisor)


def answer_tokens(made: Sequence[Row], logprobs: Sequence[Sequence[float]]) -> AnswerTokens:
    """What a service says of the targets of rows, as our trainer would: log-probs of the answer tokens alone.

    The entropy is estimated by the surprise at each token, without bias for tokens that this policy drew."""
    answers = [list(one[row.answer :]) for row, one in zip(made, logprobs, strict=True)]
    logprobs_N = torch.tensor([x for answer in answers for x in answer], dtype=torch.float32)
    sample_N = torch.arange(len(answers)).repeat_interleave(torch.tensor([len(answer) for answer in answers]))
    return AnswerTokens(logprobs_N, -logprobs_N, sample_N, sum(len(row.inputs) + 1 for row in made))
