"""The torch policy: one causal LM of transformers, trained in place.

Weights of the model are held in the compute dtype; fp32 master copies take the updates (`masters`)."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import AnswerTokens, answer_logprobs
from omni_thinker.engine.optimizer import Masters
from omni_thinker.engine.packing import micro_batches
from omni_thinker.engine.sketch import sketch
from omni_thinker.engine.task_gradients import TaskGradients
from omni_thinker.errors import UserError
from omni_thinker.models.chat import load_chat
from omni_thinker.models.load import compute_device, compute_dtype, load_model
from omni_thinker.models.memory import bound_free_memory, is_out_of_memory, return_free_memory
from omni_thinker.policy.folders import opened, write_adapter, write_folder
from omni_thinker.policy.lora import add_lora
from omni_thinker.policy.passes import Row, add_gradient, longest, sample_by
from omni_thinker.policy.proof.chosen import Proven
from omni_thinker.policy.proof.prove import Paths
from omni_thinker.policy.texts import Texts
from omni_thinker.protocol import Loss, LossReport, OnGroup, OptimParams, OptimReport, TrainBatch, TrainGroup
from omni_thinker.recipe import ModelSpec
from omni_thinker.sampling.decoders.weights import drop_layout
from omni_thinker.types import Group, SampleRequest, SamplingParams

# Shorter rows spend more on adding up gradients, longer ones hold more: 0.5 MB a token of the built-in model.
TOKEN_BUDGET = 2048
GPU_TOKEN_BUDGET = 16_384
_LEAST_TOKEN_BUDGET = 64
_BUDGET = "token_budget"
_log = logging.getLogger(__name__)


def _like(master: torch.Tensor, name: str, tensors: Any, path: Path, *, scalar: bool = False) -> torch.Tensor:
    """A tensor of the master's kind, where the master is. Raises UserError where it is of another."""
    tensor: torch.Tensor = tensors.get_tensor(name)
    shape = torch.Size([]) if scalar else master.shape
    if tensor.shape != shape or tensor.dtype != master.dtype:
        raise UserError(f"{name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {tuple(shape)}", file=path)
    return tensor.to(master.device)


