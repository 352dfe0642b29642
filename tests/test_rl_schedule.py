"""The learning rate over an arm's steps: by hand, as transformers has it, and as optimisers follow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler
from transformers.optimization import get_wsd_schedule

from omni_thinker.engine.optimizer import BETAS, EPS, Masters
from omni_thinker.errors import UserError
from omni_thinker.protocol import OptimParams
from omni_thinker.recipe import RlSpec, builtin_recipe
from omni_thinker.rl.updates.schedule import learning_rate_of


def spec(schedule: str, **settings: Any) -> RlSpec:
    return RlSpec.model_validate({"lr": 1.0, "lr_warmup_steps": 2, "lr_schedule": schedule, **settings})


@pytest.mark.parametrize(
    ("schedule", "settings", "expected"),
    [
        ("constant", {}, [0.5, 1, 1, 1, 1, 1]),
        ("linear", {}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("linear", {"lr_min": 0.2}, [0.5, 1, 1, 0.8, 0.6, 0.4]),
        ("cosine", {}, [0.5, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4]),
        (
            "cosine",
            {"lr_min": 0.5, "lr_warmup_steps": 0},
            [1, 0.75 + 3**0.5 / 8, 0.875, 0.75, 0.625, 0.75 - 3**0.5 / 8],
        ),
        ("wsd", {"lr_decay": 0.5}, [0.5, 1, 1, 1, 2 / 3, 1 / 3]),
        ("wsd", {"lr_decay": 0.1, "lr_min": 0.1}, [0.5, 1, 1, 1, 1, 1]),
    ],
)
def test_rates_of_six_steps_by_hand(schedule: str, settings: dict[str, Any], expected: list[float]) -> None:
    found = [learning_rate_of(spec(schedule, **settings), step, 6) for step in range(6)]
    assert found == pytest.approx(expected, abs=1e-12)


def their_rates(schedule: str, warmup: int, steps: int, lowest: float, decay: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    if schedule == "wsd":
        made = get_wsd_schedule(optimizer, warmup, decay, steps, decay_type="linear", min_lr_ratio=lowest)
    elif schedule == "cosine":
        options = {"min_lr_rate": lowest}
        made = get_scheduler("cosine_with_min_lr", optimizer, warmup, steps, scheduler_specific_kwargs=options)
    else:
        made = get_scheduler(schedule, optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return rates


@given(
    st.sampled_from(["linear", "cosine", "wsd"]),
    st.integers(0, 10),
    st.integers(20, 60),
    st.floats(0, 1),
    st.floats(0.05, 0.4),
)
def test_rates_are_those_of_transformers(schedule: str, warmup: int, steps: int, lowest: float, decay: float) -> None:
    """From the warm-up on. Theirs begins at 0, ours a step further on, so that no step is made for nothing."""
    lowest = 0.0 if schedule == "linear" else lowest  # theirs has no lowest rate
    own = spec(schedule, lr_warmup_steps=warmup, lr_min=lowest, lr_decay=decay)
    theirs = their_rates(schedule, warmup, steps, lowest, own.decay_steps(steps))
    found = [learning_rate_of(own, step, steps) for step in range(steps)]
    assert found[warmup:] == pytest.approx(theirs[warmup:], abs=1e-9)
    assert found[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert min(found) > 0


@given(st.floats(1e-7, 1e-2), st.integers(0, 20), st.integers(0, 500))
def test_default_is_what_it_was(lr: float, warmup: int, step: int) -> None:
    own = RlSpec(lr=lr, lr_warmup_steps=warmup)
    assert learning_rate_of(own, step) == lr * min(1.0, (step + 1) / max(1, warmup))
    assert learning_rate_of(own, step, 500) == learning_rate_of(own, step)


@given(st.sampled_from(["linear", "cosine", "wsd"]), st.integers(3, 80), st.floats(0, 1))
def test_rate_never_rises_again_and_follows_the_place(schedule: str, steps: int, share: float) -> None:
    own = spec(schedule)
    found = [learning_rate_of(own, step, steps) for step in range(2, steps)]
    assert found == sorted(found, reverse=True)
    place = 2 + share * (steps - 2)
    between = learning_rate_of(own, 1000, steps, place)
    assert learning_rate_of(own, 2, steps, int(place) + 1) <= between <= learning_rate_of(own, 2, steps, int(place))


def test_schedule_without_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs the number of steps"):
        learning_rate_of(spec("cosine"), 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_optimiser_follows_the_schedule_as_theirs_does(dtype: torch.dtype) -> None:
    """bf16 weights take the path through the kernels in C."""
    torch.manual_seed(0)
    own, steps = spec("cosine", lr=1e-2, lr_warmup_steps=0), 6
    param = torch.nn.Parameter(torch.randn(64).to(dtype))
    twin = torch.nn.Parameter(param.detach().float().clone())
    masters = Masters([param])
    optimizer = torch.optim.AdamW([twin], lr=1e-2, betas=BETAS, eps=EPS, weight_decay=0.1)
    scheduler = get_scheduler("cosine", optimizer, 0, steps)
    for step in range(steps):
        gradient = torch.randn(64).to(dtype)
        (param * gradient).sum().backward()
        twin.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_([twin], 1.0)
        masters.step(OptimParams(learning_rate_of(own, step, steps), weight_decay=0.1, max_grad_norm=1.0))
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(masters.values[0].detach(), twin.detach(), rtol=1e-5, atol=1e-6)


def test_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"rl\.lr_warmup_steps: 47 steps of warm-up leave no 5 to fall in, of 48"):
        builtin_recipe(["study.steps=48", "rl.lr_warmup_steps=47", "rl.lr_schedule='wsd'"])
    builtin_recipe(["study.steps=48", "rl.lr_warmup_steps=43", "rl.lr_schedule='wsd'"])
    builtin_recipe(["study.steps=48", "rl.lr_warmup_steps=470"])
