"""The tables `[warmup]`, `[rl]` and `[evaluation]` of a recipe. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from omni_thinker.recipe.types import MAX_INT, Count, NonNegative, Positive, PositiveFloat, Share, Table
from omni_thinker.types import SamplingParams

Update = Literal["step", "task"]
"""What one update of the weights is made of: all of a step, or one task of it after another, in random order (CGPO,
arXiv 2409.20370)."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a loss was published with: estimator of advantages, normaliser of token weights, bounds of the clip."""

    advantage: Literal["grpo", "dr_grpo"]
    normaliser: Literal["sample", "token", "constant"]
    eps_low: float
    eps_high: float


PRESETS: Mapping[str, Preset] = {
    "grpo": Preset("grpo", "sample", 0.2, 0.2),  # arXiv 2402.03300; PPO's clip, 1707.06347
    "dapo": Preset("grpo", "token", 0.2, 0.28),  # 2503.14476
    "dr_grpo": Preset("dr_grpo", "constant", 0.2, 0.2),  # 2503.20783
    "gspo": Preset("grpo", "sample", 3e-4, 4e-4),  # 2507.18071
    "cispo": Preset("grpo", "token", 0.2, 0.2),  # 2506.13585 names no number; eps_low isn't used
}


class WarmupSpec(Table):
    """Supervised steps on gold answers of the train split, until each task scores within `target`."""

    steps: Count = 40
    batch: Positive = 16
    lr: PositiveFloat = 3e-5
    check_every: Positive = 5
    check_problems: Positive = 32
    target: tuple[Share, Share] = (0.2, 0.6)


class RlSpec(Table):
    """One GRPO step (arXiv 2402.03300) and its variants. A named loss is what its paper says (`PRESETS`) unless a key
    says otherwise."""

    loss: Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"] = "grpo"
    advantage: Literal["auto", "grpo", "dr_grpo", "rloo", "reinforce_pp"] = "auto"
    normaliser: Literal["auto", "sample", "drawn", "token", "task_token", "constant"] = "auto"
    """What a sample's tokens weigh: 1 over the samples that are trained on (so a step with one group that has signal
    moves the weights as much as one with eight), over all samples drawn ("drawn"), over tokens, or over a constant."""
    group_size: Annotated[int, Field(ge=2, le=MAX_INT, strict=True)] = 8
    problems_per_step: Positive = 8
    temperature: PositiveFloat = 1.0
    lr: PositiveFloat = 1e-5
    lr_warmup_steps: Count = 2
    weight_decay: NonNegative = 0.0
    max_grad_norm: PositiveFloat = 1.0
    eps_low: PositiveFloat | None = None
    eps_high: PositiveFloat | None = None
    """The ratio is clipped to 1 - eps_low and 1 + eps_high. Without a number, those of the loss's paper."""
    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """What ratios are measured from. In bf16 sampler and trainer differ by rounding, which GSPO's published bounds take
    for a change of policy: they clip about half of all tokens at the first update. "trainer" computes the log-probs
    again before the update, for one more forward pass."""
    kl_beta: NonNegative = 0.0
    update: Update = "step"
    minibatches: Positive = 1
    """Optimiser steps per batch of samples; above 1 the later ones are off-policy and clipped. Doesn't count where
    `update` is "task"."""
    refill_rounds: Count = 1
    """How often zero-variance groups are replaced by fresh problems of the same task within a step."""
    refill_most: Positive = 1
    """Problems drawn for one that is replaced: as many as it lately took to find one with signal, at most this many
    (arXiv 2602.05547). Both at 8 keep the trained mix at the asked one; both at 1 are cheap."""
    kl_every: Count = 4
    """Measure the KL to the start every so many steps (0: never). It costs one extra forward pass."""
    score_deadline_s: PositiveFloat = 1800.0
    """What isn't scored so long after the last sample of a step is an error."""
    max_error_rate: Share = 0.2
    """Stop when more than this share of a step's scores are errors."""

    @property
    def preset(self) -> Preset:
        """What the loss was published with."""
        return PRESETS[self.loss]


class EvalSpec(Table):
    """How accuracy is measured: the mean score of `samples` answers to each problem."""

    validation_problems: Positive = 48
    test_problems: Positive = 96
    samples: Positive = 2
    temperature: NonNegative = 1.0
    top_k: Count = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Filters of the distribution; 0, 1 and 0 filter nothing. Training draws without: its ratios compare whole
    distributions."""
    keep_samples: Positive = 4
    """Rollouts per task written to samples.jsonl at each evaluation."""

    @property
    def sampling(self) -> SamplingParams:
        """How answers are drawn in evaluations."""
        return SamplingParams(self.samples, self.temperature, self.top_k, self.top_p, self.min_p)
