"""Try the ways of sampling and training of one model, and choose."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.checkpointing import can_checkpoint
from omni_thinker.engine.logprobs import Layout, layouts
from omni_thinker.errors import UserError
from omni_thinker.models.memory import is_out_of_memory
from omni_thinker.models.quiet import quiet
from omni_thinker.policy.proof.lengths import counts_slots
from omni_thinker.policy.proof.made_up import made_up
from omni_thinker.policy.proof.trials import (
    decoder_logprobs,
    gradient,
    layout_logprobs,
    reference,
    sequence_logprobs,
    spread_adapters,
)
from omni_thinker.sampling.loop import DECODERS, decoders

EXACT_NATS = 1e-4
"""Worst difference of a token in fp32. Sums in another order come to 1e-6 to 3e-5, and the least error of a mask, a
position or a cache that was met to 1e-3."""
ROUNDED_NATS = 0.25
"""Worst mean over a made-up batch in bf16, whose rounding alone comes to 0.04 to 0.07 for tokens as improbable as
random ones are. A worst token would tell less: a router that chooses another expert is rounding, too."""
COPIED_PARAMETERS = 400_000_000
"""Models of up to so many parameters are tried in fp32, on a copy (1.6 GB), and then once more as they are."""
_GRADIENT = 1e-2
"""Relative difference of a gradient with and without checkpointing, in fp32."""
_CHANGED, _CUT = 7, 11
"""Tokens at the end of a sequence that are changed, and cut off, to see whether earlier ones mind."""
_NAMES = {
    "written-out": "the written-out pass",
    "packed": "packed rows",
    "padded": "padded rows",
    "single": "single rows",
    "native": "the native decoder",
    "fused": "the fused decoder",
    "static": "the static decoder",
    "masked": "the masked decoder",
    "rows": "rows with a cache",
    "placed-rows": "rows with a cache and positions",
    "recomputing": "rows without a cache",
}


@dataclass(frozen=True, slots=True)
class Paths:
    """How a model is sampled and trained. `notes`: what was tried before, and why it isn't used."""

    layout: Layout
    decoder: str
    recompute: bool
    notes: tuple[str, ...] = ()

    def words(self) -> str:
        """One line for people."""
        used = f"training in {_NAMES[self.layout]}, sampling by {_NAMES[self.decoder]}"
        return f"{used}; not the model's own forward pass: {', '.join(self.notes)}" if self.notes else used

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout) or self.decoder not in DECODERS:
            raise ValueError(f"no such path: {self.layout}, {self.decoder}")


def prove(model: PreTrainedModel, *, longest: int, recompute: bool = False) -> Paths:
    """Choose the fastest layout and decoder that compute what the model's own forward pass does for each sequence by
    itself, tried on sequences of up to `longest` tokens. `recompute`: activation checkpointing is wanted.

    Raises UserError where the model can't be trained token by token at all."""
    with quiet(), spread_adapters(model), _in_eval(model):
        return _Proof(model, longest).paths(recompute)


