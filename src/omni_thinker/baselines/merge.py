"""Merging of single-task experts, tensor by tensor: one file of the result is in memory, and one tensor of a model."""

from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import Tensors
from omni_thinker.errors import UserError


class Expert(Protocol):
    """One that began as the start, and what it changed."""

    path: Path

    def check(self, start: Tensors) -> None:
        """Raises UserError where it did not begin as `start`."""

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        """What it added to the weight that was `origin`, in fp32; None where it left it alone."""


class Weights:
    """An expert with all its weights: a safetensors file, or a folder of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = Tensors(path)

    def check(self, start: Tensors) -> None:
        if self._tensors.shapes != start.shapes:
            raise UserError(f"holds other tensors than {start.path}", file=self.path)

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        tensor = self._tensors[name]
        if origin.is_floating_point() and tensor.is_floating_point():
            return tensor.float() - origin.float()
        if not torch.equal(tensor, origin):  # such as packed weights, whose differences mean nothing
            raise UserError(f"{name!r} holds whole numbers, which can't be added up", file=self.path)
        return None


class Rounding:
    """How much of the experts' changes is lost when results are rounded to the types of the start."""

    def __init__(self) -> None:
        self._lost = self._changed = 0.0

    def note(self, change: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> None:
        self._lost += float((exact - rounded.float()).square().sum(dtype=torch.float64))
        self._changed += float(change.square().sum(dtype=torch.float64))

    @property
    def share(self) -> float:
        """Length of what is lost over the length of the change, 0 to about 1."""
        return sqrt(self._lost / self._changed) if self._changed else 0.0


def merge(
    start: Path, experts: Sequence[Expert], rule: MergeRule, out: Path, dtype: torch.dtype | None = None
) -> Rounding:
    """Write `start` with the experts' changes combined by `rule`, computed in fp32, in the types of `start` or all in
    `dtype`.

    A file makes a file; a folder makes the weights of a folder, in the start's shards. Raises UserError where an expert
    began as something else."""
    origin, rounding = Tensors(start), Rounding()
    for expert in experts:
        expert.check(origin)
    for file in origin.files:
        merged = {}
        for name, tensor in _merged(origin, experts, rule, origin.names(file), dtype, rounding):
            merged[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        path = out / file.name if start.is_dir() else out
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(merged, path, metadata={"format": "pt"})
    return rounding


def _merged(
    start: Tensors,
    experts: Sequence[Expert],
    rule: MergeRule,
    names: Sequence[str],
    dtype: torch.dtype | None,
    rounding: Rounding,
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        origin = start[name]
        if origin.is_floating_point() and origin.itemsize == 1:
            raise UserError(f"{name!r} is quantised ({origin.dtype}); merge the model that isn't", file=start.path)
        if origin.is_floating_point() and not origin.isfinite().all():
            raise UserError(f"{name!r} holds numbers that aren't finite", file=start.path)
        changes = []
        for place, expert in enumerate(experts):
            if (change := expert.change(name, origin)) is None:
                continue
            if not change.isfinite().all():
                raise UserError(f"{name!r} holds numbers that aren't finite", file=expert.path)
            changes.append((place, change))
        if changes:
            origin = _sum(origin, rule.combine(name, changes), dtype or origin.dtype, rounding)
            if not origin.isfinite().all():
                raise UserError(f"{name!r} would hold numbers that aren't finite; smaller weights or scale help")
        yield name, origin


def _sum(origin: torch.Tensor, change: torch.Tensor, dtype: torch.dtype, rounding: Rounding) -> torch.Tensor:
    exact = origin.float() + change
    rounded = exact.to(dtype)
    if dtype != torch.float32:
        rounding.note(change, exact, rounded)
    return rounded
