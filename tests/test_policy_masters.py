"""Updates through fp32 masters: AdamW by hand, in torch and in C."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from omni_thinker.engine.native import kernels
from omni_thinker.engine.optimizer import BETAS, Masters
from omni_thinker.protocol import OptimParams

SHAPES = [(1,), (7, 3), (129, 300)]  # the last is more than one block of squares, and more than one thread's share


@pytest.fixture(params=["c", "torch"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Masters:
    """In bf16, so that it is C's where there is a compiler."""
    if request.param == "torch":
        monkeypatch.setattr("omni_thinker.engine.optimizer.kernels", lambda: None)
    elif kernels() is None:
        pytest.skip("no C compiler")
    torch.manual_seed(0)
    found = Masters([torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in SHAPES])
    assert (found._native is None) == (request.param == "torch")
    return found


def _backward(own: Masters, grads: list[torch.Tensor]) -> None:
    sum((param * grad).sum() for param, grad in zip(own.params, grads, strict=True)).backward()  # type: ignore[union-attr]


def test_four_steps_equal_adamw_by_hand(made: Masters) -> None:
    optim = OptimParams(lr=3e-3, weight_decay=0.1, max_grad_norm=5.0)
    expected = [master.detach().double() for master in made.values]
    means = [torch.zeros_like(value) for value in expected]
    squares = [torch.zeros_like(value) for value in expected]
    for step in range(1, 5):
        parts = [[torch.randn(shape).bfloat16() for shape in SHAPES] for _ in range(3)]
        for part in parts:
            _backward(made, part)
        assert all(param.grad is None for param in made.params)
        sums = [sum(part[i].double() for part in parts) for i in range(len(SHAPES))]
        norm = math.sqrt(float(sum(torch.as_tensor(grad).square().sum() for grad in sums)))
        report = made.step(optim)
        assert report.applied
        assert report.grad_norm == pytest.approx(norm, rel=1e-5)
        assert norm > 100  # clipped
        for i, total in enumerate(sums):
            grad = total * 5.0 / norm
            means[i] = BETAS[0] * means[i] + (1 - BETAS[0]) * grad
            squares[i] = BETAS[1] * squares[i] + (1 - BETAS[1]) * grad**2
            root = (squares[i] / (1 - BETAS[1] ** step)).sqrt() + 1e-8
            expected[i] = expected[i] * (1 - 3e-4) - 3e-3 * means[i] / (1 - BETAS[0] ** step) / root
        for master, param, exact in zip(made.values, made.params, expected, strict=True):
            torch.testing.assert_close(master.detach().double(), exact, atol=1e-6, rtol=1e-6)
            assert torch.equal(param, master.bfloat16())
            assert master.grad is None


def test_only_gradient_is_kept_as_it_came(made: Masters) -> None:
    """And the sum of two in fp32: 1 is lost beside 512 in bf16."""
    kept = torch.bfloat16 if made._native is not None else torch.float32
    _backward(made, [torch.full(shape, 512.0).bfloat16() for shape in SHAPES])
    for gradient in made.gradients():
        assert gradient is not None
        assert gradient.dtype == kept
        assert (gradient == 512).all()
    _backward(made, [torch.full(shape, 1.0).bfloat16() for shape in SHAPES])
    for gradient in made.gradients():
        assert gradient is not None
        assert gradient.dtype == torch.float32
        assert (gradient == 513).all()
    made.clear()
    assert made.gradients() == [None] * len(SHAPES)


def test_gradient_below_max_norm_is_not_scaled(made: Masters) -> None:
    _backward(made, [torch.full(shape, 1e-3).bfloat16() for shape in SHAPES])
    made.step(OptimParams(lr=1e-3, max_grad_norm=1.0))
    for master in made.values:
        mean = made.optimizer.state[master]["exp_avg"]
        torch.testing.assert_close(mean, torch.full_like(mean, 0.1 * float(torch.tensor(1e-3).bfloat16())))


def test_weights_without_a_gradient_do_not_change(made: Masters) -> None:
    before = [master.detach().clone() for master in made.values]
    made.params[1].sum().backward()
    made.step(OptimParams(lr=1e-3))
    assert [bool(torch.equal(a, b)) for a, b in zip(before, made.values, strict=True)] == [True, False, True]


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_non_finite_gradient_changes_no_weight_and_no_moment(made: Masters, odd: float) -> None:
    before = [master.detach().clone() for master in made.values]
    _backward(made, [torch.full(shape, odd).bfloat16() for shape in SHAPES])
    assert not made.step(OptimParams(lr=1e-3)).applied
    assert all(torch.equal(a, b) for a, b in zip(before, made.values, strict=True))
    assert not made.optimizer.state
    assert all(master.grad is None for master in made.values)


def test_switching_from_c_to_torch_between_steps_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels() is None:
        pytest.skip("no C compiler")
    grads = [torch.randn(SHAPES[2]).bfloat16() for _ in range(4)]
    ends = []
    for switch in (None, 2, 0):  # C throughout, C for two steps, torch throughout
        torch.manual_seed(0)
        own = Masters([torch.nn.Parameter(torch.randn(SHAPES[2]).bfloat16())])
        for step, grad in enumerate(grads):
            if step == switch:
                monkeypatch.setattr(own, "_native", None)
            _backward(own, [grad])
            own.step(OptimParams(lr=1e-2, weight_decay=0.1))
        ends.append(own.values[0].detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("made", ["c"], indirect=True)
def test_gradient_norm_is_the_same_with_any_number_of_threads(made: Masters) -> None:
    before, norms, threads = made.values[2].detach().clone(), [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        torch.manual_seed(1)
        _backward(made, [torch.randn(shape).bfloat16() for shape in SHAPES])
        norms.append(made.step(OptimParams(lr=0.0)).grad_norm)
    torch.set_num_threads(threads)
    assert norms[0] == norms[1] == norms[2]
    assert torch.equal(before, made.values[2])


def test_weights_go_with_what_trains_them() -> None:
    """A worker loads one policy after another; torch's hooks are cycles that Python's collector can't see."""
    own = Masters([torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in SHAPES])
    _backward(own, [torch.ones(shape).bfloat16() for shape in SHAPES])
    own.step(OptimParams(lr=1e-3))
    kept = [weakref.ref(tensor) for tensor in (*own.params, *own.values)]
    del own
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)
