"""Merging of single-task experts, tensor by tensor, so that only one tensor of each model is in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.errors import UserError

Shapes = Mapping[str, Sequence[int]]


class Expert(Protocol):
    """One that began as the start, and what it changed."""

    def check(self, start: Path, shapes: Shapes) -> None:
        """Raises UserError where it did not begin as `start`, whose weights have these shapes."""
        ...

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        """What it added to the weight that was `origin`, in fp32; None where it left it alone."""
        ...


class Weights:
    """An expert with all its weights, in one safetensors file. Opened anew for each tensor: what an open file has shown
    stays mapped, and counts as memory of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, start: Path, shapes: Shapes) -> None:
        if shapes_of(self.path) != shapes:
            raise UserError(f"holds other tensors than {start}", file=self.path)

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor:
        return _tensor(self.path, name).float() - origin.float()


def merge(start: Path, experts: Sequence[Expert], rule: MergeRule, out: Path) -> None:
    """Write `start` with the experts' changes combined by `rule`, computed in fp32, in the types of `start`: a
    safetensors file each. Raises UserError where an expert began as something else."""
    shapes = shapes_of(start)
    for expert in experts:
        expert.check(start, shapes)
    merged = dict(_merged(start, experts, rule, sorted(shapes)))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, out)


def _merged(
    start: Path, experts: Sequence[Expert], rule: MergeRule, names: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        origin = _tensor(start, name)
        found = ((place, expert.change(name, origin)) for place, expert in enumerate(experts))
        changes = [(place, change) for place, change in found if change is not None]
        if changes:
            origin = (origin.float() + rule.combine(name, changes)).to(origin.dtype)
        yield name, origin


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Of all tensors of a safetensors file. Raises UserError where it is none."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as exc:
        raise UserError(f"is no safetensors file: {exc}", file=path) from None


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor
