"""Options of a loss and of what is trained: by hand, and what must hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec, builtin_recipe
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import SURROGATES, PolicyLoss, make_loss
from omni_thinker.rl.metrics import group_metrics
from omni_thinker.rl.shaping import shaped
from omni_thinker.rl.stream import make_streams
from omni_thinker.rl.updates.passes import add_gradient, threshold
from omni_thinker.types import Group, Problem, Sample, Score, StopReason, Thoughts
from scripted import Scripted, in_turns
from train_groups import mixed_groups
from unigram_policy import UnigramPolicy

LOSSES = sorted(SURROGATES)


def _spec(**settings: Any) -> RlSpec:
    return RlSpec.model_validate({"kl_every": 0, "group_size": 4, **settings})


def _batch(
    ratios: Sequence[float],
    advantages: Sequence[float],
    samples: Sequence[int] | None = None,
    entropies: Sequence[float] | None = None,
    reference: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
) -> TokenBatch:
    """Tokens of log-prob -1 whose ratios to the sampler are `ratios`; float64, so that values are exact."""

    def numbers(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    count = len(ratios)
    now = torch.full((count,), -1.0, dtype=torch.float64, requires_grad=True)
    return TokenBatch(
        logprobs_N=now,
        old_logprobs_N=now.detach() - numbers(ratios).log(),
        reference_logprobs_N=None if reference is None else numbers(reference),
        advantages_N=numbers(advantages),
        weights_N=numbers(weights or [1.0] * count),
        sample_N=torch.tensor(samples or list(range(count))),
        entropy_N=None if entropies is None else numbers(entropies).requires_grad_(),
    )


def _gradient(terms: LossTerms, tensor: torch.Tensor | None) -> list[float]:
    assert tensor is not None
    [gradient] = torch.autograd.grad(terms.loss, tensor, retain_graph=True)
    return [float(x) for x in gradient]


# -- by hand ------------------------------------------------------------------------------------------------


def test_delta_bounds_ratios_of_negative_advantages_alone() -> None:
    batch = _batch([5.0, 3.0, 5.0, 0.5], [-1.0, -1.0, 1.0, -1.0])
    terms = make_loss(_spec(delta=4.0))(batch)
    assert terms.loss.item() == pytest.approx(4 + 3 - 1.2 + 0.8)
    assert terms.clipped_N.tolist() == [True, False, True, True]
    assert _gradient(terms, batch.logprobs_N) == pytest.approx([0, 3, 0, 0])
    assert make_loss(_spec())(batch).loss.item() == pytest.approx(5 + 3 - 1.2 + 0.8)


def test_off_policy_mask_drops_bad_samples_that_are_far_from_their_sampler() -> None:
    # The mean of log 1/ratio: 0.5 for sample 0 (A < 0), 0.5 for 1 (A > 0), 0.2 for 2 (A < 0), -0.5 for 3 (A < 0).
    logs = [0.8, 0.2, 0.5, 0.2, -0.5]
    batch = _batch([math.exp(-x) for x in logs], [-1, -1, 1, -1, -1], [0, 0, 1, 2, 3])
    terms = make_loss(_spec(off_policy_kl=0.3))(batch)
    assert terms.off_policy_N is not None
    assert terms.off_policy_N.tolist() == [True, True, False, False, False]
    assert _gradient(terms, batch.logprobs_N)[:2] == [0, 0]
    plain = make_loss(_spec())(batch)
    assert _gradient(terms, batch.logprobs_N)[2:] == _gradient(plain, batch.logprobs_N)[2:]
    wide = make_loss(_spec(off_policy_kl=0.51))(batch)
    assert wide.loss.item() == plain.loss.item()


def test_off_policy_mask_measures_from_the_sampler_not_from_the_trainers_old_log_probs() -> None:
    batch = _batch([1.0, 1.0], [-1.0, -1.0])
    far = replace(batch, sampler_logprobs_N=batch.old_logprobs_N + torch.tensor([0.5, 0.1], dtype=torch.float64))
    terms = make_loss(_spec(off_policy_kl=0.3))(far)
    assert terms.off_policy_N is not None
    assert terms.off_policy_N.tolist() == [True, False]


def test_unbiased_kl_equals_values_by_hand() -> None:
    batch = _batch([1.5, 1.0], [0.0, 0.0], reference=[-1 + math.log(2), -1.0])
    terms = make_loss(_spec(kl_beta=0.1, kl_unbiased=True))(batch)
    k3 = 2 - 1 - math.log(2)
    assert terms.loss.item() == pytest.approx(0.1 * 1.5 * k3)
    # d(rho k3) = rho (k3 + 1 - exp d); on-policy at d = 0 nothing is pulled.
    assert _gradient(terms, batch.logprobs_N) == pytest.approx([0.1 * 1.5 * (k3 + 1 - 2), 0])


def test_unbiased_kl_has_the_gradient_of_the_kl_whoever_sampled() -> None:
    """Summed over a vocabulary with the sampler's probabilities, which is what sampling does on average."""
    logits = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64, requires_grad=True)
    start = torch.log_softmax(torch.tensor([0.0, 0.4, 0.1], dtype=torch.float64), 0)
    sampler = torch.log_softmax(torch.tensor([1.0, -1.0, 0.2], dtype=torch.float64), 0)
    now = torch.log_softmax(logits, 0)
    zeros = torch.zeros(3, dtype=torch.float64)
    batch = TokenBatch(now, sampler, start, zeros, sampler.exp(), torch.arange(3))
    [expected] = torch.autograd.grad((now.exp() * (now - start)).sum(), logits, retain_graph=True)
    [found] = torch.autograd.grad(
        make_loss(_spec(kl_beta=1.0, kl_unbiased=True))(batch).loss, logits, retain_graph=True
    )
    [biased] = torch.autograd.grad(make_loss(_spec(kl_beta=1.0))(batch).loss, logits)
    torch.testing.assert_close(found, expected)
    assert (biased - expected).abs().max() > 0.05


