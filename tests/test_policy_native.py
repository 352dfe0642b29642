"""Kernels in C against the same in torch and fp64, and the decoder without them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from omni_thinker.policy import native
from omni_thinker.policy.decoder import filled

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
def test_norm_of_a_sum(c: ctypes.CDLL, rows: int, width: int, added: bool) -> None:
    torch.manual_seed(0)
    x, weight = 3 * torch.randn(rows, width), torch.randn(width).bfloat16()
    branch, out = torch.randn(rows, width).bfloat16(), torch.empty(rows, width, dtype=torch.bfloat16)
    total = x + branch.float() if added else x.clone()
    pointer = branch.data_ptr() if added else None
    c.add_norm(x.data_ptr(), pointer, weight.data_ptr(), out.data_ptr(), rows, width, 1e-5)
    assert torch.equal(x, total)
    wide = total.double()
    _nearest(wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * weight.double(), out)


def test_gate_over_all_of_bf16(c: ctypes.CDLL) -> None:
    """Every finite number that a gate can be, and those that are none."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    one = every[every.isfinite() & (every.abs() < 1e4)][None]
    both, out = torch.cat([one, torch.ones_like(one)], dim=1), torch.empty_like(one)
    c.gate(both.data_ptr(), out.data_ptr(), 1, one.shape[1])
    _nearest(F.silu(one.double()), out)
    odd = torch.tensor([[math.nan, math.inf, 1.0, 2.0, 1.0, math.nan]]).bfloat16()
    out = torch.empty(1, 3, dtype=torch.bfloat16)
    c.gate(odd.data_ptr(), out.data_ptr(), 1, 3)
    assert out.isnan().tolist() == [[True, False, True]]
    assert out[0, 1].item() == math.inf


def test_turning_stores_keys_and_values_in_their_slot(c: ctypes.CDLL) -> None:
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
def test_attention_is_one_softmax_over_prompt_and_own_tokens(
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
            assert c.attend(*(part.data_ptr() for part in parts), 0.3, *sizes) == 0
            outs.append(out)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*outs), "whatever the number of threads"
    for row in range(groups * columns):
        group, length = row // columns, int(lengths[row // columns])
        for head in range(heads):
            k = torch.cat([keys[group, head // per, :length], own_keys[row, head // per, :used]]).double()
            v = torch.cat([values[group, head // per, :length], own_values[row, head // per, :used]]).double()
            share = (0.3 * (k @ queries[row, head].double())).softmax(0)
            expected = share @ v
            found = outs[0][row, head * width : (head + 1) * width].double()
            assert float((found - expected).abs().max()) < 2e-2


def test_without_a_compiler_torch_does_it(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.kernels() is None
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    native.kernels.cache_clear()
    assert native.kernels() is None
    assert not list(tmp_path.glob("home/native/*"))


def test_a_switch_turns_it_off(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "0")
    assert native.kernels() is None


def test_the_library_is_compiled_once(
    c: ctypes.CDLL, fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path))
    assert native.kernels() is not None
    (made,) = tmp_path.glob("native/*")
    before = made.stat().st_mtime_ns
    native.kernels.cache_clear()
    assert native.kernels() is not None
    assert made.stat().st_mtime_ns == before
