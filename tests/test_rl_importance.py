"""Importance weights between sampler and trainer: by hand, as TRL has them, and in a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OnGroup, ScoresTokens, TokenBatch, TokenStats, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import SURROGATES, make_loss
from omni_thinker.rl.metrics import token_metrics
from omni_thinker.rl.stream import make_streams
from omni_thinker.rl.updates.mismatch import mismatch_sums, stop_on_mismatch, trainer_logprobs
from omni_thinker.types import Group, Problem, Sample, SampleRequest, SamplingParams, Thoughts
from scripted import Scripted, in_turns
from trl_batch import MAX_TOKENS, REWARDS, move, moved_policy, ragged_groups, trainer_maker, trl_inputs

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def _spec(**settings: Any) -> RlSpec:
    return RlSpec.model_validate({"kl_every": 0, "group_size": 4, "lr": 1e-6, **settings})


# -- by hand ------------------------------------------------------------------------------------------------

OLD_OVER_SAMPLER = (4.0, 1.0, 0.5, 0.1, 3.0)
"""Of two samples, of three tokens and of two: their weights as a whole are 2 and 0.3."""
SAMPLES = (0, 0, 0, 1, 1)


def _batch(ratios: Sequence[float] = (1.0,) * 5, recomputed: bool = True) -> TokenBatch:
    now = torch.full((5,), -1.0, dtype=torch.float64, requires_grad=True)
    old = now.detach() - torch.tensor(ratios, dtype=torch.float64).log()
    sampler = old - torch.tensor(OLD_OVER_SAMPLER, dtype=torch.float64).log()
    ones = torch.ones(5, dtype=torch.float64)
    plain = TokenBatch(now, old, None, 2 * ones, 0.5 * ones, torch.tensor(SAMPLES), sampler)
    return plain if recomputed else replace(plain, old_logprobs_N=sampler, sampler_logprobs_N=None)


@pytest.mark.parametrize(
    ("mode", "cap", "floor", "expected"),
    [
        ("token_truncate", 2.0, 0.0, [2, 1, 0.5, 0.1, 2]),
        ("token_truncate", 2.0, 0.25, [2, 1, 0.5, 0.25, 2]),
        ("token_mask", 2.0, 0.0, [0, 1, 0.5, 0.1, 0]),
        ("token_mask", 3.5, 0.25, [0, 1, 0.5, 0, 3]),
        ("sequence_truncate", 1.5, 0.0, [1.5, 1.5, 1.5, 0.3, 0.3]),
        ("sequence_mask", 1.5, 0.0, [0, 0, 0, 0.3, 0.3]),
        ("sequence_mask", 2.5, 0.4, [2, 2, 2, 0, 0]),
    ],
)
def test_weights_equal_values_by_hand(mode: str, cap: float, floor: float, expected: list[float]) -> None:
    loss = make_loss(_spec(importance=mode, importance_cap=cap, importance_floor=floor))
    batch = _batch()
    terms = loss(batch)
    assert terms.importance_N is not None
    assert terms.cut_N is not None
    assert terms.importance_N.tolist() == pytest.approx(expected)
    unbounded = [2, 2, 2, 0.3, 0.3] if mode.startswith("sequence") else list(OLD_OVER_SAMPLER)
    assert terms.cut_N.tolist() == [w > cap or w < floor for w in unbounded]
    assert terms.loss.item() == pytest.approx(-2 * 0.5 * sum(expected))
    [gradient] = torch.autograd.grad(terms.loss, batch.logprobs_N)
    assert gradient.tolist() == pytest.approx([-w for w in expected])


def test_ratio_of_the_update_is_clipped_apart_from_the_weight() -> None:
    terms = make_loss(_spec(importance_cap=2.0))(_batch(ratios=[1.5, 1.1, 1.0, 1.0, 0.5]))
    assert terms.loss.item() == pytest.approx(-(1.2 * 2 + 1.1 * 1 + 0.5 + 0.1 + 0.5 * 2))
    assert terms.clipped_N.tolist() == [True, False, False, False, False]


def test_first_update_of_a_step_measures_from_the_log_probs_of_now() -> None:
    whole, first = _batch(), _batch(recomputed=False)
    loss = make_loss(_spec(importance_cap=2.0))
    assert loss(whole).loss.item() == loss(first).loss.item()
    assert not loss(first).clipped_N.any()


def test_without_a_cap_nothing_is_weighed() -> None:
    for spec in (_spec(), _spec(importance_cap=0.0)):
        terms = make_loss(spec)(_batch())
        assert terms.importance_N is None
        assert terms.loss.item() == pytest.approx(-5)


def test_kl_term_has_no_importance_weight() -> None:
    batch = replace(_batch(), reference_logprobs_N=torch.full((5,), -1.0 + math.log(2), dtype=torch.float64))
    with_kl = make_loss(_spec(importance_cap=2.0, kl_beta=0.1))(batch).loss
    assert (with_kl - make_loss(_spec(importance_cap=2.0))(batch).loss).item() == pytest.approx(
        5 * 0.5 * 0.1 * (1 - math.log(2))
    )


def test_defaults_depend_on_whether_the_engines_differ() -> None:
    same, different = RlSpec().between(False), RlSpec().between(True)
    assert (same.importance_cap, same.max_mismatch) == (0.0, None)
    assert (different.importance_cap, different.max_mismatch) == (2.0, 0.2)
    own = RlSpec(importance_cap=0.0, max_mismatch=1.0)
    assert own.between(True) == own.between(False) == own


# -- what holds for all -------------------------------------------------------------------------------------

rows = st.lists(st.lists(st.tuples(st.floats(-2, 2), st.floats(-1, 1)), min_size=1, max_size=4), min_size=1, max_size=5)


def _from_rows(samples: list[list[tuple[float, float]]]) -> TokenBatch:
    flat = [(weight, ratio, s) for s, tokens in enumerate(samples) for weight, ratio in tokens]
    now = torch.full((len(flat),), -1.0, dtype=torch.float64, requires_grad=True)
    old = now.detach() - torch.tensor([ratio for _, ratio, _ in flat], dtype=torch.float64)
    sampler = old - torch.tensor([weight for weight, _, _ in flat], dtype=torch.float64)
    sample_N = torch.tensor([s for *_, s in flat])
    lengths = torch.tensor([len(samples[s]) for s in sample_N], dtype=torch.float64)
    return TokenBatch(now, old, None, lengths - 2.5, 1 / lengths, sample_N, sampler)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", sorted(SURROGATES))
@given(samples=rows, data=st.data())
def test_micro_batches_add_up_in_any_order(loss: str, mode: str, samples: Any, data: st.DataObject) -> None:
    function = make_loss(_spec(loss=loss, importance=mode, importance_cap=1.5, importance_floor=0.3))
    whole = function(_from_rows(samples))
    order = data.draw(st.permutations(samples))
    cut = data.draw(st.integers(0, len(order)))
    parts = [function(_from_rows(part)) for part in (order[:cut], order[cut:]) if part]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), abs=1e-9)
    assert sum(int(part.cut_N.sum()) for part in parts if part.cut_N is not None) == int(whole.cut_N.sum())  # type: ignore[union-attr]


# -- as TRL -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    return moved_policy(tiny_model)


@pytest.fixture(scope="module")
def groups(policy: TorchPolicy) -> list[ScoredGroup]:
    return ragged_groups(policy)


@pytest.fixture
def trainer_of(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    return trainer_maker(tiny_model, tmp_path)


@pytest.mark.parametrize("updated", [False, True])
@pytest.mark.parametrize(
    ("mode", "cap", "floor"),
    [("token_truncate", 1.3, 0.9), ("token_mask", 1.5, 0.5), ("sequence_truncate", 1.5, 0.0), ("sequence_mask", 2, 0)],
)
def test_loss_and_gradient_equal_trl(
    mode: str, cap: float, floor: float, updated: bool, tiny_model: Path, groups: list[ScoredGroup],
    policy: TorchPolicy, trainer_of: Callable[..., Any],
) -> None:  # fmt: skip
    """`updated`: the weights have changed since the trainer's old log-probs, as in later mini-batches."""
    spec = _spec(importance=mode, importance_cap=float(cap), importance_floor=float(floor), loss="dapo")
    trainer = trainer_of(
        loss_type="dapo", epsilon=0.2, epsilon_high=0.28, beta=0.0, vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=float(cap), vllm_importance_sampling_clip_min=float(floor) or None,
    )  # fmt: skip
    trainer.model.load_state_dict(policy.model.state_dict())
    inputs = trl_inputs(trainer, groups, [r for own in REWARDS for r in own], sampler=True)
    [batch] = build_batches(groups, spec, MAX_TOKENS)
    now = moved_policy(tiny_model)
    if updated:
        batch = trainer_logprobs(now, batch, {"task": 1.0})
        move(now, 5, by=0.02)
        trainer.model.load_state_dict(now.model.state_dict())
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    report = now.forward_backward(batch, make_loss(spec))

    stats = report.stats["task"]
    assert 0 < stats.cut < stats.weighed == stats.tokens, "the batch must exercise the bounds"
    assert (stats.clipped > 0) == updated
    assert report.loss == pytest.approx(theirs.item(), abs=1e-5)
    gradients = {key: p.grad for key, p in trainer.model.named_parameters()}
    for key, master in zip(now._names, now._masters, strict=True):
        torch.testing.assert_close(master.grad, gradients[key], atol=1e-5, rtol=1e-4)