def test_entropy_bonus_and_mask_equal_values_by_hand() -> None:
    entropies, weights = [0.1, 2.0, 1.0, 3.0], [0.5, 0.25, 1.0, 1.0]
    batch = _batch([1.0] * 4, [1.0, 1.0, -1.0, -1.0], entropies=entropies, weights=weights)
    bonus = make_loss(_spec(entropy_beta=0.1))(batch)
    surrogate = -0.5 - 0.25 + 1 + 1
    assert bonus.loss.item() == pytest.approx(surrogate - 0.1 * (0.05 + 0.5 + 1 + 3))
    assert _gradient(bonus, batch.entropy_N) == pytest.approx([-0.05, -0.025, -0.1, -0.1])
    masked = PolicyLoss(_spec(entropy_beta=0.1, top_entropy=0.5), least_entropy=1.5)(batch)
    assert masked.loss.item() == pytest.approx(-0.25 + 1 - 0.1 * (0.5 + 3))
    assert _gradient(masked, batch.logprobs_N) == pytest.approx([0, -0.25, 0, 1])


def test_kl_is_measured_on_masked_tokens_too() -> None:
    batch = _batch([0.5], [-1.0], entropies=[0.0], reference=[-1 + math.log(2)])
    terms = PolicyLoss(_spec(kl_beta=0.1, off_policy_kl=0.1), least_entropy=1.0)(batch)
    assert terms.loss.item() == pytest.approx(0.1 * (1 - math.log(2)))


