"""Each task's own gradient, projected, out of the backward pass that a step does anyway.

The gradient of a linear layer's weights is a sum over tokens of (gradient of the output) x (input). Both are brought
down to a few random directions before the sum, so that what a task's tokens add is `RANK` x `RANK` numbers a layer,
whose inner products estimate those of the gradients (Johnson and Lindenstrauss). Nothing is run twice; the layers
watched are a few down-projections spread over the depth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import combinations
from math import isfinite, prod
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.nodes import nodes_of
from omni_thinker.engine.packing import pack, row_length
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import TaskName

RANK = 32
LAYERS = 4

Sketches = dict[TaskName, torch.Tensor]
"""A sketch of each task's gradient: [layers x RANK x RANK], flat, fp32, on the CPU."""


def watched_layers(model: PreTrainedModel) -> list[Any]:
    """The layers whose gradients are kept by task; none where the model has no down-projection by that name."""
    projections = [m for name, m in model.named_modules() if name.endswith("down_proj") and hasattr(m, "in_features")]
    return projections[:: max(1, len(projections) // LAYERS)][-LAYERS:]


class TaskGradients:
    """Watches a model's training passes. Made once a model; layers are told apart by name, so that models of unknown
    families have none and yield no sketches."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = watched_layers(model)
        generator = torch.Generator().manual_seed(0)
        self._projections = [
            tuple(
                (torch.randn(size, RANK, generator=generator) / RANK**0.5).to(model.device)
                for size in (layer.out_features, layer.in_features)
            )
            for layer in self._layers
        ]

    @contextmanager
    def watching(self, groups: Sequence[TrainGroup], into: Sketches) -> Iterator[None]:
        """While a micro-batch of `groups` is run forward and back, add its tasks' sketches to `into`."""
        if not self._layers:
            yield
            return
        tasks = list(dict.fromkeys(group.task for group in groups))
        for task in tasks:
            into.setdefault(task, torch.zeros(len(self._layers) * RANK * RANK))
        owners = cache(lambda shape: _owners(groups, tasks, shape))  # the same for all layers
        hooks = [
            layer.register_forward_hook(self._hook(place, owners, tasks, into))
            for place, layer in enumerate(self._layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(
        self, place: int, owners: Callable[[torch.Size], torch.Tensor | None], tasks: Sequence[TaskName], into: Sketches
    ) -> Any:
        out_C_R, in_C_R = self._projections[place]
        entries = slice(place * RANK * RANK, (place + 1) * RANK * RANK)

        def on_forward(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not output.requires_grad:
                return
            x = inputs[0].detach()
            owners_T = owners(x.shape)
            if owners_T is None:
                return

            def on_gradient(gradient: torch.Tensor) -> None:
                with torch.no_grad():
                    x_T_R = x.reshape(-1, x.shape[-1]) @ in_C_R.to(x.dtype)
                    delta_T_R = gradient.reshape(-1, gradient.shape[-1]) @ out_C_R.to(gradient.dtype)
                    owner_T = owners_T.to(x.device)
                    for number, task in enumerate(tasks):
                        mine = owner_T == number
                        into[task][entries] += (delta_T_R[mine].float().t() @ x_T_R[mine].float()).flatten().cpu()

            output.register_hook(on_gradient)

        return on_forward


def _owners(groups: Sequence[TrainGroup], tasks: Sequence[TaskName], shape: Sequence[int]) -> torch.Tensor | None:
    """The number of the task that each token of a pass belongs to: of one row that holds all groups, or of a padded row
    for each sample. What fills a row up has no gradient, so it may belong to anyone. None where it can't be told, as in
    layers that see some of the tokens (experts). A token that several groups share is of a task that they share."""
    if len(tasks) == 1:
        return torch.zeros(prod(shape[:-1]), dtype=torch.long)
    samples = sum(len(group.samples) for group in groups)
    numbers = torch.tensor([tasks.index(group.task) for group in groups])
    if len(shape) == 3 and shape[0] == samples and samples > 1:
        counts = torch.tensor([len(group.samples) for group in groups])
        return numbers.repeat_interleave(counts).repeat_interleave(shape[1])
    tokens = shape[-2] if len(shape) < 3 else shape[0] * shape[1]
    lengths = [row_length(group) for group in groups]
    if len(shape) == 2 and (nodes := nodes_of(pack(groups))) is not None and tokens == len(nodes.tokens_U):
        lengths = list(nodes.new)
    if tokens < sum(lengths):
        return None
    lengths[-1] += tokens - sum(lengths)
    return numbers.repeat_interleave(torch.tensor(lengths))


def norms(sketches: Mapping[TaskName, torch.Tensor]) -> dict[TaskName, float]:
    """Approximate norm of each task's gradient in the watched layers."""
    return {task: norm for task, sketch in sketches.items() if isfinite(norm := float(sketch.norm()))}


def alignments(sketches: Mapping[TaskName, torch.Tensor]) -> dict[TaskName, float]:
    """The mean cosine of each task's gradient with every other task's, in [-1, 1]; of tasks that have a gradient, where
    there are two or more."""
    directions = {task: sketches[task] / norm for task, norm in norms(sketches).items() if norm > 0}
    cosines: dict[TaskName, list[float]] = {task: [] for task in directions}
    for a, b in combinations(directions, 2):
        cosine = float(directions[a] @ directions[b])
        cosines[a].append(cosine)
        cosines[b].append(cosine)
    return {task: sum(task_cosines) / len(task_cosines) for task, task_cosines in cosines.items() if task_cosines}
