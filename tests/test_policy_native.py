"""Kernels in C against the same in torch and fp64, and the decoder without them."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from omni_thinker.engine import native
from omni_thinker.engine.ops import apply_rope, rms_norm, swiglu
from omni_thinker.sampling.decoders.base import filled

SIZES = st.integers(1, 5)


@pytest.fixture(scope="module")
def c() -> ctypes.CDLL:
    found = native.kernels()
    if found is None:
        pytest.skip("no C compiler")
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def _nearest(value: torch.Tensor, found: torch.Tensor) -> None:
    """bf16 within half a unit of the exact value, and a little for what was rounded in fp32 before."""
    exact = value.double()
    assert float(((found.double() - exact).abs() - exact.abs() / 2**7.99).max()) <= 1e-6


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (5, 64), (300, 96)])
@pytest.mark.parametrize("added", [True, False])
def test_native_add_norm_equals_fp64_rounded(c: ctypes.CDLL, rows: int, width: int, added: bool) -> None:
    torch.manual_seed(0)
    x, weight = 3 * torch.randn(rows, width), torch.randn(width).bfloat16()
    branch, out = torch.randn(rows, width).bfloat16(), torch.empty(rows, width, dtype=torch.bfloat16)
    total = x + branch.float() if added else x.clone()
    pointer = branch.data_ptr() if added else None
    c.add_norm(x.data_ptr(), pointer, weight.data_ptr(), out.data_ptr(), None, rows, width, 1e-5)
    assert torch.equal(x, total)
    wide = total.double()
    _nearest(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double(), out)


def test_native_gate_of_every_bf16_number_equals_silu(c: ctypes.CDLL) -> None:
    """Covers every finite bf16 number, infinities and NaN."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    one = every[every.isfinite()][None]
    out, ones = torch.empty_like(one), torch.ones_like(one)
    c.gate(one.data_ptr(), ones.data_ptr(), out.data_ptr(), 1, one.shape[1], one.shape[1])
    _nearest(F.silu(one.double()), out)
    odd, other = torch.tensor([[math.nan, math.inf, 1.0, -math.inf], [2.0, 1.0, math.nan, 1.0]]).bfloat16()
    out = torch.empty(1, 4, dtype=torch.bfloat16)
    c.gate(odd.data_ptr(), other.data_ptr(), out.data_ptr(), 1, 4, 4)
    assert out.isnan().tolist() == [[True, False, True, True]]
    assert out[0, 1].item() == math.inf


