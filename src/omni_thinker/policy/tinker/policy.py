"""The policy at a training service: the four primitives, asked of it, and states that local files name."""

import logging
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from math import isclose, isfinite
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from omni_thinker.errors import UserError
from omni_thinker.models.chat import load_chat
from omni_thinker.models.load import resolve
from omni_thinker.policy.texts import Texts
from omni_thinker.policy.tinker.adapter import fetch_adapter
from omni_thinker.policy.tinker.answers import drawn, finished, scored
from omni_thinker.policy.tinker.checks import check_adapter
from omni_thinker.policy.tinker.losses import SCALES, Row, Scale, ServiceLoss, answer_tokens, rows, service_loss
from omni_thinker.policy.tinker.moments import FORGET, Moments
from omni_thinker.policy.tinker.scales import measure, norm_of
from omni_thinker.policy.tinker.service import Sampler, Service, Trainer
from omni_thinker.policy.tinker.states import State, read_state, write_state
from omni_thinker.policy.tokens import add_stats, drawn_alone, token_batch
from omni_thinker.protocol import (
    HasForm,
    Loss,
    LossForm,
    LossReport,
    OnGroup,
    OptimParams,
    OptimReport,
    TokenStats,
    TrainBatch,
    TrainGroup,
)
from omni_thinker.recipe import ModelSpec
from omni_thinker.recipe.engines.tinker import PREFIX, TinkerSpec, served_name
from omni_thinker.types import Group, SampleRequest, SamplingParams

_TOLERANCE = 1e-3
"""Relative: the service's own loss against ours on its log-probs."""
_MOST_REPEATS = 3
"""Of a request to sample, which changes nothing and may be asked again."""
_SEEDS = 2**31 - 2**16
"""A service's seeds are 32-bit, and it counts up from them within a group."""
_log = logging.getLogger(__name__)


