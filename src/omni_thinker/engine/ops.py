"""Small functions with hand-written gradients: fewer passes over memory and less kept than autograd makes of them.

The same numbers as transformers' modules for Llama and its like, in any floating-point type; in bf16 on a CPU by the
kernels in C, where there are any."""

import ctypes
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from omni_thinker.engine.native import kernels

_GATE_ROWS = 64
"""Rows of a feed-forward part whose fp32 copies stay in a core's own cache."""
_NORM_ROWS = 64
"""Rows over which a norm's gradient is summed before the blocks are: in an order that no number of threads changes."""


class _RmsNorm(torch.autograd.Function):
    """weight x (x / root mean square of its last dimension), in fp32 (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out, inverse = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        if (c := _native(weight, x)) is not None:
            grad, x = grads[0].contiguous(), x.contiguous()
            x_grad = torch.empty_like(x)
            rows, width = x.numel() // x.shape[-1], x.shape[-1]
            blocks = x.new_empty(-(-rows // _NORM_ROWS), width)
            tensors = (grad, x, weight, inverse, x_grad, blocks)
            c.norm_backward(*(tensor.data_ptr() for tensor in tensors), rows, width, _NORM_ROWS)
            return x_grad, blocks.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None, None
        x_32, grad, scale = x.float(), grads[0].float(), weight.float()
        weight_grad = None
        product = grad * x_32
        if ctx.needs_input_grad[1]:
            weight_grad = torch.mv(product.flatten(0, -2).t(), inverse.flatten()).to(weight.dtype)
        along = (product @ scale)[..., None].mul_(inverse.pow(3)).div_(-x.shape[-1])
        return torch.mul(grad, scale, out=product).mul_(inverse).addcmul_(x_32, along).to(x.dtype), weight_grad, None


class _ApplyRope(torch.autograd.Function):
    """Rotary positions (arXiv 2104.09864); the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return apply_rope_no_grad(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grads[0]
        if ctx.dtype == torch.bfloat16 and _fit(grad, cos, sin) and (c := _native(None, grad, cos, sin)) is not None:
            rows, heads, width = grad.shape
            if grad.stride()[1:] != (width, 1):
                grad = grad.contiguous()
            out = torch.empty_like(grad, dtype=ctx.dtype, memory_format=torch.contiguous_format)
            c.turn_back(*(tensor.data_ptr() for tensor in (grad, cos, sin, out)), rows, heads, width, grad.stride(0))
            return out, None, None
        return apply_rope_no_grad(grads[0], cos, -sin).to(ctx.dtype), None, None


class _Swiglu(torch.autograd.Function):
    """silu(gate) x up (arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        if (c := _native(gate)) is not None:
            grad, gate, up = grads[0].contiguous(), gate.contiguous(), up.contiguous()
            outs = torch.empty_like(gate), torch.empty_like(gate)
            rows, width = gate.numel() // gate.shape[-1], gate.shape[-1]
            c.gate_backward(*(tensor.data_ptr() for tensor in (grad, gate, up, *outs)), rows, width)
            return outs
        gate_grad = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return gate_grad, F.silu(gate).mul_(grads[0])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See _RmsNorm. `x` is [..., C], `weight` [C], whose type the result has."""
    if not torch.is_grad_enabled():
        return _rms_norm(x, weight, eps)[0]  # a Function's own cost counts where rows are few
    out: torch.Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See _ApplyRope. `x` is [T, heads, width]; `cos` and `sin` [T, 1, width], both halves of the width alike. The
    result has the wider type of `x` and `cos`: with angles in fp32 nothing is rounded before attention, which is in
    fp32 too."""
    out: torch.Tensor = _ApplyRope.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """See _Swiglu. `gate` and `up` are [T, C]."""
    if not torch.is_grad_enabled():
        return _swiglu(gate, up)
    out: torch.Tensor = _Swiglu.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def _native(narrow: torch.Tensor | None, *wide: torch.Tensor) -> ctypes.CDLL | None:
    """The kernels in C, where they know these: a tensor in bf16 and others in fp32, on a CPU."""
    if narrow is not None and (narrow.dtype != torch.bfloat16 or narrow.device.type != "cpu"):
        return None
    if any(tensor.dtype != torch.float32 or tensor.device.type != "cpu" for tensor in wide):
        return None
    return kernels()


def _fit(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether there is an angle for each number of a head of `x` [T, heads, width], as the kernels read them."""
    return cos.shape == sin.shape == (len(x), 1, x.shape[-1]) and cos.is_contiguous() and sin.is_contiguous()


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    if x.is_contiguous() and (c := _native(weight, x)) is not None:
        out, inverse = torch.empty_like(x, dtype=weight.dtype), x.new_empty(*x.shape[:-1], 1)
        rows, width = inverse.numel(), x.shape[-1]
        tensors = (weight, out, inverse)
        c.add_norm(x.data_ptr(), None, *(tensor.data_ptr() for tensor in tensors), rows, width, eps)
        return out, inverse
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
    return (x.float() * inverse).mul_(weight).to(weight.dtype), inverse  # rounded once


def apply_rope_no_grad(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What `apply_rope` computes, without a gradient."""
    if _fit(x, cos, sin) and (c := _native(x, cos, sin)) is not None:
        x = x.contiguous()
        rotated = torch.empty_like(x, dtype=cos.dtype)
        c.turn_heads(*(tensor.data_ptr() for tensor in (x, cos, sin, rotated)), *x.shape)
        return rotated
    half = x.shape[-1] // 2
    out = x * cos
    x = x.to(out.dtype)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Rounded once."""
    if gate.dtype == torch.float32 or gate.dtype == torch.float64:
        return F.silu(gate).mul_(up)
    alike = gate.dim() == 2 and gate.shape == up.shape and gate.stride() == up.stride() and gate.dtype == up.dtype
    if alike and gate.stride(1) == 1 and (c := _native(gate)) is not None:
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        c.gate(*(tensor.data_ptr() for tensor in (gate, up, out)), len(gate), gate.shape[1], gate.stride(0))
        return out
    out = torch.empty_like(gate, memory_format=torch.contiguous_format)
    rows = _GATE_ROWS if gate.device.type == "cpu" else max(1, len(gate))
    for out_rows, gate_rows, up_rows in zip(out.split(rows), gate.split(rows), up.split(rows), strict=True):
        out_rows.copy_(F.silu(gate_rows.float(), inplace=True).mul_(up_rows))
    return out
