"""Hand-written gradients against autograd's, and attention in parts against attention over the whole row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from omni_thinker.engine.attention.flex import flex_attention_over, row_mask
from omni_thinker.engine.attention.native_cpu import RowParts, native_attention, suits
from omni_thinker.engine.attention.shared_prompts import SharedPrompts, shared_attention
from omni_thinker.engine.ops import apply_rope, rms_norm, swiglu
from omni_thinker.engine.packing import pack
from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample

Shapes = Sequence[tuple[int, Sequence[int]]]
TYPES = [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]


def _close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        one, other = a.detach().double(), b.detach().double()
        assert float((one - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1.0)


def _same(
    ours: Callable[..., torch.Tensor],
    theirs: Callable[..., torch.Tensor],
    inputs: Sequence[torch.Tensor],
    tolerance: float,
) -> None:
    """Values and gradients."""
    inputs = [x.requires_grad_() for x in inputs]
    one, other = ours(*inputs), theirs(*inputs)
    grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(one.dtype)
    kept = [x.detach().clone() for x in inputs]
    found, expected = (torch.autograd.grad(out, inputs, grad) for out in (one, other))
    _close([one, *found], [other, *expected], tolerance)
    assert all(torch.equal(x, before) for x, before in zip(inputs, kept, strict=True)), "inputs are left alone"


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES[1:])
@pytest.mark.parametrize("shape", [(7, 32), (5, 3, 16)])
def test_rms_norm_and_its_gradient_equal_transformers(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, weight = (3 * torch.randn(shape)).to(dtype), (1 + 0.1 * torch.randn(shape[-1])).to(dtype)
    module = LlamaRMSNorm(shape[-1], eps=1e-5)

    def theirs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(module, {"weight": weight}, (x,))
        return out

    _same(lambda x, weight: rms_norm(x, weight, 1e-5), theirs, [x, weight], tolerance)
    assert not rms_norm(torch.zeros(2, 4), torch.ones(4), 1e-5).any()


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_apply_rope_and_its_gradient_equal_transformers(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    angle = torch.rand(6, 1, 8, dtype=torch.float64)
    cos, sin = (torch.cat([part, part], dim=-1).to(dtype) for part in (angle.cos(), angle.sin()))

    def theirs(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = apply_rotary_pos_emb(x, x, cos[:, 0], sin[:, 0], unsqueeze_dim=1)[0]
        return out

    _same(lambda x: apply_rope(x, cos, sin), theirs, [torch.randn(6, 3, 16, dtype=torch.float64).to(dtype)], tolerance)


def test_apply_rope_with_fp32_angles_returns_fp32() -> None:
    torch.manual_seed(0)
    x, angle = torch.randn(6, 3, 16).bfloat16().requires_grad_(), torch.rand(6, 1, 8)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin()))
    out = apply_rope(x, cos, sin)
    half = x.detach().float().split(8, dim=-1)
    first = half[0] * angle.cos() - half[1] * angle.sin()
    assert out.dtype == torch.float32
    assert torch.allclose(out[..., :8].detach(), first, atol=1e-6)
    (grad,) = torch.autograd.grad(out.sum(), [x])
    assert grad.dtype == torch.bfloat16


def test_swiglu_in_bf16_rounds_once() -> None:
    torch.manual_seed(0)
    both = torch.randn(150, 40).bfloat16()
    gate, up = both.chunk(2, dim=-1)  # views, as the decoder has them
    assert torch.equal(swiglu(gate, up), (F.silu(gate.float()) * up.float()).bfloat16())


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_swiglu_gradient_equals_autograd(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(9, 20, dtype=torch.float64).to(dtype) for _ in range(2))
    _same(swiglu, lambda gate, up: F.silu(gate) * up, [gate, up], tolerance)


def _whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shapes: Shapes, scale: float) -> torch.Tensor:
    """Softmax over a masked square, in fp64."""
    length, per = len(query), query.shape[1] // key.shape[1]
    mask = torch.zeros(length, length, dtype=torch.bool)
    at = 0
    for prompt, samples in shapes:
        begin, end = at, at + prompt
        mask[begin:end, begin:end] = torch.ones(prompt, prompt, dtype=torch.bool).tril()
        at = end
        for count in samples:
            own = slice(at, at + count)
            mask[own, begin:end] = True
            mask[own, own] = torch.ones(count, count, dtype=torch.bool).tril()
            at += count
    q, k, v = query.double(), key.double().repeat_interleave(per, 1), value.double().repeat_interleave(per, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    weights = scores.masked_fill(~mask, -1e300).softmax(-1)
    out = torch.einsum("hij,jhd->ihd", weights, v) * mask.any(1)[:, None, None]
    return out.to(query.dtype)


_lengths = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=1, max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=60)
@given(_lengths, st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.integers(0, 5), st.integers(0, 2**31))
def test_shared_attention_equals_attention_over_the_whole_row(
    shapes: list[tuple[int, list[int]]], heads: tuple[int, int], filling: int, seed: int
) -> None:
    """Covers ragged groups, samples of one token (which add no token to the row), and padded rows."""
    generator = torch.Generator().manual_seed(seed)
    length = sum(prompt + sum(samples) for prompt, samples in shapes) + filling
    rows = [torch.randn(length, own, 8, generator=generator) for own in (heads[0], heads[1], heads[1])]
    where = SharedPrompts.of(shapes, length, heads=heads[0], kv_heads=heads[1])

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return shared_attention(q, k, v, where, 0.3)

    _same(ours, lambda q, k, v: _whole(q, k, v, shapes, 0.3), rows, 1e-5)


def test_flex_attention_equals_attention_over_the_whole_row() -> None:
    """Runs what a GPU computes, uncompiled on a CPU, where it has no backward pass."""
    shapes = [(9, (4, 0, 7)), (3, (5,))]
    tokens = [[tuple(range(1, size + 2)) for size in samples] for _, samples in shapes]
    groups = [
        TrainGroup("t", tuple(range(prompt)), tuple(Sample(t, (), "", "stop") for t in own), (), ())
        for (prompt, _), own in zip(shapes, tokens, strict=True)
    ]
    row = pack(groups, 64)
    mask = row_mask(row, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    length = len(row.tokens_T)
    rows = [torch.randn(length, own, 16, generator=generator) for own in (4, 2, 2)]
    real = (row.group_T >= 0)[:, None, None]  # what fills up sees itself, which nobody reads

    out = flex_attention_over(mask, rows[0], rows[1], rows[2], 0.3) * real
    torch.testing.assert_close(out, _whole(rows[0], rows[1], rows[2], shapes, 0.3), atol=1e-5, rtol=1e-5)


def test_shared_attention_in_bf16_equals_attention_over_the_whole_row() -> None:
    torch.manual_seed(0)
    shapes = [(40, (30, 31, 3)), (12, (17,))]
    length = sum(prompt + sum(samples) for prompt, samples in shapes)
    rows = [torch.randn(length, own, 64).bfloat16() for own in (6, 2, 2)]
    where = SharedPrompts.of(shapes, length, heads=6, kv_heads=2)

    def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return shared_attention(q, k, v, where, 0.125)

    _same(ours, lambda q, k, v: _whole(q, k, v, shapes, 0.125), rows, 2e-2)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 35), max_size=5)), min_size=1, max_size=3),
    st.sampled_from([(3, 1), (4, 2), (2, 2)]),
    st.sampled_from([16, 48, 64, 128]),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_native_attention_equals_attention_over_the_whole_row(
    shapes: list[tuple[int, list[int]]], heads: tuple[int, int], width: int, filling: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    length = sum(prompt + sum(samples) for prompt, samples in shapes) + filling
    rows = [torch.randn(length, own, width, generator=generator) for own in (heads[0], heads[1], heads[1])]
    query, key, value = rows[0], rows[1], rows[2].bfloat16()
    if not suits(query, key, value):
        pytest.skip("no C compiler")
    parts = RowParts.of(shapes)
    grad = torch.randn(length, heads[0], width, generator=generator).bfloat16()

    def gradients(out: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]

    mine = [x.clone().requires_grad_() for x in (query, key, value)]
    exact = [x.double().requires_grad_() for x in (query, key, value)]
    found = gradients(native_attention(mine[0], mine[1], mine[2], parts, 0.2), mine)
    expected = gradients(_whole(exact[0], exact[1], exact[2], shapes, 0.2), exact)
    for one, other in zip(found, expected, strict=True):
        tolerance = 1e-5 if one.dtype == torch.float32 else 2**-8
        assert float((one.double() - other).abs().max()) <= tolerance * max(float(other.abs().max()), 1.0)
    assert not found[0][length - filling :].any()
    assert not any(part[length - filling :].any() for part in found[1:])


def test_native_attention_is_the_same_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    shapes: list[tuple[int, list[int]]] = [(30, [20, 3]), (7, [9]), (50, [])]
    length = sum(prompt + sum(samples) for prompt, samples in shapes)
    query, key, value = torch.randn(length, 4, 32), torch.randn(length, 2, 32), torch.randn(length, 2, 32).bfloat16()
    if not suits(query, key, value):
        pytest.skip("no C compiler")
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            own = [x.clone().requires_grad_() for x in (query, key, value)]
            out = native_attention(own[0], own[1], own[2], RowParts.of(shapes), 0.2)
            found.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), own)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_samples_of_a_group_do_not_attend_to_each_other() -> None:
    """No value and no gradient of one sample reaches another."""
    torch.manual_seed(0)
    where = SharedPrompts.of([(3, (4, 4))], 11, heads=2, kv_heads=2)
    q, k, v = (torch.randn(11, 2, 8, requires_grad=True) for _ in range(3))
    out = shared_attention(q, k, v, where, 0.3)
    grads = torch.autograd.grad(out[3:7].sum(), (q, k, v))
    for grad in grads:
        assert not grad[7:].any()
        assert grad[3:7].any()
    assert grads[1][:3].any(), "both see the prompt"
