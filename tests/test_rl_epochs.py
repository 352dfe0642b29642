"""Several passes over a batch, and gradients that are added up over several calls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import Loss, LossReport, OptimParams, OptimReport, TrainBatch
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.batch import build_batches
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import SURROGATES
from omni_thinker.rl.stream import make_streams
from omni_thinker.rl.updates.passes import add_gradient
from omni_thinker.types import Problem
from scripted import Scripted, in_turns
from train_groups import mixed_groups
from trl_batch import MAX_TOKENS, REWARDS, moved_policy, ragged_groups, trainer_maker, trl_inputs
from unigram_policy import UnigramPolicy

TASKS = ("a", "b")


class Noted(UnigramPolicy):
    """Remembers the prompts of each call, and whether it was asked for the reference; None where an update was made."""

    def __init__(self) -> None:
        super().__init__(None)
        self.calls: list[Any] = []

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        self.calls.append(([group.prompt for group in batch], reference))
        return super().forward_backward(batch, loss, temperature=temperature, reference=reference)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        self.calls.append(None)
        return super().optim_step(optim)


def stepped(**settings: Any) -> tuple[Noted, int]:
    """A policy after a step of four problems, two of each task, and the tokens trained in it."""
    policy = Noted()
    spec = RlSpec.model_validate({"group_size": 2, "kl_every": 1, "lr": 1e-5, **settings})
    pools = {task: [Problem(f"{task}{n}", task, f"{task}{n}") for n in range(20)] for task in TASKS}
    learner = Learner(policy, spec, make_streams(pools, 0), dict.fromkeys(TASKS, Scripted(in_turns)), {"a": 3, "b": 3})
    return policy, learner.step({"a": 2, "b": 2}, 5).tokens_trained


def test_epochs_repeat_the_batches_of_a_step_and_count_their_tokens() -> None:
    once, tokens = stepped(minibatches=2)
    thrice, tokens_of_all = stepped(minibatches=2, epochs=3)
    assert [call is None for call in once.calls] == [False, True] * 2
    prompts = [call[0] for call in once.calls if call]
    assert [call[0] for call in thrice.calls if call] == prompts * 3
    assert [call is None for call in thrice.calls] == [False, True] * 6
    # The KL to the start is measured once a step, however many passes it has.
    assert [call[1] for call in thrice.calls if call] == [True] * 2 + [False] * 4
    assert tokens_of_all == 3 * tokens


def test_a_second_epoch_of_one_task_after_another_goes_round_again() -> None:
    policy, _ = stepped(update="task", epochs=2)
    prompts = [call[0] for call in policy.calls if call]
    assert len(prompts) == 4
    assert prompts[:2] == prompts[2:]


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from(["step", "task"]))
def test_accumulated_calls_make_the_same_step(parts: int, epochs: int, update: str) -> None:
    whole, _ = stepped(epochs=epochs, update=update)
    cut, _ = stepped(epochs=epochs, update=update, accumulate=parts)
    torch.testing.assert_close(cut.logits, whole.logits, rtol=1e-5, atol=1e-7)
    updates = [place for place, call in enumerate(cut.calls) if call is None]
    groups = 2 if update == "task" else 4
    sizes = [end - begin - 1 for begin, end in pairwise([-1, *updates])]
    assert set(sizes) == {min(parts, groups)}, "as many calls as were asked for, or as there are groups"
    both = [[prompt for call in policy.calls if call for prompt in call[0]] for policy in (whole, cut)]
    assert both[0] == both[1]


@pytest.mark.parametrize("loss", sorted(SURROGATES))
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradient_is_that_of_the_whole_batch(loss: str, parts: int) -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    policy.mark_start()
    found = []
    for accumulate in (1, parts):
        spec = RlSpec.model_validate({"loss": loss, "kl_beta": 0.1, "top_entropy": 0.5, "accumulate": accumulate})
        report = add_gradient(policy, mixed_groups(), {"a": spec, "b": spec}, measure_kl=False)
        gradients = [g.clone() for g in policy._updates.gradients() if g is not None]
        policy.reset_optimizer()
        found.append((report, gradients))
    (whole, expected), (cut, gradients) = found
    assert cut.loss == pytest.approx(whole.loss, abs=1e-5)
    assert {task: stats.tokens for task, stats in cut.stats.items()} == {t: s.tokens for t, s in whole.stats.items()}
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.sketches, whole.sketches, rtol=1e-4, atol=1e-5)


def test_second_epoch_equals_a_second_iteration_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    """TRL's `num_iterations`: the same inputs again after an update, ratios to the same old log-probs."""
    policy = moved_policy(tiny_model)
    make: Callable[..., Any] = trainer_maker(tiny_model, tmp_path)
    groups, spec = ragged_groups(policy), RlSpec(eps_low=0.2, eps_high=0.2, epochs=2).between(False)
    trainer = make(loss_type="grpo", beta=0.0, epsilon=0.2, num_iterations=2)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trl_inputs(trainer, groups, [reward for own in REWARDS for reward in own])
    [batch] = build_batches(groups, spec, MAX_TOKENS)
    theirs = torch.optim.SGD(trainer.model.parameters(), lr=0.5)
    names = [key for key, _ in trainer.model.named_parameters()]
    losses = []
    for _ in range(spec.epochs):
        theirs.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        gradients = dict(zip(names, (p.grad for p in trainer.model.parameters()), strict=True))
        report = add_gradient(policy, batch, {"task": spec}, measure_kl=False)
        assert report.loss == pytest.approx(loss.item(), abs=1e-5)
        for key, master in zip(policy._names, policy._masters, strict=True):
            assert master.grad is not None
            torch.testing.assert_close(master.grad, gradients[key], atol=1e-5, rtol=1e-4)
            with torch.no_grad():
                master -= 0.5 * gradients[key]
        policy._updates.clear()
        policy._updates.publish()
        theirs.step()
        losses.append(report.loss)
    assert abs(losses[1] - losses[0]) > 1e-3, "the first update must matter, or equality says nothing"
