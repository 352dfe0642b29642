"""Small functions with hand-written gradients: fewer passes over memory and less kept than autograd makes of them.

The same numbers as transformers' modules for Llama and its like, in any floating-point type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_ROWS = 64
"""Rows of a feed-forward part whose fp32 copies stay in a core's own cache."""


class _RmsNorm(torch.autograd.Function):
    """weight x (x / root mean square of its last dimension), in fp32 (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, inverse = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        x_32, grad, scale = x.float(), grads[0].float(), weight.float()
        weight_grad = None
        product = grad * x_32
        if ctx.needs_input_grad[1]:
            weight_grad = torch.mv(product.flatten(0, -2).t(), inverse.flatten()).to(weight.dtype)
        along = (product @ scale)[..., None].mul_(inverse.pow(3)).div_(-x.shape[-1])
        return torch.mul(grad, scale, out=product).mul_(inverse).addcmul_(x_32, along).to(x.dtype), weight_grad, None


class _Rotate(torch.autograd.Function):
    """Rotary positions (arXiv 2104.09864); the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotated(grads[0], cos, -sin).to(ctx.dtype), None, None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) x up (arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        gate_grad = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return gate_grad, F.silu(gate).mul_(grads[0])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See _RmsNorm. `x` is [..., C], `weight` [C], whose type the result has."""
    if not torch.is_grad_enabled():
        return _normed(x, weight, eps)[0]  # a Function's own cost counts where rows are few
    out: torch.Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See _Rotate. `x` is [T, heads, width]; `cos` and `sin` [T, 1, width], both halves of the width alike. The result
    has the wider type of `x` and `cos`: with angles in fp32 nothing is rounded before attention, which is in fp32 too.
    """
    out: torch.Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def gated_silu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See _GatedSilu."""
    out: torch.Tensor = _GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
    return (x.float() * inverse).mul_(weight).to(weight.dtype), inverse  # rounded once


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What `rotate` computes, without a gradient."""
    half = x.shape[-1] // 2
    out = x * cos
    x = x.to(out.dtype)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What `gated_silu` computes of [T, C] each, without a gradient; rounded once."""
    if gate.dtype == torch.float32 or gate.dtype == torch.float64:
        return F.silu(gate).mul_(up)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    rows = _ROWS if gate.device.type == "cpu" else max(1, len(gate))
    for own, one, other in zip(out.split(rows), gate.split(rows), up.split(rows), strict=True):
        own.copy_(F.silu(one.float(), inplace=True).mul_(other))
    return out
