"""The tables `[warmup]`, `[rl]` and `[evaluation]` of a recipe. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from omni_thinker.errors import UserError
from omni_thinker.recipe.types import MAX_INT, Count, NonNegative, Positive, PositiveFloat, Share, Table
from omni_thinker.types import SamplingParams

Update = Literal["step", "task"]
"""What one update of the weights is made of: all of a step, or one task of it after another, in random order (CGPO,
arXiv 2409.20370)."""

LossName = Literal["grpo", "dapo", "dr_grpo", "gspo", "cispo"]
Advantage = Literal["auto", "grpo", "dr_grpo", "rloo", "reinforce_pp", "gdpo", "rank", "preference"]
Truncated = Literal["keep", "mask"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
"""Linear and cosine: arXiv 1608.03983 without restarts; WSD, warm-up, stable, decay: 2404.06395."""
Delta = Annotated[float, Field(gt=1.0, strict=True)]
TopShare = Annotated[float, Field(gt=0.0, le=1.0, strict=True)]
GroupSize = Annotated[int, Field(ge=2, le=MAX_INT, strict=True)]
Importance = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
IMPORTANCE_CAP = 2.0
"""`importance_cap` where sampler and trainer are different engines; verl's default too."""
MAX_MISMATCH = 0.2
"""`max_mismatch` there, in nats: six times the most that a step's bf16 rounding was seen to make in one engine
(docs/performance.md)."""


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


LOSS_KEYS = (
    "loss", "temperature", "eps_low", "eps_high", "delta", "importance_cap", "importance", "importance_floor",
    "kl_beta", "kl_unbiased", "off_policy_kl", "entropy_beta", "top_entropy",
)  # fmt: skip
"""Keys of `[rl]` that one loss has one value of."""


class WarmupSpec(Table):
    """Supervised steps on gold answers of the train split, until each task scores within `target`."""

    steps: Count = 40
    """Most steps; 0: no warm-up."""
    batch: Positive = 16
    """Gold answers per step, of all tasks together."""
    lr: PositiveFloat = 3e-5
    """Learning rate, reached within three steps."""
    check_every: Positive = 5
    """Steps between two checks on validation."""
    check_problems: Positive = 32
    """Validation problems of each task in a check."""
    target: tuple[Share, Share] = (0.2, 0.6)
    """The lowest and the highest score that a task should begin RL with."""


