"""A policy that trains with one engine and samples with another.

Weights go to the sampler when something is to be sampled, not before. Their version counts the changes of weights in
this process; the sampler says which version it holds, and samples bear it."""

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.errors import UserError
from omni_thinker.protocol import Loss, LossReport, OnGroup, OptimParams, OptimReport, Policy, TrainBatch
from omni_thinker.types import Chat, Group, SampleRequest, SamplingParams

_log = logging.getLogger(__name__)
_VERSIONS = count(1)
"""One count for all policies of a process: they may take turns in one sampler."""
_EXTRAS = (
    *("ask", "gold", "follow", "logprobs", "entropies", "sketch_gradient", "export_adapter", "decode"),
    *("spec", "chat", "tokenizer", "think_form", "stop_ids", "model"),
)
"""What a trainer may have beyond the protocol; a split policy has it where its trainer does."""


class Publisher(Protocol):
    """What a sampler asks of a trainer: the weights of now, in a folder."""

    def export(self, path: Path) -> None: ...

    def export_adapter(self, path: Path) -> None: ...


class Sampler(Protocol):
    """Draws answers with weights that it is given."""

    def version(self) -> int:
        """The version of the weights that it holds, as it knows from these; 0 where it was given none."""

    def update(self, trainer: Publisher, version: int) -> None:
        """Take the trainer's weights, and call them `version`."""

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        """As `Policy.sample`; every sample bears the version of the weights that drew it."""


class SplitPolicy:
    """Implements the Policy protocol: `sample` is the sampler's, all else the trainer's."""

    def __init__(self, trainer: Policy, sampler: Sampler, *, allow_stale: bool = False) -> None:
        """`allow_stale`: warn where samples are older than the weights, in place of an error."""
        self.trainer, self.sampler, self._allow_stale = trainer, sampler, allow_stale
        self.version = next(_VERSIONS)
        self._sampled_at = 0
        """The trainer's version when something was last sampled. Minibatches after the first differ from it by design:
        their ratios are clipped."""
        for name in _EXTRAS:
            if hasattr(trainer, name):
                setattr(self, name, getattr(trainer, name))

    @property
    def samples_elsewhere(self) -> bool:
        """Always: log-probs of sampler and trainer differ by more than one engine's rounding."""
        return True

    def encode_prompt(self, chat: str | Chat) -> tuple[int, ...]:
        return self.trainer.encode_prompt(chat)

    def encode_answer(self, text: str) -> tuple[int, ...]:
        return self.trainer.encode_answer(text)

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        """Raises UserError where the sampler's weights aren't the trainer's, before and after."""
        if not requests:
            return []
        if self.sampler.version() != self.version:
            trainer: Any = self.trainer
            self.sampler.update(trainer, self.version)
        self._check(self.sampler.version(), self.version, "the sampler holds weights")
        groups = self.sampler.sample(requests, params, on_group)
        self._check(self.sampler.version(), self.version, "while answers were drawn the sampler got weights")
        self._sampled_at = self.version
        return groups

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        """Raises UserError for samples of other weights than those that sampled last."""
        versions = {sample.version for group in batch for sample in group.samples} - {None}
        for version in versions:
            self._check(version or 0, self._sampled_at, "a sample was drawn with weights")
        return self.trainer.forward_backward(batch, loss, temperature=temperature, reference=reference)

    def _check(self, version: int, wanted: int, what: str) -> None:
        if version == wanted:
            return
        message = f"{what} of version {version}, not {wanted}"
        if not self._allow_stale:
            remedy = "start the engine again and go on with --resume, or set engine.vllm.allow_stale"
            raise UserError(f"{message}; {remedy}", key="engine.sampler")
        _log.warning(message)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        report = self.trainer.optim_step(optim)
        if report.applied:
            self.version = next(_VERSIONS)
        return report

    def reset_optimizer(self) -> None:
        self.trainer.reset_optimizer()

    def mark_start(self) -> None:
        self.trainer.mark_start()

    def save_weights(self, path: Path) -> None:
        self.trainer.save_weights(path)

    def load_weights(self, path: Path) -> None:
        self.version = next(_VERSIONS)
        self.trainer.load_weights(path)

    def save_state(self, path: Path) -> None:
        self.trainer.save_state(path)

    def load_state(self, path: Path) -> None:
        self.version = next(_VERSIONS)
        self.trainer.load_state(path)

    def export(self, path: Path) -> None:
        self.trainer.export(path)
