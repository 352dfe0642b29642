"""What one rank does of each of the policy's calls. All ranks are told the same call, each with its own share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import AnswerTokens, answer_logprobs
from omni_thinker.engine.sketch import sketch
from omni_thinker.engine.task_gradients import TaskGradients
from omni_thinker.errors import UserError
from omni_thinker.models.chat import load_chat
from omni_thinker.models.load import compute_device
from omni_thinker.models.memory import bound_free_memory, return_free_memory, return_large_blocks
from omni_thinker.policy.folders import opened
from omni_thinker.policy.fsdp.deal import FILLER, Rows
from omni_thinker.policy.fsdp.shards import Blueprint, Shards
from omni_thinker.policy.fsdp.state import load_state, save_state
from omni_thinker.policy.fsdp.tensor_files import FILE_BYTES, Form, write_model, write_tensors
from omni_thinker.policy.fsdp.updates import ShardUpdates
from omni_thinker.policy.passes import add_gradient, sample_by
from omni_thinker.policy.proof.prove import Paths
from omni_thinker.policy.texts import Texts
from omni_thinker.protocol import Loss, LossReport, OptimParams, OptimReport, TrainGroup
from omni_thinker.recipe import ModelSpec
from omni_thinker.sampling.decoders.fused import LlamaDecoder
from omni_thinker.sampling.decoders.weights import fused_weights
from omni_thinker.sampling.loop import DECODERS
from omni_thinker.types import Group, SampleRequest, SamplingParams


class Worker:
    """Holds one rank's shards."""

    tell: Callable[[int, Group], None]
    """Told the place of a request and its group, as soon as it is finished."""
    use: Callable[[PreTrainedModel], object]
    """What `whole` lets this rank do with the whole model."""

    def __init__(self, spec: ModelSpec, name: str, plan: Blueprint, *, loaded: PreTrainedModel | None = None) -> None:
        """`name`: the folder or model to begin with. `loaded`: the model, on the rank that has it."""
        return_large_blocks()
        mesh = init_device_mesh(compute_device(spec.device).type, (dist.get_world_size(),))
        self._texts = Texts(load_chat(spec, name))
        self._shards = Shards(spec, name, plan, mesh, loaded=loaded)
        self._model, self._params = self._shards.model, self._shards.trained
        self._task_gradients = TaskGradients(self._model)
        self._updates = ShardUpdates(list(self._params.values()))
        self._start: list[torch.Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Forget whom to tell: a policy that nobody needs is found by its not being held."""
        self.tell = lambda place, group: None
        self.use = lambda model: None

    @property
    def plain(self) -> PreTrainedModel:
        """The whole model without its weights."""
        return self._shards.plain

    def sample(
        self, places: Sequence[int], requests: Sequence[SampleRequest], decoders: Sequence[str], params: SamplingParams
    ) -> None:
        """Draw the groups of `requests`, of those the caller knows as `places`."""
        with self._shards.gathered() as model:
            if decoders and all(issubclass(DECODERS[name], LlamaDecoder) for name in decoders):
                fused_weights(model, take=True)  # one copy of the model in a rank's memory, not two
            texts = self._texts
            sample_by(
                model, requests, decoders, params, texts.stop_ids, texts.decode,
                lambda place, group: self.tell(places[place], group),
            )  # fmt: skip
        bound_free_memory()

    def whole(self) -> None:
        """Gather the whole model on every rank, for what `use` does."""
        with self._shards.gathered() as model:
            self.use(model)

    def gradient(self, rows: Rows, loss: Loss, temperature: float, paths: Paths, reference: bool) -> LossReport:
        """Add the gradient of `rows`, of which every rank has the same number."""
        filled = [row or [FILLER] for row in rows]
        references: Sequence[torch.Tensor | None] = [None] * len(rows)
        if reference:
            references = self._score_all(filled, temperature, paths, reference=True)
        report = add_gradient(
            zip(filled, references, strict=True),
            lambda groups: self._score(groups, temperature, paths),
            loss,
            self._task_gradients,
        )
        self._shards.reshard()
        report.stats.pop(FILLER.task, None)
        report.sketches.pop(FILLER.task, None)
        return report

    def logprobs(self, rows: Rows, temperature: float, paths: Paths, reference: bool) -> list[torch.Tensor]:
        """Log-probs of the answer tokens of each row, flat."""
        filled = [row or [FILLER] for row in rows]
        return _of_rows(rows, self._score_all(filled, temperature, paths, reference=reference))

    def entropies(self, rows: Rows, temperature: float, paths: Paths, reference: bool) -> list[torch.Tensor]:
        """Entropies at the answer tokens of each row, flat."""
        filled = [row or [FILLER] for row in rows]
        return _of_rows(rows, self._score_all(filled, temperature, paths, reference=reference, what="entropy_N"))

    def gradients(self) -> dict[str, torch.Tensor]:
        """All of them, on rank 0 alone."""
        whole = zip(self._params, self._updates.full_gradients(), strict=True)
        return {name: gradient.cpu() for name, gradient in whole if gradient is not None and dist.get_rank() == 0}

    def optim_step(self, optim: OptimParams) -> OptimReport:
        report = self._updates.step(optim)
        bound_free_memory()
        return report

    def reset_optimizer(self) -> None:
        self._updates.reset()
        return_free_memory()

    @torch.no_grad()
    def sketch_gradient(self, seed: int) -> torch.Tensor:
        sketches = sketch(self._updates.full_gradients(), seed)
        self._updates.clear()
        return sketches

    @torch.no_grad()
    def mark_start(self) -> None:
        self._start = [param.to_local().clone() for param in self._params.values()]

    def save_weights(self, path: Path) -> None:
        """The trained weights in fp32, in one file that `load_weights` of any trainer reads; rank 0 writes it."""
        forms = {name: Form(param.dtype, tuple(param.shape)) for name, param in self._params.items()}
        tensors = self._shards.full_tensors(trained=True)
        if dist.get_rank() == 0:
            write_tensors(path, forms, tensors)
        else:
            _drain(tensors)
        dist.barrier()  # nobody reads a file that isn't whole

    @torch.no_grad()
    def load_weights(self, path: Path) -> None:
        """Each rank reads its own part. Raises UserError where the file isn't of this model."""
        with opened(path) as tensors:
            for name, param in self._params.items():
                local = param.to_local()
                part = tensors.get_slice(name)
                if tuple(part.get_shape()) != tuple(param.shape):
                    raise UserError(
                        f"{name!r} is of shape {tuple(part.get_shape())}, not {tuple(param.shape)}", file=path
                    )
                size = -(-param.shape[0] // dist.get_world_size())  # as FSDP cuts it
                begin = min(dist.get_rank() * size, param.shape[0])
                if len(local):
                    local.copy_(part[begin : begin + len(local)])
        self.reset_optimizer()

    def save_state(self, path: Path) -> None:
        save_state(path, self._params, self._updates)

    def load_state(self, path: Path) -> None:
        load_state(path, self._params, self._updates)
        return_free_memory()

    def export(self, path: Path) -> None:
        """Write the weights into a Hugging Face folder, in the dtype that computes; rank 0 does."""
        tensors = self._shards.full_tensors(compute=True)
        if dist.get_rank() == 0:
            kept = {key: value for key, value in self._shards.plain.state_dict().items() if value.numel()}
            kept = {key: value for key, value in kept.items() if key not in self._shards.plan.forms}
            forms = {**self._shards.plan.forms, **{k: Form(v.dtype, tuple(v.shape)) for k, v in kept.items()}}
            write_model(path, forms, _chain(tensors, kept), file_bytes=FILE_BYTES)
        else:
            _drain(tensors)

    def _score(self, groups: Sequence[TrainGroup], temperature: float, paths: Paths) -> AnswerTokens:
        return answer_logprobs(
            self._model, groups, temperature=temperature, layout=paths.layout, recompute=paths.recompute
        )

    @torch.no_grad()
    def _score_all(
        self, rows: Rows, temperature: float, paths: Paths, *, reference: bool, what: str = "logprobs_N"
    ) -> list[torch.Tensor]:
        with self._at_start(reference):
            scores = [getattr(self._score(row, temperature, replace(paths, recompute=False)), what) for row in rows]
            self._shards.reshard()
        return scores

    @contextmanager
    def _at_start(self, wanted: bool) -> Iterator[None]:
        """The shards of `mark_start` in the place of those of now, where they are wanted."""
        if not wanted:
            yield
            return
        if self._start is None:
            raise RuntimeError("mark_start() was not called")
        self._swap(self._start)
        try:
            yield
        finally:
            self._swap(self._start)

    @torch.no_grad()
    def _swap(self, others: Sequence[torch.Tensor]) -> None:
        self._shards.reshard()
        for param, other in zip(self._params.values(), others, strict=True):
            local = param.to_local()
            present = local.clone()
            local.copy_(other)
            other.copy_(present)


def _of_rows(rows: Rows, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """On the CPU, and nothing of rows that were filled."""
    return [score.cpu() if row else score[:0].cpu() for row, score in zip(rows, scores, strict=True)]


def _drain(tensors: Iterator[Any]) -> None:
    for _ in tensors:
        pass


def _chain(tensors: Iterator[tuple[str, torch.Tensor]], kept: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    yield from tensors
    yield from kept.items()