class TinkerPolicy(Texts):
    """Implements the Policy protocol at a service with the Tinker API.

    One thread may use it. After an error of the service it is of no more use: what was asked may have happened."""

    def __init__(self, spec: ModelSpec, engine: TinkerSpec, *, folder: str | Path | None = None, seed: int = 0) -> None:
        """A new adapter at the service; `seed` draws its factors. Raises UserError where the service doesn't answer or
        has no such model, and for a `folder`: weights of this machine aren't at the service."""
        if folder is not None:
            raise UserError("a training service begins with models of its own, not with a folder", key="model.name")
        self.spec, self.engine = spec, engine
        self._name = served_name(spec.name)
        self._spoken = PREFIX + (engine.tokenizer or self._name)
        super().__init__(load_chat(spec, self._spoken))
        self._rank, self._seed = check_adapter(spec).rank, seed % _SEEDS
        self._service = Service(engine)
        self._base = self._served()
        self._trainer = self._new_trainer()
        self._spare: Trainer | None = None
        """A second adapter, which measures the scale, and is the start where that is asked for."""
        self._scale = self._find_scale()
        self._moments = Moments()
        self._held: State | None = None
        """The service's state that has the weights of now."""
        self._held_moments = False
        """Whether it has the moments of now too."""
        self._sampler: Sampler | None = None
        """Who draws from the weights of now."""
        self._start: State | None = None
        self._start_loaded = False
        self._pending = False
        """Whether there is a gradient at the service."""
        self._unclipped = False
        """Whether a gradient was longer than it should be, which is said once."""

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        """All requests are with the service at once. Groups are told as they come back."""
        if not requests:
            return []
        if params.min_p > 0 or any(one.thoughts is not None and one.thoughts.budget is not None for one in requests):
            raise UserError("a training service knows neither min_p nor budgets of thoughts", key="engine.trainer")
        if self._sampler is None:
            self._sampler = self._trainer.sampler()
        asked = {self._ask_for(request, params): place for place, request in enumerate(requests)}
        repeats = dict.fromkeys(range(len(requests)), 0)
        groups: dict[int, Group] = {}
        answered = monotonic()
        while asked:
            done, _ = wait(asked, timeout=self.engine.patience_s, return_when=FIRST_COMPLETED)
            if not done:
                raise self._service.lost("sample", TimeoutError())
            for future in done:
                place = asked.pop(future)
                if (exc := future.exception()) is not None:
                    repeats[place] += 1
                    if repeats[place] > _MOST_REPEATS or monotonic() - answered > self.engine.patience_s:
                        raise self._service.lost("sample", exc) from exc
                    asked[self._ask_for(requests[place], params)] = place
                    continue
                answered = monotonic()
                groups[place] = self._group(requests[place], future.result(), params.group_size)
                if on_group is not None:
                    on_group(place, groups[place])
        return [groups[place] for place in range(len(requests))]

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        if not isinstance(loss, HasForm):
            raise UserError("a training service computes losses that it knows, not any function", key="rl.loss")
        if temperature != 1.0:
            raise UserError("a training service computes log-probs at temperature 1", key="rl.temperature")
        if self._pending and self._scale.sequences:
            raise RuntimeError("this service divides by the sequences of a whole update: one batch for each step")
        asked = service_loss(loss.form)
        made = rows(batch, asked, self._scale)
        reference_N = self.logprobs(batch, reference=True) if reference else None
        output = self._trainer.forward_backward(made, asked)
        self._pending = True
        tokens = answer_tokens(made, scored(output, made))
        answers, reference_N = drawn_alone(batch, tokens, reference_N)
        seen = token_batch(batch, answers, reference_N)
        terms = loss(seen)
        self._compare(terms.loss.item(), made, output)
        stats: dict[str, TokenStats] = {}
        add_stats(stats, batch, seen, answers.entropy_N, terms)
        return LossReport(terms.loss.item(), tokens.computed, stats)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        """The norm is 0 where the service reports none."""
        norm = norm_of(self._trainer.optim_step(self._moments.step(optim))) or 0.0
        self._moments = self._moments.stepped()
        self._changed()
        if self._service.kind == "skyrl" and norm > optim.max_grad_norm and not self._unclipped:
            self._unclipped = True
            _log.warning("rl.max_grad_norm: the service doesn't clip gradients; this one has the norm %.3g", norm)
        if not isfinite(norm):  # unlike ours, the service has made the step
            raise UserError("the service made a step along a gradient that isn't finite; lower it", key="rl.lr")
        return OptimReport(norm, True)

    def reset_optimizer(self) -> None:
        if self._service.kind == "skyrl":
            self._forget()
        else:
            self._load(self._state("reset"), moments=False)

    @torch.no_grad()
    def logprobs(
        self, groups: Sequence[TrainGroup], *, temperature: float = 1.0, reference: bool = False
    ) -> torch.Tensor:
        if temperature != 1.0:
            raise UserError("a training service computes log-probs at temperature 1", key="rl.temperature")
        asked = service_loss(LossForm("likelihood"))
        made = rows(groups, ServiceLoss("importance_sampling"), Scale())
        plain = [Row(row.inputs, row.targets, {"weights": [1.0] * len(row.targets)}, row.answer) for row in made]
        trainer = self._starting() if reference else self._trainer
        return answer_tokens(plain, scored(trainer.forward(plain, asked), plain)).logprobs_N

    def mark_start(self) -> None:
        self._start, self._start_loaded = self._state("start"), False

    def save_weights(self, path: Path) -> None:
        """A file that names a state of the service. Moments may be in that, which `load_weights` leaves out."""
        write_state(self._state(_stem(path)), path)

    def load_weights(self, path: Path) -> None:
        self._load(read_state(path), moments=False)

    def save_state(self, path: Path) -> None:
        write_state(self._state(_stem(path), moments=True), path)

    def load_state(self, path: Path) -> None:
        self._load(read_state(path), moments=True)

    def export(self, path: Path) -> None:
        """Fetch the adapter as a folder that peft loads, with the tokenizer. Where the service gives none away, the
        folder names its state, and a line says so."""
        path.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(path)
        name = _unique("export")
        where = resolve(self._spoken)
        try:
            self._trainer.save_for_sampler(name)
            url = self._service.archive(self._trainer.model_id, name)
            fetch_adapter(url, path, str(where.absolute()) if isinstance(where, Path) else where)
        except UserError as exc:
            write_state(self._state("export"), path / "state.safetensors")
            _log.warning("%s: no adapter, only the name of the service's state: %s", path, exc.message)

    def export_adapter(self, path: Path) -> None:
        self.export(path)

    def _ask_for(self, request: SampleRequest, params: SamplingParams) -> "Future[Any]":
        if self._sampler is None:
            raise RuntimeError("there is no sampler")
        settings = {
            "max_tokens": request.longest,
            "seed": request.seed % _SEEDS,
            "stop": sorted(self.stop_ids),
            "temperature": params.temperature,
            "top_k": params.top_k or -1,
            "top_p": params.top_p,
        }
        return self._sampler.sample(request.prompt, params.group_size, settings)

    def _group(self, request: SampleRequest, reply: Any, count: int) -> Group:
        if end := self.chat.facts.stop_text:
            request = replace(request, stop=(*request.stop, end))
        samples = [
            finished(request, tokens, logprobs, self.stop_ids, self.decode) for tokens, logprobs in drawn(reply, count)
        ]
        return Group(tuple(request.prompt), tuple(samples))

    def _compare(self, ours: float, made: Sequence[Row], output: Any) -> None:
        """Raises UserError where the service's own loss isn't ours on its log-probs: something is mapped wrongly."""
        outputs = output.loss_fn_outputs
        if not all("elementwise_loss" in one for one in outputs):
            return
        theirs = sum(sum(one["elementwise_loss"].data) / row.divisor for one, row in zip(outputs, made, strict=True))
        if isfinite(ours) and not isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise UserError(f"the service's loss is {theirs:g}, ours {ours:g}", key="engine.tinker.loss_scale")

    def _served(self) -> str:
        """The model's name as the service lists it. Raises UserError where it has none such."""
        known = self._service.models()
        where = resolve(self._spoken)
        if (found := next((name for name in (self._name, str(where)) if name in known), None)) is None:
            listed = ", ".join(f"{name:.80}" for name in known[:8]) + (", ..." if len(known) > 8 else "") or "none"
            raise UserError(f"the service has no model {self._name!r}; it has {listed}", key="model.name")
        return found

    def _new_trainer(self) -> Trainer:
        trainer = self._service.trainer(self._base, self._rank, self._seed)
        weakref.finalize(self, self._service.give_back, trainer)
        return trainer

    def _spare_trainer(self) -> Trainer:
        if self._spare is None:
            self._spare = self._new_trainer()
        return self._spare

    def _find_scale(self) -> Scale:
        """As the recipe says; else measured where the service reports norms, as SkyRL's does; else a sum."""
        if self.engine.loss_scale != "auto":
            return SCALES[self.engine.loss_scale]
        found = measure(self._spare_trainer()) if self._service.kind == "skyrl" else None
        return found or SCALES["sum"]

    def _starting(self) -> Trainer:
        """The second adapter with the weights of the start."""
        if self._start is None:
            raise RuntimeError("mark_start() was not called")
        trainer = self._spare_trainer()
        if not self._start_loaded:
            trainer.load(self._start.path, moments=True)
            self._start_loaded = True
        return trainer

    def _state(self, name: str, *, moments: bool = False) -> State:
        """The weights of now at the service, with `moments` those of now too; saved there unless they are."""
        if self._held is None or (moments and not self._held_moments):
            self._held, self._held_moments = State(self._trainer.save(_unique(name)), self._moments), True
        return self._held

    def _load(self, state: State, *, moments: bool) -> None:
        self._drop_gradient()
        keeps = moments or self._service.kind == "skyrl"  # which has no other way: they are forgotten afterwards
        self._trainer.load(state.path, moments=keeps)
        self._changed()
        self._moments = state.moments if keeps else Moments()
        self._held, self._held_moments = state, keeps
        if keeps and not moments:
            self._forget()

    def _forget(self) -> None:
        """Leave both moments 0, by a step without gradient that changes no weights."""
        self._drop_gradient()
        self._trainer.optim_step(FORGET)
        self._moments, self._held_moments = self._moments.forgotten(), False

    def _drop_gradient(self) -> None:
        """Let the service forget a gradient that was added up for no step; its moments are then of no use."""
        if self._pending:
            self._trainer.optim_step(FORGET)
            self._moments, self._held_moments, self._pending = self._moments.stepped(), False, False

    def _changed(self) -> None:
        """The weights at the service are others now, and its gradient is gone."""
        self._held, self._sampler, self._pending = None, None, False


def _stem(path: Path) -> str:
    return path.name.partition(".safetensors")[0]


def _unique(name: str) -> str:
    """A state's name: letters, digits, hyphens, and unlike any before."""
    plain = "".join(char if char.isalnum() and char.isascii() else "-" for char in name)
    return f"{plain[:100]}-{uuid.uuid4().hex[:12]}"