class RlSpec(Table):
    """One GRPO step (arXiv 2402.03300) and its variants. A named loss is what its paper says (`PRESETS`) unless a key
    says otherwise."""

    loss: LossName = "grpo"
    """A published loss (docs/training.md)."""
    advantage: Advantage = "auto"
    """How a group's scores become advantages; `auto`: as the loss's paper has it."""
    normaliser: Literal["auto", "sample", "drawn", "token", "task_token", "constant"] = "auto"
    """What a sample's tokens weigh: 1 over the samples that are trained on (so a step with one group that has signal
    moves the weights as much as one with eight), over all samples drawn ("drawn"), over tokens, or over a constant."""
    group_size: GroupSize = 8
    """Answers to each problem."""
    problems_per_step: Positive = 8
    """Problems of a step, of all its tasks together."""
    temperature: PositiveFloat = 1.0
    """Of the answers that are trained on."""
    lr: PositiveFloat = 1e-5
    """Learning rate, the highest of a schedule."""
    lr_warmup_steps: Count = 2
    """Steps over which an arm's learning rate rises to `lr`."""
    lr_schedule: Schedule = "constant"
    """What the learning rate does after that, over all steps of an arm whatever its stages: stay, fall in a line, fall
    as half a cosine, or stay and fall at the end (WSD)."""
    lr_min: Share = 0.0
    """What it falls to, as a share of `lr`."""
    lr_decay: TopShare = 0.1
    """Share of an arm's steps, the last ones, over which `wsd` falls in a line."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Longer gradients are scaled down to this norm."""
    eps_low: PositiveFloat | None = None
    """The ratio is clipped to 1 - eps_low and above; none: as the loss's paper has it."""
    eps_high: PositiveFloat | None = None
    """The ratio is clipped to 1 + eps_high and below; none: as the loss's paper has it."""
    delta: Delta | None = None
    """Most that a ratio counts where the advantage is negative, which the clip leaves without a bound; above
    1 + eps_high. None: no bound. `cispo` doesn't use it."""
    old_logprobs: Literal["sampler", "trainer"] = "sampler"
    """What ratios are measured from. In bf16 sampler and trainer differ by rounding, which GSPO's published bounds take
    for a change of policy: they clip about half of all tokens at the first update. "trainer" computes the log-probs
    again before the update, for one more forward pass."""
    importance_cap: NonNegative | None = None
    """Most that a token weighs because the trainer finds it likelier than the sampler did (truncated importance
    weights); ratios are then the trainer's own. 0: off. None: 2 where sampler and trainer are different engines, else
    off."""
    importance: Importance = "token_truncate"
    """What becomes of importance weights outside their bounds, those of tokens or of whole samples: cut to the bound,
    or set to 0."""
    importance_floor: NonNegative = 0.0
    """Least importance weight; 0: none."""
    max_mismatch: PositiveFloat | None = None
    """Stop when log-probs of sampler and trainer differ by more than this on average, in nats, before a step's first
    update. None: 0.2 where they are different engines, else no bound."""
    kl_beta: NonNegative = 0.0
    """Weight of the KL to the start in the loss."""
    kl_unbiased: StrictBool = False
    """Weigh the KL of a token by its ratio: unbiased off-policy too, and so is its gradient."""
    off_policy_kl: PositiveFloat | None = None
    """Leave out samples with a negative advantage whose sampler is this far from the policy, in nats a token on
    average. None: never."""
    entropy_beta: NonNegative = 0.0
    """Weight of the entropy in the loss: a bonus that keeps answers diverse."""
    top_entropy: TopShare = 1.0
    """Train this share of each task's tokens alone, those of the highest entropy. Below 1 it costs one more forward
    pass."""
    truncated: Truncated = "keep"
    """Answers that were cut at the token limit are trained on as they are scored, or not at all; they count in their
    group's baseline either way."""
    overlong_buffer: Count = 0
    """Tokens before the token limit over which an answer loses up to `overlong_penalty` of its reward; 0: none. Scores
    in reports stay as they are."""
    overlong_penalty: PositiveFloat = 1.0
    """What an answer at the token limit loses."""
    update: Update = "step"
    """One update for all of a step, or one for each of its tasks in random order."""
    balance: Literal["none", "tokens", "gradient"] = "none"
    """Hold each task's part in an update at its share of the groups that were asked for: by the weights of its tokens,
    or by the norm of its gradient, as lately measured."""
    minibatches: Positive = 1
    """Optimiser steps per batch of samples; above 1 the later ones are off-policy and clipped. Doesn't count where
    `update` is "task"."""
    epochs: Positive = 1
    """Passes over the batches of a step, each with its updates (PPO, arXiv 1707.06347)."""
    accumulate: Positive = 1
    """Calls of the trainer that the gradient of an update is added up over, each with its part of the groups. It
    changes nothing but rounding; the torch trainer cuts what it is given to its memory anyway."""
    refill_rounds: Count = 1
    """How often zero-variance groups are replaced by fresh problems of the same task within a step."""
    refill_most: Positive = 1
    """Problems drawn for one that is replaced: as many as it lately took to find one with signal, at most this many
    (arXiv 2602.05547). Both at 8 keep the trained mix at the asked one; both at 1 are cheap."""
    evaluate_every: Count = 0
    """Steps between two interim validations of an arm, on the same problems with the same draws each time; 0: none."""
    evaluate_problems: Count = 0
    """Validation problems of each task in these, with one answer each; 0: as many as `evaluate_share` allows."""
    evaluate_share: TopShare = 0.1
    """Most answers that interim validations may draw, as a share of those that training asks for."""
    keep: Literal["last", "best"] = "last"
    """Which weights of an arm are tested: the last, or those of the interim validation with the highest mean, which is
    a choice on validation."""
    patience: Count = 0
    """An arm ends after so many interim validations in a row without a rise beyond its standard error; 0: never."""
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

    def of_task(self, own: "TaskRlSpec") -> "RlSpec":
        """The same with what a task has of its own."""
        return self.model_copy(update=own.model_dump(exclude_none=True))

    @property
    def clip(self) -> tuple[float, float]:
        """eps_low and eps_high: the recipe's own, else the published ones."""
        low, high = self.eps_low, self.eps_high
        return self.preset.eps_low if low is None else low, self.preset.eps_high if high is None else high

    def decay_steps(self, steps: int) -> int:
        """Steps over which the schedule `wsd` falls, of `steps` in all; at least 1."""
        return max(1, round(self.lr_decay * steps))

    @property
    def estimator(self) -> str:
        """How advantages are estimated."""
        return self.preset.advantage if self.advantage == "auto" else self.advantage

    @property
    def loss_settings(self) -> tuple[object, ...]:
        """All that a loss and its log-probs depend on: tasks that have the same can share a pass."""
        return tuple(getattr(self, key) for key in LOSS_KEYS)

    def between(self, different_engines: bool) -> "RlSpec":
        """The same with what is none by default set, by whether sampler and trainer are different engines."""
        unset = {
            "importance_cap": (IMPORTANCE_CAP if different_engines else 0.0) if self.importance_cap is None else None,
            "max_mismatch": MAX_MISMATCH if different_engines and self.max_mismatch is None else None,
        }
        return self.model_copy(update={key: value for key, value in unset.items() if value is not None})


