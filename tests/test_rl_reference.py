"""Our losses and gradients are those of TRL's GRPOTrainer, on the same batch of tokens, log-probs and rewards.

`trl_batch` says how TRL gets that batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossReport, TrainGroup
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.advantages import ADVANTAGES, Rewards
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Score
from trl_batch import (
    ANSWER_LENGTHS,
    GROUP_SIZE,
    MAX_TOKENS,
    REWARDS,
    moved_policy,
    ragged_groups,
    trainer_maker,
    trl_inputs,
)


@dataclass(frozen=True)
class Case:
    """One recipe and the TRL settings that mean the same."""

    spec: RlSpec
    trl: dict[str, Any]


def _case(
    loss: str,
    advantage: str = "grpo",
    beta: float = 0.0,
    eps_high: float = 0.2,
    eps_low: float = 0.2,
    normaliser: str = "auto",
    **trl: Any,
) -> Case:
    spec = RlSpec.model_validate(
        {
            "loss": loss,
            "advantage": advantage,
            "group_size": GROUP_SIZE,
            "kl_beta": beta,
            "eps_low": eps_low,
            "eps_high": eps_high,
            "normaliser": normaliser,
        }
    )
    # TRL weighs the KL of a token by the ratio unless told otherwise; the papers and we do not.
    same: dict[str, Any] = {"loss_type": loss, "beta": beta, "epsilon": eps_low, "epsilon_high": eps_high}
    same["use_bias_correction_kl"] = False
    return Case(spec, {**same, **trl})


CASES = {
    "grpo": _case("grpo"),
    "grpo-kl": _case("grpo", beta=0.3),
    "grpo-clip-higher": _case("grpo", eps_low=0.1, eps_high=0.4),
    "dapo": _case("dapo", eps_high=0.28),
    "dapo-kl": _case("dapo", beta=0.05),
    # TRL's switch for "no division by the standard deviation" is scale_rewards.
    "dr_grpo": _case("dr_grpo", advantage="dr_grpo", scale_rewards="none"),
    "dr_grpo-kl": _case("dr_grpo", advantage="dr_grpo", beta=0.1, scale_rewards="none"),
    # GSPO is TRL's grpo with one ratio per sequence. The paper's clips are this tight.
    "gspo": _case("gspo", loss_type="grpo", importance_sampling_level="sequence"),
    "gspo-tight-kl": _case(
        "gspo", beta=0.2, eps_low=3e-2, eps_high=4e-2, loss_type="grpo", importance_sampling_level="sequence"
    ),
    # TRL bounds CISPO's weight by epsilon_high itself, ours is 1 + eps_high as for the other losses.
    "cispo": _case("cispo", eps_high=0.3, epsilon_high=1.3),
    "cispo-kl": _case("cispo", beta=0.1, eps_high=0.05, epsilon_high=1.05),
    # TRL has the token mean of one batch under the name bnpo too, and REINFORCE++'s scale as scale_rewards.
    "token-mean": _case("grpo", normaliser="token", loss_type="bnpo"),
}


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    return moved_policy(tiny_model)


@pytest.fixture(scope="module")
def groups(policy: TorchPolicy) -> list[ScoredGroup]:
    return ragged_groups(policy)


@pytest.fixture
def trainer_of(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    return trainer_maker(tiny_model, tmp_path)


def _named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def _ours(policy: TorchPolicy, groups: Sequence[ScoredGroup], spec: RlSpec) -> LossReport:
    policy.reset_optimizer()
    [batch] = build_batches(groups, spec, MAX_TOKENS)
    return policy.forward_backward(batch, make_loss(spec), reference=spec.kl_beta > 0)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trl(
    name: str, policy: TorchPolicy, groups: list[ScoredGroup], trainer_of: Callable[..., Any]
) -> None:
    case = CASES[name]
    trainer = trainer_of(**case.trl)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trl_inputs(trainer, groups, [r for own in REWARDS for r in own])
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()

    report = _ours(policy, groups, case.spec)

    stats = report.stats["task"]
    assert stats.tokens == int(inputs["num_items_in_batch"]) == sum(map(sum, ANSWER_LENGTHS))
    assert 0 < stats.clipped < stats.tokens, "the batch must exercise the clip"
    if case.spec.kl_beta > 0:
        assert stats.kl / stats.kl_tokens == pytest.approx(trainer._metrics["train"]["kl"][-1], abs=1e-5)
        assert stats.kl / stats.kl_tokens > 1e-3, "the start must differ from the policy"
    assert report.loss == pytest.approx(theirs.item(), abs=1e-5)
    gradients = {key: p.grad for key, p in trainer.model.named_parameters()}
    assert set(gradients) == set(policy._names)
    for key, master in zip(policy._names, policy._masters, strict=True):
        assert master.grad is not None
        assert gradients[key].abs().max() > 1e-4, key
        torch.testing.assert_close(master.grad, gradients[key], atol=1e-5, rtol=1e-4, msg=_named(key))
    policy.reset_optimizer()


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_clip_frac_equals_trl(
    loss: str, policy: TorchPolicy, groups: list[ScoredGroup], trainer_of: Callable[..., Any]
) -> None:
    case = CASES[loss]
    trainer = trainer_of(**case.trl)
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trl_inputs(trainer, groups, [r for own in REWARDS for r in own])
    trainer.compute_loss(trainer.model, inputs)
    batches = build_batches(groups, case.spec, MAX_TOKENS)
    old = torch.tensor([x for g in batches[0] for s in g.samples for x in s.logprobs])
    now = policy.logprobs(batches[0])
    sample_of = torch.tensor([i for i, n in enumerate(sum(ANSWER_LENGTHS, ())) for _ in range(n)])
    terms = make_loss(case.spec)(_token_batch(batches[0], now, old, sample_of))
    clipped = terms.clipped_N.float()
    # TRL counts a clipped sequence once, we count its tokens.
    ours = clipped.mean() if loss == "grpo" else torch.stack([clipped[sample_of == s][0] for s in range(6)]).mean()
    assert float(ours) == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][-1], abs=1e-6)


def _token_batch(groups: Sequence[TrainGroup], now: torch.Tensor, old: torch.Tensor, sample_of: torch.Tensor) -> Any:
    from omni_thinker.protocol import TokenBatch

    advantages = torch.tensor([a for g in groups for a in g.advantages])[sample_of]
    return TokenBatch(now, old, None, advantages, torch.ones_like(now), sample_of)


@pytest.mark.parametrize(("advantage", "scale"), [("grpo", "group"), ("dr_grpo", "none")])
def test_advantages_equal_trl(
    advantage: str, scale: str, groups: list[ScoredGroup], trainer_of: Callable[..., Any]
) -> None:
    inputs = trl_inputs(trainer_of(scale_rewards=scale), groups, [r for own in REWARDS for r in own])
    ours = [a for own in ADVANTAGES[advantage]([_array(r) for r in REWARDS]) for a in own]
    assert ours == pytest.approx(inputs["advantages"].tolist(), abs=1e-5)


def test_unscored_sample_leaves_the_baseline_as_in_trl(
    groups: list[ScoredGroup], trainer_of: Callable[..., Any]
) -> None:
    rewards = [None, 0.0, 0.25, 0.2, 0.9, 0.8]
    theirs = trl_inputs(trainer_of(), groups, rewards)["advantages"].tolist()
    scores = (Score.abstain("no parse"), Score.of(0.0), Score.of(0.25))
    second = tuple(Score.of(r) for r in (0.2, 0.9, 0.8))
    scored = [ScoredGroup(g.problem, g.group, s) for g, s in zip(groups, (scores, second), strict=True)]
    [batch] = build_batches(scored, RlSpec(), MAX_TOKENS)
    assert theirs[0] == 0.0
    assert [len(g.samples) for g in batch] == [2, 3]
    assert [a for g in batch for a in g.advantages] == pytest.approx(theirs[1:], abs=1e-5)


def test_rloo_is_a_fixed_multiple_of_trl_unscaled_advantage() -> None:
    """r_i - mean(others) = n / (n - 1) (r_i - mean(all))."""
    [own] = ADVANTAGES["rloo"]([_array([1.0, 0.0, 0.5, 0.0])])
    assert own.tolist() == pytest.approx([1.0 - 0.5 / 3, -0.5, 0.5 - 1 / 3, -0.5])


def _array(rewards: Sequence[float]) -> Rewards:
    import numpy as np

    return np.array(rewards)
