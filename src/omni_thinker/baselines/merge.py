"""Merging of single-task experts, tensor by tensor: one file of the result is in memory, and one tensor of a model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file

from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import Shapes, Tensors
from omni_thinker.errors import UserError


class Expert(Protocol):
    """One that began as the start, and what it changed."""

    path: Path

    def check(self, start: Path, shapes: Shapes) -> None:
        """Raises UserError where it did not begin as `start`, whose weights have these shapes."""

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        """What it added to the weight that was `origin`, in fp32; None where it left it alone."""


class Weights:
    """An expert with all its weights: a safetensors file, or a folder of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = Tensors(path)

    def check(self, start: Path, shapes: Shapes) -> None:
        if self._tensors.shapes != shapes:
            raise UserError(f"holds other tensors than {start}", file=self.path)

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        tensor = self._tensors[name]
        if origin.is_floating_point() and tensor.is_floating_point():
            return tensor.float() - origin.float()
        if not torch.equal(tensor, origin):  # such as packed weights, whose differences mean nothing
            raise UserError(f"{name!r} holds whole numbers, which can't be added up", file=self.path)
        return None


def merge(start: Path, experts: Sequence[Expert], rule: MergeRule, out: Path) -> None:
    """Write `start` with the experts' changes combined by `rule`, computed in fp32, in the types of `start`.

    A file makes a file; a folder makes the weights of a folder, in the start's shards. Raises UserError where an expert
    began as something else."""
    origin = Tensors(start)
    for expert in experts:
        expert.check(start, origin.shapes)
    for file in origin.files:
        merged = dict(_merged(origin, experts, rule, origin.names(file)))
        path = out / file.name if start.is_dir() else out
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(merged, path, metadata={"format": "pt"})


def _merged(
    start: Tensors, experts: Sequence[Expert], rule: MergeRule, names: Sequence[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in names:
        origin = start[name]
        changes = []
        for place, expert in enumerate(experts):
            if (change := expert.change(name, origin)) is None:
                continue
            if not change.isfinite().all():
                raise UserError(f"{name!r} holds numbers that aren't finite", file=expert.path)
            changes.append((place, change))
        if changes:
            origin = (origin.float() + rule.combine(name, changes)).to(origin.dtype)
            if not origin.isfinite().all():
                raise UserError(f"{name!r} would hold numbers that aren't finite; smaller weights or scale help")
        yield name, origin
