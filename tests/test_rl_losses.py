"""Losses: values by hand on a few tokens, and what must hold for all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.recipe.rl import PRESETS, Preset
from omni_thinker.rl.losses import SURROGATES, make_loss
from train_groups import mixed_groups

LOSSES = sorted(SURROGATES)


def _spec(loss: str, **settings: float) -> RlSpec:
    return RlSpec.model_validate({"loss": loss, **settings})


def _batch(
    ratios: list[float],
    advantages: list[float],
    samples: list[int] | None = None,
    weights: list[float] | None = None,
    reference: list[float] | None = None,
    new: float = -1.0,
) -> TokenBatch:
    """Tokens of log-prob `new` whose ratios to the sampler are `ratios`; float64, so that values are exact."""
    count = len(ratios)
    now = torch.full((count,), new, dtype=torch.float64, requires_grad=True)
    return TokenBatch(
        logprobs_N=now,
        old_logprobs_N=now.detach() - torch.tensor(ratios, dtype=torch.float64).log(),
        reference_logprobs_N=None if reference is None else torch.tensor(reference, dtype=torch.float64),
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        weights_N=torch.tensor(weights or [1.0] * count, dtype=torch.float64),
        sample_N=torch.tensor(samples or list(range(count))),
    )


def _gradient(terms: LossTerms, batch: TokenBatch) -> list[float]:
    [gradient] = torch.autograd.grad(terms.loss, batch.logprobs_N)
    return [float(x) for x in gradient]


# -- by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_clipped_ratio_losses_equal_values_by_hand(loss: str) -> None:
    # A > 0: clipped above 1.2 only. A < 0: clipped below 0.8 only.
    batch = _batch([1.5, 0.5, 1.5, 0.5, 1.1], [2.0, 2.0, -1.0, -1.0, 3.0])
    terms = make_loss(_spec(loss, eps_low=0.2, eps_high=0.2))(batch)
    assert float(terms.loss) == pytest.approx(-2.4 - 1.0 + 1.5 + 0.8 - 3.3)
    assert terms.clipped_N.tolist() == [True, False, False, True, False]
    assert _gradient(terms, batch) == pytest.approx([0.0, -1.0, 1.5, 0.0, -3.3])


def test_eps_high_moves_only_the_upper_clip_bound() -> None:
    batch = _batch([1.25, 1.35, 0.85, 0.75], [1.0, 1.0, -1.0, -1.0])
    terms = make_loss(_spec("dapo", eps_low=0.2, eps_high=0.3))(batch)
    assert terms.clipped_N.tolist() == [False, True, False, True]
    assert float(terms.loss) == pytest.approx(-1.25 - 1.3 + 0.85 + 0.8)


def test_gspo_equals_values_by_hand() -> None:
    # Sample 0: ratios 2 and 0.5, geometric mean 1: not clipped. Sample 1: mean sqrt(2) > 1.2: both tokens clipped.
    batch = _batch([2.0, 0.5, 2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0, -2.0], [0, 0, 1, 1, 2])
    terms = make_loss(_spec("gspo", eps_low=0.2, eps_high=0.2))(batch)
    assert terms.clipped_N.tolist() == [False, False, True, True, True]
    assert float(terms.loss) == pytest.approx(-1.0 - 1.0 - 1.2 - 1.2 + 2 * 0.8)
    # d exp(mean) = ratio / length for each token, and each of the two tokens carries the whole ratio.
    assert _gradient(terms, batch) == pytest.approx([-1.0, -1.0, 0.0, 0.0, 0.0])


def test_cispo_equals_values_by_hand() -> None:
    batch = _batch([1.5, 0.5, 1.5, 0.1], [2.0, 2.0, -1.0, -1.0], new=-0.7)
    terms = make_loss(_spec("cispo"))(batch)
    assert terms.clipped_N.tolist() == [True, False, False, False]
    # The weight is bounded by 1.2 from above alone, whatever the advantage, and every token keeps its gradient.
    assert _gradient(terms, batch) == pytest.approx([-1.2 * 2, -0.5 * 2, 1.2, 0.1])
    assert float(terms.loss) == pytest.approx(0.7 * (1.2 * 2 + 0.5 * 2 - 1.2 - 0.1))


@pytest.mark.parametrize("loss", LOSSES)
def test_on_policy_gradient_is_reinforce(loss: str) -> None:
    batch = _batch([1.0] * 3, [0.5, -2.0, 1.0], weights=[0.5, 0.25, 1.0])
    terms = make_loss(_spec(loss))(batch)
    assert _gradient(terms, batch) == pytest.approx([-0.25, 0.5, -1.0])
    assert not terms.clipped_N.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_kl_term_equals_values_by_hand(loss: str) -> None:
    batch = _batch([1.0, 1.0], [0.0, 0.0], reference=[-1.0 + math.log(2), -1.0], weights=[0.5, 9.0])
    terms = make_loss(_spec(loss, kl_beta=0.1))(batch)
    # k3 at d = log 2: exp(d) - 1 - d; its slope in the policy's log-prob is 1 - exp(d).
    assert float(terms.loss) == pytest.approx(0.1 * 0.5 * (2 - 1 - math.log(2)))
    assert _gradient(terms, batch) == pytest.approx([0.1 * 0.5 * (1 - 2), 0.0])


def test_kl_beta_without_reference_logprobs_raises() -> None:
    with pytest.raises(ValueError, match="kl_beta"):
        make_loss(_spec("grpo", kl_beta=0.1))(_batch([1.0], [1.0]))


def test_dapo_clips_higher_and_gspo_by_fractions_of_a_thousandth() -> None:
    batch = _batch([1.25, 1.3], [1.0, 1.0])
    assert make_loss(_spec("dapo"))(batch).clipped_N.tolist() == [False, True]
    assert make_loss(_spec("dapo", eps_high=0.2))(batch).clipped_N.tolist() == [True, True]
    near = _batch([1.0003, 1.0005], [1.0, 1.0])
    assert make_loss(_spec("gspo"))(near).clipped_N.tolist() == [False, True]


def test_reference_logprobs_without_kl_beta_do_not_change_the_loss() -> None:
    plain, measured = _batch([1.3, 0.9], [1.0, -1.0]), _batch([1.3, 0.9], [1.0, -1.0], reference=[-3.0, 0.0])
    loss = make_loss(_spec("grpo"))
    assert float(loss(plain).loss) == float(loss(measured).loss)


def test_every_loss_has_its_published_settings() -> None:
    assert {*PRESETS} == {*SURROGATES}
    assert PRESETS["dr_grpo"] == Preset("dr_grpo", "constant", 0.2, 0.2)
    assert PRESETS["dapo"] == Preset("grpo", "token", 0.2, 0.28)
    assert PRESETS["gspo"] == Preset("grpo", "sample", 3e-4, 4e-4)
    assert PRESETS["grpo"] == Preset("grpo", "sample", 0.2, 0.2)
    assert PRESETS["cispo"].normaliser == "token"


# -- what holds for all -------------------------------------------------------------------------------------

Rows = list[tuple[float, float, list[float]]]  # per sample: advantage, weight, one log-ratio per token
samples = st.lists(
    st.tuples(st.floats(-3, 3), st.floats(0.01, 1), st.lists(st.floats(-1, 1), min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
)


def _from_rows(rows: Rows, beta: bool = True) -> TokenBatch:
    flat = [(a, w, r, s) for s, (a, w, ratios) in enumerate(rows) for r in ratios]
    ratios = [math.exp(r) for _, _, r, _ in flat]
    reference = [-1.0 - 0.3 * r for _, _, r, _ in flat] if beta else None
    return _batch(ratios, [a for a, *_ in flat], [s for *_, s in flat], [w for _, w, _, _ in flat], reference=reference)


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=samples, data=st.data())
def test_loss_does_not_depend_on_the_order_of_samples(loss: str, rows: Rows, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    function = make_loss(_spec(loss, kl_beta=0.2))
    one, other = _from_rows(rows), _from_rows([rows[i] for i in order])
    a, b = function(one), function(other)
    assert float(a.loss) == pytest.approx(float(b.loss), abs=1e-9)
    begins = [sum(len(r[2]) for r in rows[:i]) for i in range(len(rows))]
    moved = [begins[i] + k for i in order for k in range(len(rows[i][2]))]
    assert [a.clipped_N.tolist()[n] for n in moved] == b.clipped_N.tolist()
    gradient = _gradient(a, one)
    assert [gradient[n] for n in moved] == pytest.approx(_gradient(b, other), abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=samples, data=st.data())
def test_loss_and_gradient_of_micro_batches_add_up(loss: str, rows: Rows, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    function = make_loss(_spec(loss, kl_beta=0.2))
    whole = _from_rows(rows)
    terms = function(whole)
    parts = [_from_rows(part) for part in (rows[:cut], rows[cut:]) if part]
    found = [function(part) for part in parts]
    assert sum(float(f.loss) for f in found) == pytest.approx(float(terms.loss), abs=1e-9)
    gradients = [g for f, part in zip(found, parts, strict=True) for g in _gradient(f, part)]
    assert gradients == pytest.approx(_gradient(terms, whole), abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=samples)
def test_zero_advantages_give_zero_loss_and_gradient(loss: str, rows: Rows) -> None:
    batch = _from_rows([(0.0, w, ratios) for _, w, ratios in rows], beta=False)
    terms = make_loss(_spec(loss))(batch)
    assert float(terms.loss) == 0.0
    assert _gradient(terms, batch) == [0.0] * len(batch.weights_N)
    assert not terms.clipped_N.any()


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=samples, scale=st.floats(0.1, 10))
def test_loss_is_linear_in_weights_and_advantages(loss: str, rows: Rows, scale: float) -> None:
    function = make_loss(_spec(loss))
    batch = _from_rows(rows, beta=False)
    base = float(function(batch).loss)
    heavier = float(function(replace(batch, weights_N=batch.weights_N * scale)).loss)
    keener = float(function(replace(batch, advantages_N=batch.advantages_N * scale)).loss)
    assert heavier == pytest.approx(scale * base, abs=1e-9)
    assert keener == pytest.approx(scale * base, abs=1e-9)


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
@given(rows=samples)
def test_clipped_tokens_have_no_gradient(loss: str, rows: Rows) -> None:
    batch = _from_rows(rows, beta=False)
    terms = make_loss(_spec(loss))(batch)
    gradient = _gradient(terms, batch)
    assert all(g == 0.0 for g, clipped in zip(gradient, terms.clipped_N.tolist(), strict=True) if clipped)


# -- through the policy -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    made = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    made.mark_start()
    return made


def _run(
    policy: TorchPolicy, groups: list[TrainGroup], loss: str
) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    policy.reset_optimizer()
    report = policy.forward_backward(groups, make_loss(_spec(loss, kl_beta=0.1)), reference=True)
    gradients = [m.grad for m in policy._masters if m.grad is not None]
    assert len(gradients) == len(policy._masters)
    stats = {
        f"{t}.{k}": float(getattr(s, k)) for t, s in report.stats.items() for k in ("tokens", "clipped", "entropy")
    }
    return report.loss, gradients, stats


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_does_not_depend_on_token_budget_or_group_order(
    loss: str, policy: TorchPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = mixed_groups()
    monkeypatch.setattr(policy, "token_budget", 10_000)
    whole, gradients, stats = _run(policy, groups, loss)
    assert stats["a.tokens"] == 10
    assert stats["b.tokens"] == 15
    assert max(float(g.abs().max()) for g in gradients) > 1e-3
    for budget, order in ((10_000, groups[::-1]), (20, groups), (1, groups[2:] + groups[:2])):
        monkeypatch.setattr(policy, "token_budget", budget)
        again, others, other_stats = _run(policy, order, loss)
        assert again == pytest.approx(whole, abs=1e-5)
        assert other_stats == pytest.approx(stats, rel=1e-5)
        for a, b in zip(gradients, others, strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


def test_gradient_of_single_groups_adds_up_to_the_whole(policy: TorchPolicy) -> None:
    groups = mixed_groups()
    _, whole, _ = _run(policy, groups, "grpo")
    policy.reset_optimizer()
    for group in groups:
        policy.forward_backward([group], make_loss(_spec("grpo", kl_beta=0.1)), reference=True)
    for a, master in zip(whole, policy._masters, strict=True):
        assert master.grad is not None
        torch.testing.assert_close(master.grad, a, atol=1e-5, rtol=1e-4)
