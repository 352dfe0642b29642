"""Draws, log-probs and their gradient by the kernels in C, against torch in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.engine import native
from omni_thinker.engine.softmax import ROWS_AT_ONCE, HeadLogprobs, logit_gradient, logprob_entropy
from omni_thinker.sampling.draw import draw
from omni_thinker.types import SamplingParams

SHAPES = [(1, 7), (ROWS_AT_ONCE + 3, 256), (5, 1000), (33, 513)]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if native.kernels() is None:
        pytest.skip("no C compiler")


def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sampling.draw", "engine.softmax"):
        monkeypatch.setattr(f"omni_thinker.{module}.kernels", lambda: None)


def _made(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(rows * width)
    logits = (6 * torch.randn(rows, width, generator=rng) + 20).bfloat16()
    return logits, torch.randint(width, (rows,), generator=rng), torch.randn(rows, generator=rng)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_logprobs_entropy_and_gradient_equal_fp64(
    rows: int, width: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, target, grad = _made(rows, width)
    exact = logits.double().requires_grad_()
    every = torch.log_softmax(exact * scale, -1)
    chosen = every.gather(-1, target[:, None])[:, 0]
    [gradient] = torch.autograd.grad(chosen, exact, grad.double())
    for by_torch in (False, True):
        if by_torch:
            _by_torch(monkeypatch)
        found, entropy, less = logprob_entropy(logits, target, scale)
        torch.testing.assert_close(found.double(), chosen.detach(), atol=2e-5, rtol=1e-6)
        torch.testing.assert_close(entropy.double(), -(every.exp() * every).sum(-1).detach(), atol=2e-5, rtol=1e-5)
        apart = logit_gradient(logits, target, less, grad, scale, torch.empty_like(logits))
        own = logits.clone()
        assert logit_gradient(own, target, less, grad, scale, own) is own
        assert torch.equal(own, apart)
        # Rounded once: within half a unit of bf16, and what fp32 loses of a difference of numbers around 20.
        error = (apart.double() - gradient).abs() - gradient.abs() / 2**7.9
        assert float(error.max()) <= 2e-5 * scale * float(grad.abs().max())


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradient_of_entropies_equals_fp64(dtype: torch.dtype, scale: float) -> None:
    logits, target, grad = _made(11, 300)
    logits = logits.to(dtype)
    logits[3, 7] = -torch.inf
    target[3] = 8
    more = grad.flip(0)
    exact = logits.double().clamp(min=-1e4).requires_grad_()
    every = torch.log_softmax(exact * scale, -1)
    entropy = -(every.exp() * every).sum(-1)
    chosen = every.gather(-1, target[:, None])[:, 0]
    [gradient] = torch.autograd.grad([chosen, entropy], exact, [grad.double(), more.double()])
    _, found, less = logprob_entropy(logits, target, scale)
    own = logits.clone()
    logit_gradient(own, target, less, grad, scale, own, (more, found))
    error = (own.double() - gradient).abs()
    rounding = gradient.abs() / 2**7.9 if dtype == torch.bfloat16 else 0.0
    assert float((error - rounding).max()) <= 2e-4 * scale


@pytest.mark.parametrize("rows", [3, 20])
def test_entropies_of_a_head_pass_on_their_gradient(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.engine.softmax._HELD", 8 * 40 * 4)  # 8 rows at once
    rng = torch.Generator().manual_seed(rows)
    states = torch.randn(rows, 6, generator=rng, requires_grad=True)
    head = torch.randn(40, 6, generator=rng, requires_grad=True)
    target, weights = torch.randint(40, (rows,), generator=rng), torch.randn(2, rows, generator=rng)
    every = torch.log_softmax(states @ head.t() * 0.8, -1)
    expected = every.gather(-1, target[:, None])[:, 0], -(every.exp() * every).sum(-1)
    for used in ((0, 1), (1,), (0,)):
        both = HeadLogprobs.apply(states, head, target, 0.8)  # type: ignore[no-untyped-call]
        ours = torch.stack([(both[n] * weights[n]).sum() for n in used]).sum()
        theirs = torch.stack([(expected[n] * weights[n]).sum() for n in used]).sum()
        found = torch.autograd.grad(ours, (states, head))
        exact = torch.autograd.grad(theirs, (states, head), retain_graph=True)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.floats(0, 1, exclude_max=True), st.sampled_from([1.0, 0.7, 1.5]))
def test_draw_is_where_the_cumulative_probability_passes_the_uniform(
    width: int, uniform: float, temperature: float
) -> None:
    logits, _, _ = _made(3, width)
    token, logprob = draw(
        logits, torch.full((3,), uniform, dtype=torch.float64), SamplingParams(temperature=temperature)
    )
    share = torch.softmax(logits.double() / temperature, -1)
    sums = share.cumsum(-1)
    for row in range(3):
        at = int(token[row])
        assert (float(sums[row, at - 1]) if at else 0.0) <= uniform + 1e-6
        assert float(sums[row, at]) >= uniform - 1e-6
        assert float(logprob[row]) == pytest.approx(float(share[row, at].log()), abs=1e-4)


def test_native_draws_pass_a_chi_squared_test_against_softmax() -> None:
    count = 100_000
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -1.0, 3.0]).bfloat16()
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    token, _ = draw(logits.expand(count, -1), uniform, SamplingParams(temperature=1.3))
    expected = torch.softmax(logits.double() / 1.3, -1) * count
    seen = torch.bincount(token, minlength=6).double()
    assert seen[2] == 0
    real = expected > 0
    assert float(((seen - expected)[real].square() / expected[real]).sum()) < 18.5  # chi-square, 4 degrees, 0.1 %


def test_native_draws_equal_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, _, _ = _made(40, 5000)
    uniform = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    token, logprob = draw(logits, uniform, SamplingParams())
    _by_torch(monkeypatch)
    other, other_logprob = draw(logits, uniform, SamplingParams())
    assert torch.equal(token, other)
    torch.testing.assert_close(logprob, other_logprob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_or_inf_logits_give_a_non_finite_logprob_and_gradient(bad: float) -> None:
    logits, target, grad = _made(2, 600)
    logits[1, 300] = bad
    token, logprob = draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), SamplingParams())
    assert logprob.isfinite().tolist() == [True, False]
    assert ((token >= 0) & (token < 600)).all()
    chosen, _, less = logprob_entropy(logits, target, 1.0)
    assert chosen.isfinite().tolist() == [True, False]
    gradient = logit_gradient(logits, target, less, grad, 1.0, torch.empty_like(logits))
    assert gradient[0].isfinite().all()
    assert not gradient[1].isfinite().all()


def test_row_of_minus_infinity_gives_a_nan_logprob() -> None:
    logits = torch.full((1, 20), -torch.inf).bfloat16()
    _, logprob = draw(logits, torch.tensor([0.5], dtype=torch.float64), SamplingParams())
    assert logprob.isnan().all()


def test_targets_outside_the_vocabulary_raise_index_error() -> None:
    logits, _, grad = _made(2, 7)
    for bad in (7, -1):
        target = torch.tensor([0, bad])
        with pytest.raises(IndexError):
            logprob_entropy(logits, target, 1.0)
        with pytest.raises(IndexError):
            logit_gradient(logits, target, torch.zeros(2), grad, 1.0, logits.clone())