class _Proof:
    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        self.model = model
        self.groups = made_up(model.config, longest)
        self.exact = _exact(model)
        self.tight = not _rounded(self.exact)
        self.notes: list[str] = []
        try:
            self.truth = reference(self.exact, self.groups)
        except Exception as exc:
            # Some layers return more than a tensor, such as routers, and then no adapter can be put around them.
            remedy = "; name other layers in model.lora.targets" if hasattr(model, "peft_config") else ""
            raise _refused(f"its forward pass fails on a plain row of tokens ({_short(exc)}){remedy}", exc) from exc
        if not bool(torch.isfinite(self.truth.longest_T).all()):
            raise _refused("its log-probs of a plain row of tokens aren't finite")

    def paths(self, recompute: bool) -> Paths:
        try:
            self._check_definition()
        except Exception as exc:
            if isinstance(exc, UserError):
                raise
            raise _refused(f"its forward pass fails on a plain row of tokens ({_short(exc)})", exc) from exc
        shared = not counts_slots(self.model.config)
        layout = self._first([x for x in layouts(self.model) if shared or x != "packed"], self._by_layout)
        decoder = self._first([x for x in decoders(self.model) if shared or x != "masked"], self._by_decoder)
        if layout is None or decoder is None:
            raise _refused(f"no way to run it agrees with its own forward pass: {', '.join(self.notes)}")
        layout, recompute = self._differentiable(layout, recompute)
        return Paths(layout, decoder, recompute, tuple(self.notes))

    def _check_definition(self) -> None:
        """A plain pass gives the same log-probs twice, whatever comes later in the sequence."""
        tokens = [*self.groups[0].prompt, *self.groups[0].samples[0].tokens]
        kept, short = (max(2, len(tokens) - count) for count in (_CHANGED, _CUT))
        changed = tokens[:kept] + tokens[: len(tokens) - kept][::-1]
        # What comes after the last token that is left as it was is still told from what it was.
        for row, same in ((changed, kept), (tokens[:short], short)):
            if wrong := self._wrong(self._sequence(row, tokens[1 : same + 1]), self.truth.longest_T[:same]):
                if twice := self._wrong(self._sequence(tokens, tokens[1:]), self.truth.longest_T):
                    raise _refused(f"two passes over the same tokens differ {twice}")
                raise _refused(f"later tokens change the log-probs of earlier ones {wrong}, so it isn't causal")

    def _sequence(self, tokens: Sequence[int], targets: Sequence[int]) -> torch.Tensor:
        return sequence_logprobs(self.exact, tokens, targets, self.truth.temperature)

    def _first(self, names: Sequence[Any], compute: Callable[[PreTrainedModel, Any], torch.Tensor]) -> Any:
        """The first of the paths that agrees with the reference."""
        for name in names:
            if (why := self._fault(name, compute)) is None:
                return name
            self.notes.append(f"{_NAMES[name]} ({why})")
        return None

    def _fault(self, name: str, compute: Callable[[PreTrainedModel, Any], torch.Tensor]) -> str | None:
        # The decoder in C knows bf16 alone, and kernels for a GPU are compiled for each dtype. What agrees in fp32
        # elsewhere must run as the model is, too.
        own = name == "native" or (self.model.device.type == "cuda" and name in ("written-out", "static"))
        exact_first = not own and self.exact is not self.model
        for model in [self.exact, self.model] if exact_first else [self.model]:
            try:
                found = compute(model, name)
            except Exception as exc:
                if is_out_of_memory(exc):
                    raise
                return f"fails: {_short(exc)}"
            if wrong := self._wrong(found, self.truth.logprobs_N, exact=model is self.exact):
                return f"off {wrong}"
        return None

    def _by_layout(self, model: PreTrainedModel, name: Layout) -> torch.Tensor:
        return layout_logprobs(model, self.groups, self.truth.temperature, name)

    def _by_decoder(self, model: PreTrainedModel, name: str) -> torch.Tensor:
        return decoder_logprobs(model, self.groups, self.truth.temperature, DECODERS[name])

    def _wrong(self, found: torch.Tensor, truth: torch.Tensor, *, exact: bool = True) -> str | None:
        """By how much, where that is too much."""
        difference = (found.float() - truth).abs()
        if exact and self.tight:
            worst, bound = float(difference.max()), EXACT_NATS
        else:
            worst, bound = float(difference.mean()), ROUNDED_NATS
        return None if worst <= bound else f"by {worst:.2g} nats"

    def _differentiable(self, layout: Layout, recompute: bool) -> tuple[Layout, bool]:
        """Checks the gradient through a layout; checkpointing is dropped where it changes it."""
        arguments = (self.model, self.groups[1:], self.truth.temperature, layout)
        try:
            plain = gradient(*arguments, recompute=False)
        except Exception as exc:
            if is_out_of_memory(exc):
                raise
            raise _refused(f"its backward pass fails ({_short(exc)})", exc) from exc
        if not bool(torch.isfinite(plain).all()):
            raise _refused("its gradient isn't finite")
        if not recompute or layout == "written-out" or not can_checkpoint(self.model):
            return layout, recompute
        try:
            again = gradient(*arguments, recompute=True)
            wrong = float((again - plain).norm() / plain.norm().clamp(min=1e-30))
            allowed = _GRADIENT if plain.dtype == torch.float32 else 10 * _GRADIENT
            why = None if wrong <= allowed else f"gradient off by {100 * wrong:.2g} %"
        except Exception as exc:
            if is_out_of_memory(exc):
                raise
            why = f"fails: {_short(exc)}"
        if why is not None:
            self.notes.append(f"activation checkpointing ({why})")
        return layout, why is None


@contextmanager
def _in_eval(model: PreTrainedModel) -> Iterator[None]:
    """As training and sampling have it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model in fp32, where it is small enough to be copied; else the model."""
    quantised = getattr(model.config, "quantization_config", None) is not None
    if quantised or not _rounded(model) or sum(p.numel() for p in model.parameters()) > COPIED_PARAMETERS:
        return model
    exact: PreTrainedModel = copy.deepcopy(model).float()
    return exact


def _rounded(model: PreTrainedModel) -> bool:
    """Whether some of it is computed in 16 bits or fewer."""
    return any(p.dtype != torch.float32 for p in model.parameters())


def _refused(why: str, cause: Exception | None = None) -> UserError:
    if cause is not None and is_out_of_memory(cause):
        return UserError("there is no memory for a short pass through the model", key="model.name")
    return UserError(f"this model can't be trained: {why}", key="model.name")


def _short(exc: Exception) -> str:
    """An error of a library in a few words."""
    lines = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {lines[0][:120]}" if lines else type(exc).__name__
