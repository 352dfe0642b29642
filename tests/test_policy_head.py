"""Logits with something taken off each row: the same softmax, rounded where it matters least."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from omni_thinker.engine.head import ShiftedHead, relative_logits, shifted_product
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec, parse_recipe
from omni_thinker.tasks.registry import make_tasks
from omni_thinker.types import SampleRequest, SamplingParams


def _states_and_weights(dtype: torch.dtype, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return (3 * torch.randn(17, width)).to(dtype), torch.randn(300, width).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_relative_logits_have_the_softmax_of_the_plain_product(dtype: torch.dtype) -> None:
    x, weight = _states_and_weights(dtype)
    plain = (x.double() @ weight.double().t()).log_softmax(-1)
    found = relative_logits(x, weight, torch.arange(17))
    assert found.dtype == dtype
    assert float((found.double().log_softmax(-1) - plain).abs().max()) < {torch.bfloat16: 0.3}.get(dtype, 1e-4)


def test_relative_logits_in_bf16_are_nearly_exact_near_the_target() -> None:
    x, weight = _states_and_weights(torch.bfloat16)
    exact = x.double() @ weight.double().t()
    target = exact.argmax(-1)
    largest = exact.gather(-1, target[:, None])
    assert float(largest.min()) > 32, "where bf16 knows multiples of 1/4 alone"
    found = relative_logits(x, weight, target).double()
    gap = (found - found.gather(-1, target[:, None])) - (exact - largest)
    near = exact > largest - 4
    assert int(near.sum()) > len(x)
    assert float(gap[near].abs().max()) < 1 / 32
    rounded = (x @ weight.t()).double()
    assert float((rounded - exact)[near].abs().max()) > 1 / 16, "as it is without"


@pytest.mark.parametrize("width", [40, 32, 64, 7])
def test_shifted_head_equals_the_shifted_product(width: int) -> None:
    x, weight = _states_and_weights(torch.bfloat16, width)
    shift = torch.linspace(-3, 40, len(x))
    head = ShiftedHead(weight, lambda laid_out: lambda rows: F.linear(rows, laid_out))
    exact = x.double() @ weight.double().t() - shift.bfloat16().double()[:, None]
    for found in (head(x, shift), shifted_product(x, weight, shift)):
        assert found.shape == exact.shape
        assert torch.equal(found, exact.bfloat16()) or float((found.double() - exact).abs().max()) < 0.3
        small = exact.abs() < 1
        assert float((found.double() - exact)[small].abs().max()) < 1 / 200


def test_builtin_model_in_bf16_has_a_mean_mismatch_below_0_025(builtin_model: Path) -> None:
    """On real problems: 0.0288 with plain rounded logits, 0.0198 with relative ones, over 10,800 tokens."""
    policy = TorchPolicy(ModelSpec.model_validate({"name": "builtin", "dtype": "bfloat16", "system": ""}))
    sources = {name: {"source": f"builtin:{name}"} for name in ("math", "coding", "qa", "writing")}
    tasks = make_tasks(parse_recipe({"tasks": sources}, "a recipe").tasks)
    apart = []
    for name, task in tasks.items():
        prompts = [policy.encode_prompt(problem.prompt) for problem in task.problems("validation")[:4]]
        requests = [SampleRequest(prompt, 24, seed) for seed, prompt in enumerate(prompts)]
        drawn = policy.sample(requests, SamplingParams(4))
        groups = [TrainGroup(name, g.prompt, g.samples, (1.0,) * 4, (1.0,) * 4) for g in drawn]
        sampled = torch.tensor([x for group in drawn for sample in group.samples for x in sample.logprobs])
        apart.append(float((policy.logprobs(groups, temperature=1.0) - sampled).abs().mean()))
    assert 0 < sum(apart) / len(apart) < 0.025