# -- in a step ----------------------------------------------------------------------------------------------


class Elsewhere(TorchPolicy):
    """A policy whose sampler says log-probs that are `off` by some nats, as another engine's would be."""

    samples_elsewhere = True
    passes = 0

    def __init__(self, off: float = 0.05) -> None:
        super().__init__(ModelSpec(name="tiny", dtype="float32"))
        self.off = off

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        def shifted(group: Group) -> Group:
            moved = [replace(s, logprobs=tuple(x - self.off for x in s.logprobs)) for s in group.samples]
            return replace(group, samples=tuple(moved))

        def tell(place: int, group: Group) -> None:
            if on_group is not None:
                on_group(place, shifted(group))

        return [shifted(group) for group in super().sample(requests, params, tell)]

    def logprobs(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.passes += 1
        return super().logprobs(*args, **kwargs)


def _step(policy: TorchPolicy, **settings: Any) -> dict[str, float]:
    pools = {task: [Problem(f"{task}{n}", task, str(n)) for n in range(20)] for task in ("a", "b")}
    rewards, lengths = dict.fromkeys(pools, Scripted(in_turns)), dict.fromkeys(pools, 6)
    learner = Learner(policy, _spec(**settings), make_streams(pools, 0), rewards, lengths)
    return dict(learner.step({"a": 2, "b": 1}, 0).metrics)


def test_another_engine_has_weights_by_default_and_one_engine_has_none() -> None:
    policy = Elsewhere()
    metrics = _step(policy)
    assert metrics["importance/all"] == pytest.approx(math.exp(0.05), rel=1e-4)
    assert metrics["importance/a"] == pytest.approx(math.exp(0.05), rel=1e-4)
    assert metrics["importance_cut/all"] == 0.0
    assert metrics["mismatch_abs/all"] == pytest.approx(0.05, rel=1e-3)
    assert metrics["clip_frac/all"] == 0.0
    assert policy.passes == 0, "a step's only update costs no pass more"
    assert not any(key.startswith("importance") for key in _step(TorchPolicy(ModelSpec(name="tiny"))))


@pytest.mark.parametrize("settings", [{"minibatches": 2}, {"update": "task"}, {"old_logprobs": "trainer"}])
def test_later_updates_measure_from_log_probs_before_the_first(settings: dict[str, Any]) -> None:
    policy = Elsewhere()
    metrics = _step(policy, importance_cap=1.04, lr=1e-3, **settings)
    assert isinstance(policy, ScoresTokens)
    assert policy.passes == (1 if "old_logprobs" in settings else 2)
    assert metrics["importance/all"] == pytest.approx(1.04, rel=1e-4), "the update has no part in the weights"
    assert metrics["importance_cut/all"] == 1.0
    for task in ("all", "a", "b"):
        assert metrics[f"mismatch_abs/{task}"] == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"minibatches": 2}, {"old_logprobs": "trainer"}])