class TorchPolicy(Texts):
    """Implements the Policy protocol in this process."""

    def __init__(self, spec: ModelSpec, *, folder: str | Path | None = None, seed: int = 0) -> None:
        """Load `folder` if given (a checkpoint of the same model), else `spec.name`. `seed` draws LoRA's factors."""
        self.spec = spec
        self._name = name = str(folder or spec.name)
        super().__init__(load_chat(spec, name))
        device = compute_device(spec.device)
        # No dropout: the trainer must compute what the sampler sampled from.
        self.model: PreTrainedModel = load_model(name, compute_dtype(spec.dtype, device)).to(device)  # type: ignore[arg-type]
        self.token_budget = TOKEN_BUDGET if device.type == "cpu" else GPU_TOKEN_BUDGET
        if spec.lora is not None:
            self.model = add_lora(self.model, spec.lora, seed=seed)
        self.model.eval()
        self._proven = Proven(self.model, recompute=spec.activation_checkpointing)
        self._task_gradients = TaskGradients(self.model)
        self._reference: PreTrainedModel | None = None
        self._start_factors: list[torch.Tensor] | None = None
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in trained]
        self._params = [p for _, p in trained]
        self._updates = Masters(self._params)
        self._masters = self._updates.values

    @property
    def takes_cores(self) -> bool:
        return self.model.device.type == "cpu"

    def reset_optimizer(self) -> None:
        """Forget moments, as at a stage boundary."""
        self._updates.reset()
        return_free_memory()  # the moments: twice the weights

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        if not requests:
            return []
        requests = self.ending(requests)
        names = [self._proven.paths(len(request.prompt) + request.longest).decoder for request in requests]
        groups = sample_by(self.model, requests, names, params, self.stop_ids, self.decode, on_group)
        bound_free_memory()
        return groups

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        drop_layout(self.model)
        begun = any(gradient is not None for gradient in self._updates.gradients())
        while True:
            try:
                return self._add_gradient(batch, loss, temperature, reference)
            except (MemoryError, RuntimeError) as exc:
                if begun or not is_out_of_memory(exc) or self.token_budget < 2 * _LEAST_TOKEN_BUDGET:
                    raise
            # What was added up before memory ran out is of no use: a row's gradient may be there in part.
            self._updates.clear()
            for param in self._params:
                param.grad = None
            return_free_memory()
            self.token_budget //= 2
            _log.warning("out of memory: rows of %d tokens from here on", self.token_budget)

    def _add_gradient(self, batch: TrainBatch, loss: Loss, temperature: float, reference: bool) -> LossReport:
        def rows() -> Iterator[Row]:
            for groups in self._micro_batches(batch):
                yield groups, self.logprobs(groups, temperature=temperature, reference=True) if reference else None

        return add_gradient(
            rows(), lambda groups: self._score(self.model, groups, temperature), loss, self._task_gradients
        )

    def optim_step(self, optim: OptimParams) -> OptimReport:
        report = self._updates.step(optim)
        bound_free_memory()
        return report

    @torch.no_grad()
    def sketch_gradient(self, seed: int) -> torch.Tensor:
        """Clear the gradient, and return its `sketch` and that of the update it would make; [2, dimensions]."""
        sketches = sketch(self._updates.gradients(), seed)
        self._updates.clear()
        return sketches

    @torch.no_grad()
    def logprobs(
        self, groups: Sequence[TrainGroup], *, temperature: float = 1.0, reference: bool = False
    ) -> torch.Tensor:
        """Log-probs of the answer tokens of `groups`, flat; under the start model where `reference`."""
        if not reference:
            return self._score(self.model, groups, temperature).logprobs_N
        with self._start_model() as model:
            return self._score(model, groups, temperature).logprobs_N

    @torch.no_grad()
    def entropies(self, groups: Sequence[TrainGroup], *, temperature: float = 1.0) -> torch.Tensor:
        """Entropies at the answer tokens of `groups`, flat."""
        by_group: dict[int, torch.Tensor] = {}
        for row in self._micro_batches(groups):  # which come in an order of their own
            parts = self._score(self.model, row, temperature).entropy_N.split([group.tokens for group in row])
            by_group |= {id(group): part for group, part in zip(row, parts, strict=True)}
        return torch.cat([by_group[id(group)] for group in groups])

    def mark_start(self) -> None:
        """Take the present weights as the start that `reference` means."""
        if self.spec.lora is None:
            self._reference = copy.deepcopy(self.model).requires_grad_(False)
        else:
            self._start_factors = [param.detach().clone() for param in self._params]

    def save_weights(self, path: Path) -> None:
        """The fp32 masters alone, by parameter name."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(self._names, (m.detach() for m in self._masters), strict=True)), path)

    def load_weights(self, path: Path) -> None:
        """Masters written by `save_weights`, with a fresh optimiser. Raises UserError where the file isn't that."""
        with opened(path) as tensors, torch.no_grad():
            for name, master in zip(self._names, self._masters, strict=True):
                master.copy_(_like(master, name, tensors, path))
        self._updates.publish()
        self.reset_optimizer()

    def save_state(self, path: Path) -> None:
        """Masters and optimiser moments, as safetensors."""
        tensors = dict(zip(self._names, (m.detach() for m in self._masters), strict=True))
        for name, master in zip(self._names, self._masters, strict=True):
            for key, value in self._updates.optimizer.state[master].items():
                tensors[f"{name}@{key}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        # Rows that memory had no room for are cut in other places: a part of the arithmetic.
        save_file(tensors, path, metadata={_BUDGET: str(self.token_budget)})

    def load_state(self, path: Path) -> None:
        """Masters and moments written by `save_state`."""
        self.load_weights(path)
        with opened(path) as tensors:
            moments = {key for key in tensors.keys() if "@" in key}  # noqa: SIM118 - no mapping
            for name, master in zip(self._names, self._masters, strict=True):
                names = {key.partition("@")[2]: key for key in moments if key.partition("@")[0] == name}
                if names:
                    self._updates.optimizer.state[master] = {
                        key: _like(master, full, tensors, path, scalar=key == "step") for key, full in names.items()
                    }
            budget = (tensors.metadata() or {}).get(_BUDGET, "")
            if budget.isdecimal():
                self.token_budget = max(_LEAST_TOKEN_BUDGET, min(self.token_budget, int(budget)))

    def export_adapter(self, path: Path) -> None:
        """Write the LoRA factors alone, as a folder that peft reads, which names the model that they belong to."""
        write_adapter(self.model, path, self._name)

    def export(self, path: Path) -> None:
        """Write a Hugging Face folder in the compute dtype. LoRA factors are merged in."""
        write_folder(self.model, path, self.tokenizer, self._name, merge=self.spec.lora is not None)

    def _paths(self, groups: Sequence[TrainGroup]) -> Paths:
        return self._proven.paths(longest(groups))

    def _micro_batches(self, batch: TrainBatch) -> Iterator[Sequence[TrainGroup]]:
        for groups in micro_batches(batch, self.token_budget):
            # A pass for each sample: which task a gradient belongs to is known of a group by itself.
            yield from [[group] for group in groups] if self._paths(groups).layout == "single" else [groups]

    def _score(self, model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float) -> AnswerTokens:
        paths = self._paths(groups)
        return answer_logprobs(model, groups, temperature=temperature, layout=paths.layout, recompute=paths.recompute)

    @contextmanager
    def _start_model(self) -> Iterator[PreTrainedModel]:
        """The model as it was at `mark_start`: a copy, or with adapters the same model with the factors of then."""
        if self._reference is not None:
            yield self._reference
            return
        if self._start_factors is None:
            raise RuntimeError("mark_start() was not called")
        present = [param.detach().clone() for param in self._params]
        self._put(self._start_factors)
        try:
            yield self.model
        finally:
            self._put(present)

    @torch.no_grad()
    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for param, value in zip(self._params, values, strict=True):
            param.copy_(value)
