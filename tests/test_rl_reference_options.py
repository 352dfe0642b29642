"""Options of our losses are those of TRL's GRPOTrainer, on the same batch of tokens, log-probs and rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.shaping import shaped
from omni_thinker.rl.updates.passes import add_gradient
from omni_thinker.types import Group
from trl_batch import EOS, MAX_TOKENS, REWARDS, moved_policy, ragged_groups, trainer_maker, trl_inputs


@dataclass(frozen=True)
class Case:
    """Keys of a recipe and the TRL settings that mean the same. `cut`: samples of each group that have no end."""

    ours: dict[str, Any]
    trl: dict[str, Any] = field(default_factory=dict)
    cut: tuple[int, ...] = ()


CASES = {
    "delta": Case({"loss": "grpo", "delta": 1.5}, {"delta": 1.5}),
    "delta-gspo": Case({"loss": "gspo", "delta": 1.5}, {"delta": 1.5, "importance_sampling_level": "sequence"}),
    "off-policy": Case({"loss": "dapo", "off_policy_kl": 0.1}, {"off_policy_mask_threshold": 0.1}),
    "kl-unbiased": Case({"loss": "grpo", "kl_beta": 0.3, "kl_unbiased": True}, {"use_bias_correction_kl": True}),
    "kl-unbiased-cispo": Case({"loss": "cispo", "kl_beta": 1.0, "kl_unbiased": True}, {"use_bias_correction_kl": True}),
    # TRL's bonus is the mean over all tokens whatever the loss; ours has the normaliser of the loss, as verl's.
    "entropy": Case({"loss": "dapo", "entropy_beta": 0.2}, {"entropy_coef": 0.2}),
    "top-entropy": Case({"loss": "grpo", "top_entropy": 0.2}, {"top_entropy_quantile": 0.2}),
    "top-entropy-kl": Case(
        {"loss": "dapo", "top_entropy": 0.6, "kl_beta": 0.1, "off_policy_kl": 0.2},
        {"top_entropy_quantile": 0.6, "off_policy_mask_threshold": 0.2},
    ),
    "truncated": Case({"loss": "dapo", "truncated": "mask"}, {"mask_truncated_completions": True}, cut=(0,)),
}
LOSS_TYPES = {"gspo": "grpo"}


def _settings(case: Case) -> dict[str, Any]:
    loss = case.ours["loss"]
    high = 1.2 if loss == "cispo" else 0.2
    same = {"loss_type": LOSS_TYPES.get(loss, loss), "epsilon": 0.2, "epsilon_high": high}
    return {**same, "beta": case.ours.get("kl_beta", 0.0), "use_bias_correction_kl": False, **case.trl}


def _cut(group: ScoredGroup, places: tuple[int, ...]) -> ScoredGroup:
    """Without the end of some samples."""
    samples = [
        replace(sample, tokens=(*sample.tokens[:-1], EOS + 5), stop="length") if place in places else sample
        for place, sample in enumerate(group.group.samples)
    ]
    return replace(group, group=Group(group.group.prompt, tuple(samples)))


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    return moved_policy(tiny_model)


@pytest.fixture
def trainer_of(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    return trainer_maker(tiny_model, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(name: str, policy: TorchPolicy, trainer_of: Callable[..., Any]) -> None:
    case = CASES[name]
    groups = [_cut(group, case.cut) for group in ragged_groups(policy)]
    spec = RlSpec.model_validate({"eps_low": 0.2, "eps_high": 0.2, **case.ours}).between(False)
    trainer = trainer_of(**_settings(case))
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trl_inputs(trainer, groups, [r for own in REWARDS for r in own])
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    policy.reset_optimizer()
    [batch] = build_batches(groups, spec, MAX_TOKENS)
    report = add_gradient(policy, batch, {"task": spec}, measure_kl=False)
    assert report.loss == pytest.approx(theirs.item(), abs=1e-5)
    gradients = {key: p.grad for key, p in trainer.model.named_parameters()}
    for key, master in zip(policy._names, policy._masters, strict=True):
        assert master.grad is not None
        torch.testing.assert_close(master.grad, gradients[key], atol=1e-5, rtol=1e-4)

    # The option must matter on this batch, or equality says nothing.
    kept = {"eps_low": 0.2, "eps_high": 0.2, "loss": spec.loss, "kl_beta": spec.kl_beta}
    policy.reset_optimizer()
    plain = RlSpec.model_validate(kept).between(False)
    [unmasked] = build_batches(groups, plain, MAX_TOKENS)
    without = add_gradient(policy, unmasked, {"task": plain}, measure_kl=False)
    assert without.loss != pytest.approx(report.loss, abs=1e-3)


def test_soft_overlong_equals_trl(policy: TorchPolicy) -> None:
    from trl.rewards.other_rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(MAX_TOKENS, 5)
    for group in ragged_groups(policy):
        found = shaped(group, RlSpec(overlong_buffer=5), MAX_TOKENS).penalties
        expected = theirs([list(sample.tokens) for sample in group.group.samples])
        assert [-p for p in found] == pytest.approx(expected)