def test_native_rope_stores_keys_and_values_in_their_slot(c: ctypes.CDLL) -> None:
    torch.manual_seed(0)
    rows, heads, kv, width, slots = 3, 4, 2, 6, 5
    product = torch.randn(rows, heads + 2 * kv, width).bfloat16()
    angle = torch.rand(rows, width // 2)
    cos, sin = (torch.cat([part, part], dim=1).contiguous() for part in (angle.cos(), angle.sin()))
    queries = torch.empty(rows, heads, width)
    keys, values = torch.zeros(2, rows, kv, slots, width)
    pointers = (part.data_ptr() for part in (product, cos, sin, queries, keys, values))
    c.turn_and_store(*pointers, rows, heads, kv, slots, 3, width)
    x = product.float()
    turned = x * cos[:, None] + torch.cat([-x[..., 3:], x[..., :3]], dim=-1) * sin[:, None]
    assert torch.allclose(queries, turned[:, :heads], atol=1e-6)
    assert torch.allclose(keys[:, :, 3], turned[:, heads : heads + kv], atol=1e-6)
    assert torch.equal(values[:, :, 3], x[:, heads + kv :])
    rest = [0, 1, 2, 4]
    assert not keys[:, :, rest].any()
    assert not values[:, :, rest].any()


@settings(max_examples=40)
@given(
    SIZES,
    SIZES,
    SIZES,
    st.integers(1, 3),
    st.sampled_from([6, 64, 128]),
    st.integers(0, 60),
    st.integers(1, 40),
    st.sampled_from([1, 16]),
)
def test_native_decode_attention_is_one_softmax_over_prompt_and_sample(
    groups: int, columns: int, per: int, kv: int, width: int, longest: int, used: int, multiple: int
) -> None:
    c = native.kernels()
    if c is None:
        pytest.skip("no C compiler")
    generator = torch.Generator().manual_seed(groups + 7 * columns + used)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens, slots, heads = filled(longest + 1, multiple), used + 3, kv * per
    lengths = torch.tensor([1 + (g * 3) % (longest + 1) for g in range(groups)])
    queries, keys, values = normal(groups * columns, heads, width), *normal(2, groups, kv, tokens, width)
    for group in range(groups):
        keys[group, :, lengths[group] :] = values[group, :, lengths[group] :] = 0
    own_keys, own_values = normal(2, groups * columns, kv, slots, width)
    own_keys[:, :, used:] = own_values[:, :, used:] = math.nan  # nobody looks there
    turned = keys.transpose(2, 3).contiguous()
    outs = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = torch.empty(groups * columns, heads * width, dtype=torch.bfloat16)
            parts = (queries, turned, values, lengths, own_keys, own_values, out)
            sizes = (groups, columns, heads, kv, width, tokens, slots, used)
            assert c.attend(*(part.data_ptr() for part in parts), None, 0.3, *sizes) == 0
            outs.append(out)
        some = torch.arange(groups * columns) % 3 != 1
        out = torch.full_like(outs[0], 7.0)
        where = (*parts[:-1], out, some)
        assert c.attend(*(part.data_ptr() for part in where), 0.3, *sizes) == 0
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outs), "whatever the number of threads"
    assert torch.equal(out[some], outs[0][some]), "whoever else is wanted"
    assert (out[~some] == 7.0).all(), "the others stay as they are"
    for row in range(groups * columns):
        group, length = row // columns, int(lengths[row // columns])
        for head in range(heads):
            k = torch.cat([keys[group, head // per, :length], own_keys[row, head // per, :used]]).double()
            v = torch.cat([values[group, head // per, :length], own_values[row, head // per, :used]]).double()
            share = (0.3 * (k @ queries[row, head].double())).softmax(0)
            expected = share @ v
            found = outs[0][row, head * width : (head + 1) * width].double()
            assert float((found - expected).abs().max()) < 2e-2


def test_missing_or_failing_compiler_disables_the_kernels(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.kernels() is None
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    native.kernels.cache_clear()
    assert native.kernels() is None
    assert not list(tmp_path.glob("home/native/*"))


def test_environment_switch_disables_the_kernels(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.kernels() is None


def test_kernels_are_compiled_once_and_read_from_the_cache(
    c: ctypes.CDLL, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path))
    assert native.kernels() is not None
    (made,) = tmp_path.glob("native/*/kernels.so")
    before = made.stat().st_mtime_ns
    native.kernels.cache_clear()
    assert native.kernels() is not None
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["emptied", "cut short", "gone", "no digest"])
def test_damaged_kernel_library_is_recompiled(c: ctypes.CDLL, tmp_path: Path, damage: str) -> None:
    """Uses separate processes, because each can load a library only once."""
    environment = {**os.environ, "OMNI_THINKER_HOME": str(tmp_path)}
    script = "from omni_thinker.engine.native import kernels; assert kernels() is not None"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        (made,) = tmp_path.glob("native/*/kernels.so")
        whole = made.read_bytes()
        if damage in ("gone", "no digest"):
            (made if damage == "gone" else made.with_name("sha256")).unlink()
        else:
            made.write_bytes(whole[:-64] if damage == "cut short" else b"")
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert len(made.read_bytes()) == len(whole)


def test_clang_is_skipped_for_gcc(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    other = tmp_path / "cc"
    other.write_text("#!/bin/sh\necho Debian clang version 17\n")
    other.chmod(0o755)
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    assert native.kernels() is not None, "by gcc, which is asked next"
    (tmp_path / "gcc").symlink_to(other)
    native.kernels.cache_clear()
    assert native.kernels() is None


def test_missing_or_unwritable_home_disables_the_kernels(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native, "home", homeless)
    assert native.kernels() is None
    monkeypatch.setattr(native, "home", lambda: tmp_path / "file" / "home")
    (tmp_path / "file").write_text("no folder")
    native.kernels.cache_clear()
    assert native.kernels() is None


def test_kernel_outputs_have_their_dtype_whatever_the_default_dtype() -> None:
    """Loading a model in bf16 changes torch's default dtype for all threads meanwhile."""
    script = """
import torch
from omni_thinker.engine import ops as kernels
torch.set_default_dtype(torch.bfloat16)
x = torch.randn(64, 576, dtype=torch.float32, requires_grad=True)
out = kernels.rms_norm(x, torch.ones(576), 1e-5)
out.float().sum().backward()
wide = x.detach().double()
assert torch.allclose(out.double(), wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5), atol=2e-2)
_, inverse = kernels._rms_norm(x.detach(), torch.ones(576), 1e-5)
turned = kernels.apply_rope_no_grad(torch.ones(5, 2, 4), *torch.ones(2, 5, 1, 4, dtype=torch.float32))
assert inverse.dtype == turned.dtype == torch.float32
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unsupported_shapes_and_dtypes_equal_torch(c: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = torch.randn(2, 3, 40).bfloat16(), torch.randn(2, 3, 40).bfloat16()
    x, grad = torch.randn(6, 2, 8).bfloat16().requires_grad_(), torch.randn(6, 2, 8)
    angle = torch.randn(1, 1, 8)
    spread = angle.expand(6, 1, 8)

    def compute() -> list[torch.Tensor]:
        turned = apply_rope(x, spread, spread)
        return [
            swiglu(one, other),
            swiglu(one, other.float()),
            apply_rope(x, angle, angle).detach(),
            turned.detach(),
            *torch.autograd.grad(turned, x, grad.to(turned.dtype)),
        ]

    found = compute()
    _by_torch(monkeypatch)
    for one_, other_ in zip(found, compute(), strict=True):
        torch.testing.assert_close(one_, other_, atol=2e-2, rtol=2e-2)


def test_second_order_gradient_of_rms_norm_raises(c: ctypes.CDLL) -> None:
    x, weight = torch.randn(3, 16, requires_grad=True), torch.ones(16).bfloat16().requires_grad_()
    (once,) = torch.autograd.grad(rms_norm(x, weight, 1e-5).float().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(once.sum(), x)


def test_native_norm_of_nan_is_nan(c: ctypes.CDLL) -> None:
    for bits in (0x7FFFFFFF, 0x7F800001, -1, 0x7FC00000):
        x = torch.ones(1, 16)
        x.view(torch.int32)[0, 3] = bits
        out = torch.empty(1, 16, dtype=torch.bfloat16)
        c.add_norm(x.data_ptr(), None, torch.ones(16).bfloat16().data_ptr(), out.data_ptr(), None, 1, 16, 1e-5)
        assert out.isnan().all()


def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.engine.ops.kernels", lambda: None)


@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize("kind", ["norm", "norm of a row of others", "gate", "rotation", "rotation in a row of others"])
def test_native_gradients_are_as_close_to_fp64_as_torch(
    c: ctypes.CDLL, kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    angle = normal(rows, 1, 4)
    cos, sin = (torch.cat([part, part], dim=-1) for part in (angle.cos(), angle.sin()))
    inputs: list[torch.Tensor]
    if kind.startswith("norm"):
        inputs, grad = [3 * normal(rows, 24), normal(24).bfloat16()], normal(rows, 24).bfloat16()
    elif kind == "gate":
        inputs, grad = [normal(rows, 40).bfloat16(), normal(rows, 40).bfloat16()], normal(rows, 40).bfloat16()
    else:
        wide = normal(rows, 5, 8)
        inputs, grad = [normal(rows, 3, 8).bfloat16()], wide[:, 1:4] if "row" in kind else wide[:, :3].contiguous()

    def compute(dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        own = [(x.to(dtype) if dtype else x).detach().clone().requires_grad_() for x in inputs]
        if kind == "norm of a row of others" and dtype is None:  # not contiguous, as views of a wider tensor
            own[0] = torch.cat([own[0].detach()] * 2, dim=1).requires_grad_()
            out = rms_norm(own[0][:, :24], own[1], 1e-5)
            found = torch.autograd.grad(out, own, grad)
            return [out.detach(), found[0][:, :24], found[1]]
        if dtype is not None:
            out = _exact(kind, own, cos.to(dtype), sin.to(dtype))
        elif kind == "norm":
            out = rms_norm(own[0], own[1], 1e-5)
        else:
            out = swiglu(*own) if kind == "gate" else apply_rope(own[0], cos, sin)
        return [out.detach(), *torch.autograd.grad(out, own, grad.to(out.dtype))]

    found, exact = compute(), compute(torch.float64)
    _by_torch(monkeypatch)
    for one, other, true in zip(found, compute(), exact, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = float(true.abs().max())
        ours, theirs = (float((x.double() - true).abs().max()) / scale for x in (one, other))
        assert ours < (4e-3 if one.dtype == torch.bfloat16 else 1e-5)
        assert ours <= 1.5 * theirs + 1e-6, "no worse than torch"


def _exact(kind: str, x: list[torch.Tensor], cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    if kind.startswith("norm"):
        return x[0] * torch.rsqrt(x[0].square().mean(-1, keepdim=True) + 1e-5) * x[1]
    if kind == "gate":
        return F.silu(x[0]) * x[1]
    return x[0] * cos + torch.cat([-x[0][..., 4:], x[0][..., :4]], dim=-1) * sin


def test_rms_norm_gradient_is_the_same_with_any_number_of_threads(c: ctypes.CDLL) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1000, 32), torch.randn(32).bfloat16()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            own = x.clone().requires_grad_(), weight.clone().requires_grad_()
            rms_norm(*own, 1e-5).sum().backward()
            found.append([part.grad for part in own])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert all(part is not None for part in found[0])