def test_a_mismatch_above_the_bound_stops_before_anything_is_updated(settings: dict[str, Any]) -> None:
    policy = Elsewhere(off=0.3)
    before = [master.detach().clone() for master in policy._masters]
    with pytest.raises(UserError, match=r"differ by 0\.3 nats a token, more than 0\.2") as caught:
        _step(policy, **settings)
    assert caught.value.key == "rl.max_mismatch"
    assert "\n" not in str(caught.value)
    for one, master in zip(before, policy._masters, strict=True):
        assert torch.equal(one, master)
    assert _step(policy, max_mismatch=0.5, **settings)["update_applied"] == 1.0


def test_one_engine_has_no_bound_unless_asked() -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="bfloat16"))
    assert _step(policy)["mismatch_abs/all"] > 1e-5
    with pytest.raises(UserError, match="differ by"):
        _step(policy, max_mismatch=1e-5)


def test_the_bound_is_of_the_mean_over_all_tokens() -> None:
    stats = {"a": TokenStats(tokens=30, mismatch=3.0), "b": TokenStats(tokens=10, mismatch=7.0)}
    stop_on_mismatch(stats, 0.25)
    stop_on_mismatch({}, 0.25)
    with pytest.raises(UserError, match=r"more than 0\.24"):
        stop_on_mismatch(stats, 0.24)


def test_recomputed_batches_keep_the_samplers_log_probs(policy: TorchPolicy, groups: list[ScoredGroup]) -> None:
    [batch] = build_batches(groups, RlSpec(), MAX_TOKENS)
    recomputed = trainer_logprobs(policy, batch, {"task": 1.0})
    assert [group.sampler_logprobs for group in recomputed] == [
        tuple(sample.logprobs for sample in group.samples) for group in batch
    ]
    pairs = [
        (x, y)
        for group in recomputed
        for sample, drawn in zip(group.samples, group.sampler_logprobs, strict=True)
        for x, y in zip(sample.logprobs, drawn, strict=True)
    ]
    found = token_metrics(mismatch_sums(recomputed))
    assert found["mismatch_abs/task"] == pytest.approx(sum(abs(x - y) for x, y in pairs) / len(pairs))


def test_tokens_written_for_the_model_have_no_mismatch() -> None:
    thoughts = Thoughts("", 2, True, forced=(1,))
    sample = Sample((5, 6, 7), (-1.0, -9.0, -2.0), "", "stop", thoughts)
    group = TrainGroup("t", (1,), (sample,), (1.0,), (1.0,), sampler_logprobs=((-1.5, 0.0, -2.0),))
    assert group.drawn_sampler_logprobs == [-1.5, -2.0]
    assert mismatch_sums([group])["t"] == TokenStats(tokens=2, mismatch=0.5)