@pytest.mark.parametrize(
    ("values", "share", "kept"),
    [
        ([5, 1, 4, 2, 3], 0.2, [5]),
        ([5, 1, 4, 2, 3], 0.25, [4, 5]),
        ([5, 1, 4, 2, 3], 0.5, [3, 4, 5]),
        ([5, 1, 4, 2, 3], 1.0, [1, 2, 3, 4, 5]),
        ([1, 1, 1], 0.2, [1, 1, 1]),
        ([7], 0.2, [7]),
    ],
)
def test_top_share_is_what_the_quantile_says(values: list[float], share: float, kept: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert sorted(tensor[tensor >= threshold(tensor, share)].tolist()) == kept
    assert sorted(tensor[tensor >= torch.quantile(tensor, 1 - share)].tolist()) == kept


def _sample(tokens: int, stop: StopReason = "stop") -> Sample:
    return Sample(tuple(range(tokens)), (-1.0,) * tokens, "", stop)


def _scored(samples: Sequence[Sample], values: Sequence[float], task: str = "t") -> ScoredGroup:
    return ScoredGroup(Problem("p", task, "p"), Group((1,), tuple(samples)), tuple(map(Score.of, values)))


@pytest.mark.parametrize(
    ("loss", "weights"), [("grpo", [1 / 2 / 4, 1 / 2 / 2]), ("dapo", [1 / 6] * 2), ("dr_grpo", [1 / 2 / 10] * 2)]
)
def test_truncated_answers_are_masked_but_stay_in_the_baseline(loss: str, weights: list[float]) -> None:
    samples = [_sample(4), _sample(8, "length"), _sample(2)]
    spec = _spec(loss=loss, truncated="mask", advantage="dr_grpo")
    [[group]] = build_batches([_scored(samples, [1.0, 0.0, 0.5])], spec, 10)
    assert group.samples == (samples[0], samples[2])
    assert group.advantages == pytest.approx((0.5, 0.0))
    assert group.weights == pytest.approx(weights)
    [[kept]] = build_batches([_scored(samples, [1.0, 0.0, 0.5])], _spec(advantage="dr_grpo"), 10)
    assert kept.advantages == pytest.approx((0.5, -0.5, 0.0))
    all_cut = [_sample(8, "length"), _sample(8, "length")]
    assert build_batches([_scored(all_cut, [1.0, 0.0])], spec, 10) == []


def test_soft_overlong_equals_values_by_hand() -> None:
    samples = [_sample(n) for n in (5, 6, 7, 9, 10)]
    group = _scored(samples, [1.0, 1.0, 1.0, 0.5, 0.0])
    found = shaped(group, _spec(overlong_buffer=4, overlong_penalty=0.8), 10)
    assert found.penalties == pytest.approx((0.0, 0.0, 0.2, 0.6, 0.8))
    assert found.rewards == pytest.approx([1.0, 1.0, 0.8, -0.1, -0.8])
    assert found.values == group.values, "what is reported stays"
    assert shaped(group, _spec(), 10) is group
    assert shaped(group, _spec(overlong_buffer=99), 10).penalties == pytest.approx((0.5, 0.6, 0.7, 0.9, 1.0))


def test_soft_overlong_gives_signal_to_answers_that_score_alike() -> None:
    group = _scored([_sample(5), _sample(10)], [1.0, 1.0])
    assert not group.has_signal
    long = shaped(group, _spec(overlong_buffer=4), 10)
    assert long.has_signal
    [[trained]] = build_batches([long], _spec(advantage="dr_grpo"), 10)
    assert trained.advantages == pytest.approx((0.5, -0.5))


def test_soft_overlong_counts_the_answer_alone_where_thoughts_have_a_budget() -> None:
    thinking = replace(_sample(12), thoughts=Thoughts("", 6, True))
    group = _scored([thinking, _sample(8)], [1.0, 1.0])
    spec = _spec(overlong_buffer=4)
    assert shaped(group, spec, 8, of_answer=True).penalties == pytest.approx((0.5, 1.0))
    assert shaped(group, spec, 8).penalties == pytest.approx((1.0, 1.0))


def test_metrics_tell_answers_without_an_end_apart() -> None:
    group = _scored([_sample(2), _sample(4), _sample(9, "length")], [1.0, 0.5, 0.25])
    metrics = group_metrics([shaped(group, _spec(overlong_buffer=3), 9)])
    assert metrics["completion_length/all"] == 5
    assert metrics["completion_length_ended/all"] == 3
    assert metrics["reward_ended/t"] == 0.75
    assert metrics["reward_truncated/t"] == 0.25
    assert metrics["truncated/t"] == pytest.approx(1 / 3)
    assert metrics["overlong_penalty/t"] == pytest.approx(1 / 3)
    ended = group_metrics([_scored([_sample(2), _sample(4)], [1.0, 0.5])])
    assert not {"reward_truncated/t", "overlong_penalty/t"} & {*ended}


@pytest.mark.parametrize(
    ("setting", "key", "words"),
    [
        ("rl.delta=1.1", "rl.delta", "above 1 + eps_high"),
        ("rl.importance_floor=3.0", "rl.importance_floor", "below importance_cap"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(setting: str, key: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        builtin_recipe([setting, "rl.importance_cap=2.0"])
    assert caught.value.key == key
    assert words in str(caught.value)


# -- what holds for all -------------------------------------------------------------------------------------

EVERY: dict[str, Any] = {
    "delta": 3.0, "off_policy_kl": 0.2, "kl_beta": 0.2, "kl_unbiased": True, "entropy_beta": 0.1,
    "importance_cap": 1.5, "importance": "sequence_mask",
}  # fmt: skip
Rows = list[tuple[float, float, list[tuple[float, float]]]]  # per sample: advantage, weight, tokens
samples_st = st.lists(
    st.tuples(
        st.floats(-3, 3),
        st.floats(0.01, 1),
        st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 4)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=6,
)


def _from_rows(rows: Rows) -> TokenBatch:
    flat = [(a, w, r, e, s) for s, (a, w, tokens) in enumerate(rows) for r, e in tokens]
    batch = _batch(
        [math.exp(r) for _, _, r, _, _ in flat],
        [a for a, *_ in flat],
        [s for *_, s in flat],
        [e for _, _, _, e, _ in flat],
        [-1 - 0.3 * r for _, _, r, _, _ in flat],
        [w for _, w, *_ in flat],
    )
    return replace(batch, sampler_logprobs_N=batch.old_logprobs_N - 0.4 * batch.entropy_N.detach())  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", LOSSES)
@given(rows=samples_st, data=st.data())
def test_micro_batches_with_every_option_add_up_in_any_order(loss: str, rows: Rows, data: st.DataObject) -> None:
    function = PolicyLoss(_spec(loss=loss, **EVERY).between(False), least_entropy=1.0)
    order = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    whole = _from_rows(rows)
    terms = function(whole)
    parts = [(batch := _from_rows(part), function(batch)) for part in (order[:cut], order[cut:]) if part]
    assert sum(f.loss.item() for _, f in parts) == pytest.approx(terms.loss.item(), abs=1e-9)
    gradients = sorted(g for batch, f in parts for g in _gradient(f, batch.logprobs_N))
    assert gradients == pytest.approx(sorted(_gradient(terms, whole.logprobs_N)), abs=1e-9)


@given(values=st.lists(st.floats(0, 8, width=32), min_size=1, max_size=40), share=st.floats(0.01, 1))
def test_top_share_keeps_the_highest_and_at_least_its_share(values: list[float], share: float) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    kept = tensor >= threshold(tensor, share)
    assert int(kept.sum()) >= max(1, math.floor(share * len(values) - 1e-6))
    if not kept.all():
        assert float(tensor[~kept].max()) < float(tensor[kept].min())


@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6), buffer=st.integers(1, 20), data=st.data())
def test_overlong_penalties_rise_with_length_and_move_with_samples(
    lengths: list[int], buffer: int, data: st.DataObject
) -> None:
    spec = _spec(overlong_buffer=buffer)
    penalties = shaped(_scored([_sample(n) for n in lengths], [1.0] * len(lengths)), spec, 20).penalties
    order = data.draw(st.permutations(range(len(lengths))))
    moved = shaped(_scored([_sample(lengths[i]) for i in order], [1.0] * len(lengths)), spec, 20).penalties
    assert moved == tuple(penalties[i] for i in order)
    assert all(0 <= p <= 1 for p in penalties)
    by_length = sorted(zip(lengths, penalties, strict=True))
    assert [p for _, p in by_length] == sorted(penalties)


# -- through the policy -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    made = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    made.mark_start()
    return made


def _gradients(policy: TorchPolicy, groups: Sequence[TrainGroup], spec: RlSpec) -> list[torch.Tensor]:
    policy.reset_optimizer()
    add_gradient(policy, groups, dict.fromkeys("ab", spec), measure_kl=False)
    found = [master.grad for master in policy._masters if master.grad is not None]
    assert len(found) == len(policy._masters)
    return found


def test_gradient_with_every_option_does_not_depend_on_rows(
    policy: TorchPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, spec = mixed_groups(), _spec(**EVERY, top_entropy=0.5).between(False)
    monkeypatch.setattr(policy, "token_budget", 10_000)
    whole = _gradients(policy, groups, spec)
    assert max(float(g.abs().max()) for g in whole) > 1e-4
    for budget, order in ((20, groups), (1, groups[2:] + groups[:2])):
        monkeypatch.setattr(policy, "token_budget", budget)
        for a, b in zip(whole, _gradients(policy, order, spec), strict=True):
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)


def test_entropies_come_in_the_order_of_groups(policy: TorchPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = mixed_groups()
    monkeypatch.setattr(policy, "token_budget", 20)
    found = policy.entropies(groups, temperature=0.7)
    alone = torch.cat([policy.entropies([group], temperature=0.7) for group in groups])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_each_task_trains_its_own_share_of_tokens(policy: TorchPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """However sure of itself a task is beside another."""
    kept: dict[str, list[int]] = {"a": [], "b": []}

    class Seen(PolicyLoss):
        def __call__(self, batch: TokenBatch) -> LossTerms:
            assert self.least_entropy is not None
            assert batch.entropy_N is not None
            tokens = int((batch.entropy_N >= self.least_entropy).sum()), len(batch.weights_N)
            kept["a" if tokens[1] == 10 else "b"] += tokens
            return super().__call__(batch)

    monkeypatch.setattr("omni_thinker.rl.updates.passes.PolicyLoss", Seen)
    _gradients(policy, mixed_groups(), _spec(top_entropy=0.2))
    assert kept == {"a": [2, 10], "b": [3, 15]}


@pytest.mark.parametrize("setting", [{"top_entropy": 0.5}, {"entropy_beta": 0.1}])
def test_policies_that_know_no_entropies_are_told(setting: dict[str, float]) -> None:
    pools = {"t": [Problem(f"{n}", "t", str(n)) for n in range(20)]}
    learner = Learner(
        UnigramPolicy(None), _spec(**setting), make_streams(pools, 0), {"t": Scripted(in_turns)}, {"t": 5}
    )
    with pytest.raises(UserError, match="can't say the entropy") as caught:
        learner.step({"t": 2}, 0)
    assert caught.value.key == f"rl.{next(iter(setting))}"


def test_a_step_with_every_option_trains_and_reports() -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="bfloat16"))
    policy.mark_start()
    pools = {task: [Problem(f"{task}{n}", task, str(n)) for n in range(20)] for task in "ab"}
    spec = _spec(
        **EVERY, top_entropy=0.5, truncated="keep", overlong_buffer=2, overlong_penalty=0.1, minibatches=2, lr=1e-4
    )
    rewards, lengths = dict.fromkeys(pools, Scripted(in_turns)), dict.fromkeys(pools, 6)
    metrics = Learner(policy, spec, make_streams(pools, 0), rewards, lengths).step({"a": 2, "b": 2}, 0).metrics
    assert metrics["update_applied"] == 1.0
    assert metrics["overlong_penalty/all"] > 0
    assert 0 <= metrics["off_policy/all"] <= 1
    assert metrics["tokens_trained/all"] == metrics["tokens_trained/a"] + metrics["tokens_trained/b"]
    assert {"gradient/a", "gradient/b", "importance/a", "kl_ref/b"} <= {*metrics}
