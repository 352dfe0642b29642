"""The policy of rank 0: every call goes to all ranks, each with its share."""

import weakref
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.models.chat import load_chat
from omni_thinker.models.load import compute_device, compute_dtype, load_model
from omni_thinker.policy.folders import write_adapter, write_folder
from omni_thinker.policy.fsdp.crew import check_ranks, crew_of
from omni_thinker.policy.fsdp.deal import Rows, by_sample, deal, plan_rows
from omni_thinker.policy.fsdp.shards import Blueprint
from omni_thinker.policy.lora import add_lora
from omni_thinker.policy.passes import longest
from omni_thinker.policy.proof.chosen import Proven
from omni_thinker.policy.proof.prove import Paths
from omni_thinker.policy.texts import Texts
from omni_thinker.policy.torch_policy import GPU_TOKEN_BUDGET, TOKEN_BUDGET
from omni_thinker.protocol import Loss, LossReport, OnGroup, OptimParams, OptimReport, TrainBatch, TrainGroup
from omni_thinker.recipe import FsdpSpec, ModelSpec
from omni_thinker.types import Group, SampleRequest, SamplingParams


class FsdpPolicy(Texts):
    """Implements the Policy protocol by several processes, which hold a share of the weights each (FSDP2)."""

    state_suffix = ".state"
    """`save_state` writes a folder."""

    def __init__(
        self, spec: ModelSpec, fsdp: FsdpSpec | None = None, *, folder: str | Path | None = None, seed: int = 0
    ) -> None:
        """Load `folder` if given, else `spec.name`, on rank 0, and share it out. `seed` draws LoRA's factors.

        Raises UserError where the model can't be trained, and EngineLost where a process ends."""
        fsdp = fsdp or FsdpSpec()
        self._name = name = str(folder or spec.name)
        self.spec = spec
        super().__init__(load_chat(spec, name))
        device = compute_device(spec.device)
        check_ranks(fsdp.ranks, device.type)
        self._crew = crew_of(fsdp.ranks)
        self._crew.begin(device.type, fsdp.timeout_s)
        self._row_tokens = fsdp.row_tokens or (TOKEN_BUDGET if device.type == "cpu" else GPU_TOKEN_BUDGET)
        model = load_model(name, compute_dtype(spec.dtype, device)).to(device)  # type: ignore[arg-type]
        if spec.lora is not None:
            model = add_lora(model, spec.lora, seed=seed)
        model.eval()
        self._proven = Proven(model, recompute=spec.activation_checkpointing)
        self._number = self._crew.make((spec, name, Blueprint.of(model)), loaded=model)
        weakref.finalize(self, self._crew.dropped.append, self._number)

    @property
    def ranks(self) -> int:
        return self._crew.world

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        if not requests:
            return []
        requests = self.ending(requests)
        names = [self._paths(len(request.prompt) + request.longest).decoder for request in requests]
        groups: dict[int, Group] = {}

        def finished(place: int, group: Group) -> None:
            groups[place] = group
            if on_group is not None:
                on_group(place, group)

        def own(place: int, group: Group) -> None:
            finished(place, group)
            self._crew.hear(finished)

        self._crew.worker(self._number).tell = own
        hands = deal([len(request.prompt) + request.longest * params.group_size for request in requests], self.ranks)
        shares = [(hand, [requests[i] for i in hand], [names[i] for i in hand], params) for hand in hands]
        self._call("sample", *shares, on_group=finished)
        return [groups[place] for place in range(len(requests))]

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        """Add the gradient of `loss`, which other processes must be able to import."""
        rows, paths = self._plan(batch)
        reports: list[LossReport] = self._call(
            "gradient", *((of_rank, loss, temperature, paths, reference) for of_rank in rows)
        )
        return reduce(add, reports)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradient so far of each weight that is trained, whole and in fp32, on the CPU."""
        gradients: dict[str, torch.Tensor] = self._same("gradients")
        return gradients

    def optim_step(self, optim: OptimParams) -> OptimReport:
        report: OptimReport = self._same("optim_step", optim)
        return report

    def reset_optimizer(self) -> None:
        self._same("reset_optimizer")

    def sketch_gradient(self, seed: int) -> torch.Tensor:
        """Clear the gradient, and return its `sketch` and that of the update it would make; [2, dimensions]."""
        sketches: torch.Tensor = self._same("sketch_gradient", seed)
        return sketches

    def logprobs(
        self, groups: Sequence[TrainGroup], *, temperature: float = 1.0, reference: bool = False
    ) -> torch.Tensor:
        """Log-probs of the answer tokens of `groups`, flat, on the CPU; under the start where `reference`."""
        return self._of_tokens("logprobs", groups, temperature, reference)

    def entropies(self, groups: Sequence[TrainGroup], *, temperature: float = 1.0) -> torch.Tensor:
        """Entropies at the answer tokens of `groups`, flat, on the CPU."""
        return self._of_tokens("entropies", groups, temperature, False)

    def _of_tokens(self, what: str, groups: Sequence[TrainGroup], temperature: float, reference: bool) -> torch.Tensor:
        """One number for each answer token, in the order of `groups`."""
        rows, paths = self._plan(groups)
        scores = self._call(what, *((of_rank, temperature, paths, reference) for of_rank in rows))
        pieces: dict[int, list[torch.Tensor]] = {}
        for of_rank, tensors in zip(rows, scores, strict=True):
            for row, row_N in zip(of_rank, tensors, strict=True):
                for group, tokens_N in zip(row, row_N.split([group.tokens for group in row]), strict=True):
                    pieces.setdefault(id(group), []).append(tokens_N)
        return torch.cat([pieces[id(group)].pop(0) for group in self._pieces])

    def mark_start(self) -> None:
        self._same("mark_start")

    def save_weights(self, path: Path) -> None:
        self._same("save_weights", path)

    def load_weights(self, path: Path) -> None:
        self._same("load_weights", path)

    def save_state(self, path: Path) -> None:
        """A folder, which any number of ranks can load."""
        self._same("save_state", path)

    def load_state(self, path: Path) -> None:
        self._same("load_state", path)

    def export_adapter(self, path: Path) -> None:
        """Write the LoRA factors alone, as a folder that peft reads."""
        self._whole(lambda model: write_adapter(model, path, self._name))

    def export(self, path: Path) -> None:
        """Write a Hugging Face folder in the compute dtype, a tensor at a time; LoRA factors are merged in.

        A model whose files have other tensors than its class, or that has adapters, is gathered for it."""
        merge = self.spec.lora is not None
        plain = self._crew.worker(self._number).plain
        if merge or getattr(plain, "_weight_conversions", None):
            self._whole(lambda model: write_folder(model, path, self.tokenizer, self._name, merge=merge))
            return
        write_folder(plain, path, self.tokenizer, self._name, state_dict={})
        self._same("export", path)

    def _call(self, method: str, *shares: tuple[Any, ...], on_group: OnGroup | None = None) -> list[Any]:
        try:
            return self._crew.call(self._number, method, shares, on_group)
        except (AttributeError, TypeError) as exc:
            if "pickle" not in str(exc):
                raise
            raise TypeError(f"what other processes are told must be importable: {exc}") from None
        finally:
            self._crew.worker(self._number).forget()

    def _same(self, method: str, *args: Any) -> Any:
        """Tell all ranks the same; what rank 0 returned."""
        return self._call(method, *([args] * self.ranks))[0]

    def _whole(self, use: Callable[[PreTrainedModel], object]) -> None:
        """Let rank 0 do something with the whole model."""
        self._crew.worker(self._number).use = use
        self._same("whole")

    def _paths(self, length: int) -> Paths:
        if not self._proven.knows(length):
            self._whole(lambda _: self._proven.paths(length))
        return self._proven.paths(length)

    def _plan(self, groups: Sequence[TrainGroup]) -> tuple[list[Rows], Paths]:
        """Each rank's rows, and the way they are run, which is one for all."""
        paths = self._paths(longest(groups))
        single = paths.layout == "single"
        self._pieces = by_sample(groups) if single else list(groups)
        return plan_rows(self._pieces, self.ranks, 1 if single else self._row_tokens), paths
