"""The Policy protocol: four primitives. Any trainer that has them can be driven."""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from omni_thinker.types import Chat, Group, Sample, SampleRequest, SamplingParams, TaskName, Thinking, ThoughtRule


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """The training data of one group: the samples that have a score, with one advantage and token weight each.

    `weights` multiply every token's loss of a sample; they are set over the whole batch, so the loss of a
    batch is a plain sum and cutting it into micro-batches changes nothing. Tokens that were written for the model
    (`Sample.forced`) are context alone: a loss never sees them.

    Ratios are measured from the samples' `logprobs`. Where these are the trainer's, `sampler_logprobs` are the
    sampler's, one tuple per sample, one number per token; else it is empty."""

    task: TaskName
    prompt: tuple[int, ...]
    samples: tuple[Sample, ...]
    advantages: tuple[float, ...]
    weights: tuple[float, ...]
    sampler_logprobs: tuple[tuple[float, ...], ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def drawn(self) -> int:
        """Tokens that a loss sees."""
        return sum(sample.drawn for sample in self.samples)

    @property
    def drawn_sampler_logprobs(self) -> list[float]:
        """`sampler_logprobs` of the tokens that a loss sees, flat."""
        pairs = zip(self.samples, self.sampler_logprobs, strict=False)
        return [x for sample, own in pairs for x, drawn in zip(own, sample.chosen, strict=True) if drawn]


TrainBatch = Sequence[TrainGroup]
OnGroup = Callable[[int, Group], None]
"""Told the place of a request and its finished group, on the thread that samples."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """One micro-batch as a loss sees it: N answer tokens, flat, samples one after another.

    `logprobs_N` carries the gradient; `old_logprobs_N` are what ratios are measured from; `reference_logprobs_N` the
    start model's, or None. `sample_N` numbers the sample that a token belongs to, from 0 to S - 1.
    `sampler_logprobs_N` are the sampler's where the old ones are the trainer's, else None: then the old ones are the
    sampler's. `entropy_N`: of the distributions that tokens are drawn from, with gradient; None where the policy
    doesn't know them."""

    logprobs_N: torch.Tensor
    old_logprobs_N: torch.Tensor
    reference_logprobs_N: torch.Tensor | None
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    sample_N: torch.Tensor
    sampler_logprobs_N: torch.Tensor | None = None
    entropy_N: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss (a scalar with gradient) and which tokens were clipped (bool, N).

    `importance_N`: the importance weights between sampler and trainer, and `cut_N` (bool) which of them were outside
    their bounds; None where the loss has none. `off_policy_N` (bool): tokens of samples that were left out because
    their sampler was too far from the policy; None where none may be."""

    loss: torch.Tensor
    clipped_N: torch.Tensor
    importance_N: torch.Tensor | None = None
    cut_N: torch.Tensor | None = None
    off_policy_N: torch.Tensor | None = None


Loss = Callable[[TokenBatch], LossTerms]

LossKind = Literal["clipped_ratio", "sequence_ratio", "clipped_weight", "likelihood"]


@dataclass(frozen=True, slots=True)
class LossForm:
    """Which function a loss is, for engines that compute losses of their own.

    `kind`: a ratio clipped for each token, the same for a whole sample, a clipped ratio as a constant weight, or
    weighted log-likelihood. Bounds of a ratio are 1 - `eps_low` and 1 + `eps_high`."""

    kind: LossKind
    eps_low: float = 0.0
    eps_high: float = 0.0
    kl_beta: float = 0.0


@runtime_checkable
class HasForm(Protocol):
    """A loss that says which function it is."""

    @property
    def form(self) -> LossForm: ...

    def __call__(self, batch: TokenBatch) -> LossTerms: ...


@dataclass(frozen=True, slots=True)
class FormedLoss:
    """A loss that says which function it is."""

    form: LossForm
    function: Loss

    def __call__(self, batch: TokenBatch) -> LossTerms:
        return self.function(batch)


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Sums over the answer tokens of one task."""

    tokens: int = 0
    entropy: float = 0.0
    clipped: float = 0.0
    mismatch: float = 0.0
    kl: float = 0.0
    kl_tokens: int = 0
    importance: float = 0.0
    cut: float = 0.0
    weighed: int = 0
    """Tokens that have an importance weight."""
    off_policy: float = 0.0
    screened: int = 0
    """Tokens of samples that might have been left out as off-policy."""

    def __add__(self, other: "TokenStats") -> "TokenStats":
        return TokenStats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class LossReport:
    """What one forward_backward saw. `tokens_computed` counts prompts too, as laid out. `sketches`: of each task's
    gradient, in numbers whose inner products are about the gradients'; empty where the policy has none."""

    loss: float
    tokens_computed: int
    stats: dict[TaskName, TokenStats] = field(default_factory=dict)
    sketches: dict[TaskName, torch.Tensor] = field(default_factory=dict)

    def __add__(self, other: "LossReport") -> "LossReport":
        """Of two calls whose gradients add up."""
        stats, sketches = dict(self.stats), dict(self.sketches)
        for task, of_task in other.stats.items():
            stats[task] = stats[task] + of_task if task in stats else of_task
        for task, sketch in other.sketches.items():
            sketches[task] = sketches[task] + sketch if task in sketches else sketch
        computed = self.tokens_computed + other.tokens_computed
        return LossReport(self.loss + other.loss, computed, stats, sketches)


@dataclass(frozen=True, slots=True)
class OptimParams:
    lr: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class OptimReport:
    """`grad_norm` before clipping. `applied` is False where it wasn't finite and the update was skipped."""

    grad_norm: float
    applied: bool


class Policy(Protocol):
    """The model that is trained. Whatever has these methods can be driven by a study (`model.policy` in a recipe)."""

    def encode_prompt(self, chat: str | Chat) -> tuple[int, ...]:
        """Tokens of a chat up to where the answer begins. A text is all that the user says. A `Chat` comes from tasks
        with a system text or earlier turns of their own, and from no others."""

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer and what ends it."""

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        """One group per request, in order. `on_group` is told each group as soon as it is finished, in any order."""

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        """Add the gradient of `loss` over `batch`.

        `temperature`: at which the samples were drawn, so that ratios compare like with like. `reference`: give the
        loss the start model's log-probs too."""

    def optim_step(self, optim: OptimParams) -> OptimReport:
        """Apply and clear the gradient."""

    def reset_optimizer(self) -> None:
        """Forget what the optimiser remembers, as at a stage's boundary."""

    def mark_start(self) -> None:
        """The weights of now are what `reference` means from here on."""

    def save_weights(self, path: Path) -> None:
        """All that `load_weights` needs, without the optimiser's memory; safetensors."""

    def load_weights(self, path: Path) -> None:
        """Weights that `save_weights` wrote, with a fresh optimiser."""

    def save_state(self, path: Path) -> None:
        """Weights and the optimiser's memory."""

    def load_state(self, path: Path) -> None:
        """Load what `save_state` wrote: training resumes as if it had never stopped."""

    def export(self, path: Path) -> None:
        """Write a Hugging Face model folder."""


@runtime_checkable
class Thinks(Protocol):
    """A policy whose model may think before it answers, or whose gold answers depend on the prompt."""

    def ask(self, chat: str | Chat, thinking: Thinking) -> tuple[tuple[int, ...], ThoughtRule | None]:
        """The tokens of `encode_prompt`, with thoughts turned off where `thinking` says so, and how thoughts are told
        from the answer; None where the model knows none."""

    def gold(self, chat: str | Chat, answer: str, thinking: Thinking) -> tuple[tuple[int, ...], Sample]:
        """The prompt of `ask`, and a sample that is this answer; an empty block before it is forced."""


@runtime_checkable
class Converses(Protocol):
    """A policy whose model can be spoken to again after it answered, as tasks with turns do."""

    def follow(self, answer: Sample, words: str, thinking: Thinking) -> tuple[tuple[int, ...], ThoughtRule | None]:
        """The tokens from the end of a sampled answer to where the next one begins: the marks of the chat template,
        with `words` as the user's. And how the next answer's thoughts are told from it, as `Thinks.ask`. The sampled
        tokens stay as they are."""


@runtime_checkable
class ScoresTokens(Protocol):
    """A policy that can say what its trainer makes of tokens that its sampler drew."""

    def logprobs(
        self, groups: Sequence[TrainGroup], *, temperature: float = 1.0, reference: bool = False
    ) -> torch.Tensor:
        """Log-probs of the answer tokens of `groups`, flat, sample by sample; under the start where `reference`."""


@runtime_checkable
class SeesEntropy(Protocol):
    """A policy that can say how sure it is of each token, before it is trained on."""

    def entropies(self, groups: Sequence[TrainGroup], *, temperature: float = 1.0) -> torch.Tensor:
        """Entropies in nats of the distributions that the answer tokens of `groups` are drawn from, flat, sample by
        sample."""


@runtime_checkable
class SamplesElsewhere(Protocol):
    """A policy that may draw its samples by another engine than it trains with, so that their log-probs differ by more
    than one engine's rounding."""

    @property
    def samples_elsewhere(self) -> bool:
        """Whether it does. Importance weights and the bound of the mismatch are then on by default."""


@runtime_checkable
class TakesCores(Protocol):
    """A policy that may sample with this machine's cores."""

    @property
    def takes_cores(self) -> bool:
        """Whether it does: a program that runs beside it then costs more than one that runs after it."""


@runtime_checkable
class SketchesGradients(Protocol):
    """A policy that gradient probes can ask."""

    def sketch_gradient(self, seed: int) -> torch.Tensor:
        """The gradient and the optimiser's direction as [2, dimensions] numbers whose inner products are about
        theirs; clears the gradient."""


@runtime_checkable
class ExportsAdapters(Protocol):
    """A policy whose LoRA factors can be written by themselves."""

    def export_adapter(self, path: Path) -> None:
        """Write a folder that peft loads."""
