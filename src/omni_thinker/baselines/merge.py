"""Merging of single-task experts, tensor by tensor, so that only one tensor of each model is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni_thinker.errors import UserError


def task_arithmetic(start: Path, experts: Sequence[Path], scale: float, out: Path) -> None:
    """out = start + scale x sum of (expert - start) (arXiv 2212.04089), computed in fp32.

    All are safetensors files of the same shapes. Raises UserError where they are not.
    """
    merged: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        base = stack.enter_context(safe_open(start, framework="pt"))
        others = [stack.enter_context(safe_open(path, framework="pt")) for path in experts]
        names = set(base.keys())
        for path, other in zip(experts, others, strict=True):
            if set(other.keys()) != names or any(_shape(other, name) != _shape(base, name) for name in names):
                raise UserError(f"holds other tensors than {start}", file=path)
        for name in sorted(names):
            origin = base.get_tensor(name)
            delta = torch.zeros_like(origin, dtype=torch.float32)
            for other in others:
                delta += other.get_tensor(name).float() - origin.float()
            merged[name] = (origin.float() + scale * delta).to(origin.dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, out)


def _shape(tensors: Any, name: str) -> list[int]:
    return list(tensors.get_slice(name).get_shape())