class TaskRlSpec(Table):
    """What one task has in place of the same keys of `[rl]`; none: what these say. The normaliser of token weights is
    that of `[rl]`, since it is over all tasks of a batch."""

    loss: LossName | None = None
    """Its loss, with that loss's published advantage and clip."""
    advantage: Advantage | None = None
    """How a group's scores become advantages."""
    group_size: GroupSize | None = None
    """Answers to each problem."""
    temperature: PositiveFloat | None = None
    """Of the answers that are trained on."""
    eps_low: PositiveFloat | None = None
    """The ratio is clipped to 1 - eps_low and above."""
    eps_high: PositiveFloat | None = None
    """The ratio is clipped to 1 + eps_high and below."""
    delta: Delta | None = None
    """Most that a ratio counts where the advantage is negative."""
    importance_cap: NonNegative | None = None
    """Most that a token weighs between sampler and trainer; 0: off."""
    importance: Importance | None = None
    """What becomes of importance weights outside their bounds."""
    importance_floor: NonNegative | None = None
    """Least importance weight; 0: none."""
    kl_beta: NonNegative | None = None
    """Weight of the KL to the start."""
    kl_unbiased: StrictBool | None = None
    """Weigh the KL of a token by its ratio."""
    off_policy_kl: PositiveFloat | None = None
    """Leave out samples with a negative advantage that are this far off-policy, in nats a token."""
    entropy_beta: NonNegative | None = None
    """Weight of the entropy in the loss."""
    top_entropy: TopShare | None = None
    """Train this share of its tokens alone, those of the highest entropy."""
    truncated: Truncated | None = None
    """Whether answers that were cut at the token limit are trained on."""
    overlong_buffer: Count | None = None
    """Tokens before its token limit over which an answer loses reward; 0: none."""
    overlong_penalty: PositiveFloat | None = None
    """What an answer at its token limit loses."""


class EvalSpec(Table):
    """How accuracy is measured: the mean score of `samples` answers to each problem."""

    validation_problems: Positive = 48
    """Validation problems of each task."""
    test_problems: Positive = 96
    """Test problems of each task."""
    samples: Positive = 2
    """Answers to each problem."""
    temperature: NonNegative = 1.0
    """Of the answers; 0: the likeliest token each time."""
    top_k: Count = 0
    """Keep only so many of the likeliest tokens; 0: all. Training draws from all tokens: its ratios compare whole
    distributions."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the likeliest tokens up to this probability in all; 1: all."""
    min_p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Keep the tokens that are at least this likely, in multiples of the likeliest; 0: all."""
    pass_at: tuple[Positive, ...] = ()
    """Report pass@k for each of these k, at most `samples`: the chance that the best of k answers is right."""
    majority_at: tuple[Positive, ...] = ()
    """Report majority@k for each of these k, at most `samples`: the score of the answer that most of k answers give."""
    greedy: StrictBool = False
    """Report the score of the likeliest answer too, which is one answer more to each test problem."""
    keep_samples: Positive = 4
    """Rollouts per task written to samples.jsonl at each evaluation."""

    @property
    def sampling(self) -> SamplingParams:
        """How answers are drawn in evaluations."""
        return SamplingParams(self.samples, self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def sampling_greedy(self) -> SamplingParams:
        """How the likeliest answer is drawn."""
        return SamplingParams(group_size=1, temperature=0.0)


def check_evaluation(spec: EvalSpec) -> None:
    """Raises UserError for measures of more answers than are sampled, and for one that is named twice."""
    for key, sizes in (("pass_at", spec.pass_at), ("majority_at", spec.majority_at)):
        if len(set(sizes)) < len(sizes):
            raise UserError("names one of them twice", key=f"evaluation.{key}")
        if sizes and max(sizes) > spec.samples:
            said = f"asks for {max(sizes)} answers to a problem, but evaluation.samples is {spec.samples}"
            raise UserError(said, key=f"evaluation.{key}")


def check_rl(rl: RlSpec, table: str = "rl") -> None:
    """Raises UserError for keys that don't go together; `table`: where they stand."""
    high = rl.clip[1]
    if rl.delta is not None and rl.delta <= 1 + high:
        raise UserError(f"must be above 1 + eps_high = {1 + high:g}, got {rl.delta:g}", key=f"{table}.delta")
    if rl.importance_cap and rl.importance_floor >= rl.importance_cap:
        raise UserError("must be below importance_cap", key=f"{table}.importance_floor")
