"""Each task's gradient, projected while a step's backward pass runs, against the gradients themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from omni_thinker.engine.logprobs import Layout, answer_logprobs
from omni_thinker.engine.nodes import nodes_of
from omni_thinker.engine.packing import pack
from omni_thinker.engine.task_gradients import RANK, Sketches, TaskGradients, alignments, norms
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossReport, TrainGroup
from omni_thinker.recipe import LoraSpec, ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from test_policy_layouts import make_groups, make_model

SHAPES = [(7, (3, 4, 6)), (12, (5, 9)), (4, (2, 8)), (3, (3, 5, 4, 6))]


def groups() -> list[TrainGroup]:
    """Of two tasks, in turns, so that a task's tokens do not lie side by side."""
    return [replace(group, task="ab"[place % 2]) for place, group in enumerate(make_groups(SHAPES))]


def watched(
    family: str, chosen: Sequence[TrainGroup], *, layout: Layout
) -> tuple[Sketches, dict[str, list[torch.Tensor]]]:
    """The sketches, and each task's own gradients of the layers that were watched."""
    model = make_model(family)
    watch, sketches = TaskGradients(model), Sketches()
    with watch.watching(chosen, sketches):
        answer_logprobs(model, chosen, temperature=1.0, layout=layout).logprobs_N.sum().backward()
    layers = [p for name, p in model.named_parameters() if name.endswith("down_proj.weight")]
    own = {}
    for task in "ab":
        model.zero_grad()
        part = [group for group in chosen if group.task == task]
        answer_logprobs(model, part, temperature=1.0, layout=layout).logprobs_N.sum().backward()
        own[task] = [layer.grad.clone() for layer in layers if layer.grad is not None]
    expected = {
        task: torch.cat([(c.t() @ g @ i).flatten() for g, (c, i) in zip(own[task], watch._projections, strict=True)])
        for task in "ab"
    }
    for task, sketch in expected.items():
        torch.testing.assert_close(sketches[task], sketch, rtol=1e-3, atol=1e-3 * float(sketch.abs().max()))
    return sketches, own


def test_task_sketches_of_tokens_that_are_shared_are_those_of_each_task() -> None:
    shared = [replace(g, prompt=(7, 8, 9, *g.prompt), samples=(*g.samples, *g.samples)) for g in groups()]
    chosen = [replace(g, advantages=g.advantages * 2, weights=g.weights * 2) for g in shared]
    nodes = nodes_of(pack(chosen))
    assert nodes is not None
    watched("llama", chosen, layout="written-out")


@pytest.mark.parametrize("layout", ["written-out", "padded"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_task_sketches_have_the_cosine_and_norm_of_the_gradients(family: str, layout: Layout) -> None:
    sketches, own = watched(family, groups(), layout=layout)
    assert sketches["a"].shape == (len(own["a"]) * RANK * RANK,)
    flat = {task: torch.cat([g.flatten() for g in found]) for task, found in own.items()}
    cosine = float(torch.nn.functional.cosine_similarity(flat["a"], flat["b"], dim=0))
    assert alignments(sketches)["a"] == pytest.approx(cosine, abs=0.15)
    assert norms(sketches)["a"] == pytest.approx(float(flat["a"].norm()), rel=0.25)


def test_alignments_equal_values_by_hand() -> None:
    sketches = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 2.0]), "c": torch.tensor([-3.0, 0.0])}
    found = alignments({**sketches, "silent": torch.zeros(2)})
    assert found == pytest.approx({"a": -0.5, "b": 0.0, "c": -0.5})
    assert alignments({**sketches, "burst": torch.tensor([float("inf"), 1.0])}) == alignments(sketches)
    assert alignments({"a": torch.ones(2)}) == {}, "there is nothing to be aligned with"


def backward(policy: TorchPolicy, chosen: Sequence[TrainGroup]) -> LossReport:
    weighed = [
        replace(g, advantages=tuple((-1.0) ** n for n in range(len(g.samples))), weights=(0.1,) * len(g.samples))
        for g in chosen
    ]
    return policy.forward_backward(weighed, make_loss(RlSpec()))


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4)])
def test_task_sketches_of_micro_batches_add_up(lora: LoraSpec | None) -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32", lora=lora))
    whole = backward(policy, groups()).sketches
    policy.token_budget = 40
    cut = backward(policy, groups()).sketches
    assert set(whole) == {"a", "b"}
    for task, sketch in whole.items():
        assert float(sketch.norm()) > 0
        torch.testing.assert_close(cut[task], sketch, rtol=1e-3, atol=1e-4 * float(sketch.abs().max()))


def test_gradients_with_and_without_task_sketches_are_equal() -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    backward(policy, groups())
    watched = [g.clone() for g in policy._updates.gradients() if g is not None]
    policy.reset_optimizer()
    policy._task_gradients._layers = []
    assert backward(policy, groups()).sketches == {}
    bare = [g for g in policy._updates.gradients() if g is not None]
    assert all(torch.equal(a, b) for a, b in zip(watched, bare, strict=True))
