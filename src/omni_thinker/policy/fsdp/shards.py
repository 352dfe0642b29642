"""One model twice: `model`, whose weights are shared out among ranks, and `plain`, which is empty but for a while.

Training runs `model`: each layer's weights are gathered as its turn comes. Sampling runs `plain`, whole and in the
compute dtype, since it would otherwise gather every layer for every token."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from transformers import PreTrainedModel

from omni_thinker.errors import UserError
from omni_thinker.models.load import empty_model
from omni_thinker.models.memory import return_free_memory
from omni_thinker.policy.fsdp.tensor_files import Form, Tensors
from omni_thinker.policy.lora import add_lora
from omni_thinker.recipe import ModelSpec
from omni_thinker.sampling.decoders.weights import drop_layout


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a process needs beside a model's class to make it: the forms of its weights, and all its other tensors,
    which are few. `loose`: (module, name, tensor) of buffers and of plain attributes."""

    forms: Mapping[str, Form]
    trained: frozenset[str]
    loose: tuple[tuple[str, str, torch.Tensor], ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Blueprint":
        forms = {name: Form(p.dtype, tuple(p.shape)) for name, p in model.named_parameters()}
        trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        loose = [
            (path, key, tensor.detach().cpu())
            for path, module in model.named_modules()
            for key, tensor in (*module._buffers.items(), *vars(module).items())
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter)
        ]
        return cls(forms, trained, tuple(loose))


class Shards:
    """The weights of one model on one rank."""

    def __init__(
        self, spec: ModelSpec, name: str, plan: Blueprint, mesh: DeviceMesh, *, loaded: PreTrainedModel | None = None
    ) -> None:
        """`loaded`: the whole model, on the rank that has it; its weights are taken out of it.

        Raises UserError where the model's class alone doesn't say what weights there are."""
        self.mesh, self.plan = mesh, plan
        device = loaded.device if loaded is not None else torch.device(mesh.device_type)
        shell = _shell(spec, name, plan)
        weights = None if loaded is None else {key: p.detach() for key, p in loaded.named_parameters()}
        self.plain = _hollow(loaded if loaded is not None else copy.deepcopy(shell), device)
        del loaded
        self._compute = {key: form.dtype for key, form in plan.forms.items()}
        self.model = _shard(shell, plan, mesh, masters=spec.lora is None)
        self.model.to_empty(device=device)
        for model in (self.plain, self.model):
            _set_loose(model, plan, device)
            model.eval()
        self._fill(weights)
        self.model = self.model.requires_grad_(False)
        for key, param in self.model.named_parameters():
            param.requires_grad_(key in plan.trained)
        self.trained: dict[str, Any] = {key: p for key, p in self.model.named_parameters() if key in plan.trained}
        return_free_memory()

    @torch.no_grad()
    def _fill(self, weights: dict[str, torch.Tensor] | None) -> None:
        """From the rank that has the weights to each its own, one tensor at a time."""
        param: Any
        for key, param in self.model.named_parameters():
            local = param.to_local()
            if weights is None:
                whole = torch.empty(param.shape, dtype=param.dtype, device=local.device)
            else:
                whole = weights.pop(key).to(local.device, param.dtype)
            local.copy_(distribute_tensor(whole, self.mesh, param.placements).to_local())

    @contextmanager
    def gathered(self) -> Iterator[PreTrainedModel]:
        """The plain model with all weights of now, in the dtype that computes."""
        targets = dict(self.plain.named_parameters())
        for key, tensor in self.full_tensors(compute=True):
            targets[key].data = tensor
        try:
            yield self.plain
        finally:
            drop_layout(self.plain)
            for target in targets.values():
                target.data = target.data.new_empty(0)
            return_free_memory()

    @torch.no_grad()
    def full_tensors(self, *, compute: bool = False, trained: bool = False) -> Tensors:
        """Every weight, whole, on every rank, one after another: all ranks must take all. `compute`: in the dtype that
        computes. `trained`: those that are trained alone."""
        param: Any
        for key, param in self.model.named_parameters():
            if key in self.trained or not trained:
                values = param.detach()
                yield key, (values.to(self._compute[key]) if compute else values).full_tensor()

    def reshard(self) -> None:
        """Let go of what is gathered. The outermost weights stay after a pass that has no backward pass."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _shell(spec: ModelSpec, name: str, plan: Blueprint) -> PreTrainedModel:
    """The model without numbers, as the plan says."""
    model = empty_model(name)
    model.tie_weights()
    if spec.lora is not None:
        model = add_lora(model, spec.lora)
    names = {id(p): key for key, p in model.named_parameters()}
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters()}
    if shapes != {key: form.shape for key, form in plan.forms.items()}:
        raise UserError('its class alone doesn\'t say its weights; set engine.trainer = "torch"', key="model.name")

    def make(param: torch.nn.Parameter) -> torch.nn.Parameter:
        key = names[id(param)]
        empty = torch.empty(param.shape, dtype=plan.forms[key].dtype, device="meta")
        return torch.nn.Parameter(empty, requires_grad=key in plan.trained)

    return _with_parameters(model, make)


def _hollow(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model whose weights have no room."""
    return _with_parameters(
        model, lambda p: torch.nn.Parameter(torch.empty(0, dtype=p.dtype, device=device), requires_grad=p.requires_grad)
    )


def _with_parameters(
    model: PreTrainedModel, make: Callable[[torch.nn.Parameter], torch.nn.Parameter]
) -> PreTrainedModel:
    """Put others in the place of a model's parameters; those that modules share stay shared."""
    made: dict[int, tuple[Any, torch.nn.Parameter]] = {}
    for module in model.modules():
        for key, param in module._parameters.items():
            if param is not None:
                if id(param) not in made:
                    made[id(param)] = param, make(param)
                module._parameters[key] = made[id(param)][1]
    return model


def _set_loose(model: PreTrainedModel, plan: Blueprint, device: torch.device) -> None:
    modules = dict(model.named_modules())
    for path, key, tensor in plan.loose:
        module = modules[path]
        value = tensor.clone().to(device)
        if key in module._buffers:
            module._buffers[key] = value
        else:
            setattr(module, key, value)


def _shard(model: PreTrainedModel, plan: Blueprint, mesh: DeviceMesh, *, masters: bool) -> PreTrainedModel:
    """Share out each layer by itself, and what is left with the whole. `masters`: in fp32, gathered in the dtype of the
    plan. Adapters are in fp32 in any case, and what they are put around is as it computes."""
    dtypes = {form.dtype for form in plan.forms.values()}
    compute = None
    if masters and dtypes != {torch.float32}:
        if len(dtypes) > 1:
            raise UserError("has weights of several dtypes, which can't be trained in shares", key="model.name")
        compute = next(iter(dtypes))
    if masters:
        model = _with_parameters(model, lambda p: torch.nn.Parameter(p.detach().float(), requires_grad=True))
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    inside: Any = getattr(model, "get_base_model", lambda: model)()
    kinds = set(inside._no_split_modules or ())
    for module in [m for m in model.modules() if type(m).__name__ in kinds]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A loss is a sum over the whole batch already. Without the second, gloo is asked for what it doesn't know.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return model
