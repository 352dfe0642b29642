"""Merging of single-task experts, tensor by tensor, so that only one tensor of each model is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni_thinker.errors import UserError


def task_arithmetic(start: Path, experts: Sequence[Path], scale: float, out: Path) -> None:
    """out = start + scale x sum of (expert - start) (arXiv 2212.04089), computed in fp32.

    All are safetensors files of the same shapes. Raises UserError where they are not.
    """
    for path in experts:
        if _shapes(path) != _shapes(start):
            raise UserError(f"holds other tensors than {start}", file=path)
    merged = {name: _merged(start, experts, scale, name) for name in sorted(_shapes(start))}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, out)


def _merged(start: Path, experts: Sequence[Path], scale: float, name: str) -> torch.Tensor:
    origin = _tensor(start, name)
    delta = torch.zeros_like(origin, dtype=torch.float32)
    for path in experts:
        delta += _tensor(path, name).float() - origin.float()
    return (origin.float() + scale * delta).to(origin.dtype)


def _tensor(path: Path, name: str) -> torch.Tensor:
    """Opened anew each time: what an open file has shown stays mapped, and counts as memory of this process."""
    with safe_open(path, framework="pt") as tensors:
        tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as tensors:
        return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - no mapping
