"""Advantages and training batches: who is trained, against which baseline, with which token weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.advantages import ADVANTAGES, STD_EPS, Rewards, has_signal
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.types import Group, Problem, Sample, Score

NAMES = ("dr_grpo", "grpo", "reinforce_pp", "rloo")  # what is centred; the others are in test_rl_parts
MAX_TOKENS = 10
rewards = st.lists(st.floats(0, 1), min_size=2, max_size=6)
batches = st.lists(rewards, min_size=1, max_size=5)


def _arrays(groups: Sequence[Sequence[float]]) -> list[Rewards]:
    return [np.array(g, dtype=np.float64) for g in groups]


def _advantages(name: str, groups: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[float(a) for a in own] for own in ADVANTAGES[name](_arrays(groups))]


# -- advantages ---------------------------------------------------------------------------------------------


def test_advantages_equal_values_by_hand() -> None:
    groups = [[1.0, 0.0, 0.0, 0.0], [1.0, 0.5]]
    # Means 0.25 and 0.75; standard deviations with n - 1: 0.5 and sqrt(0.125).
    std = [0.5 + STD_EPS, math.sqrt(0.125) + STD_EPS]
    assert _advantages("grpo", groups)[0] == pytest.approx([0.75 / std[0]] + [-0.25 / std[0]] * 3)
    assert _advantages("grpo", groups)[1] == pytest.approx([0.25 / std[1], -0.25 / std[1]])
    assert _advantages("dr_grpo", groups) == [[0.75, -0.25, -0.25, -0.25], [0.25, -0.25]]
    assert _advantages("rloo", groups)[0] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert _advantages("rloo", groups)[1] == pytest.approx([0.5, -0.5])
    # All six centred rewards: mean square (0.5625 + 3 * 0.0625 + 2 * 0.0625) / 6.
    scale = math.sqrt(0.875 / 6) + STD_EPS
    assert _advantages("reinforce_pp", groups)[0] == pytest.approx([0.75 / scale] + [-0.25 / scale] * 3)
    assert _advantages("reinforce_pp", groups)[1] == pytest.approx([0.25 / scale, -0.25 / scale])


@pytest.mark.parametrize("name", NAMES)
def test_group_of_one_sample_has_advantage_0(name: str) -> None:
    assert _advantages(name, [[0.7]]) == [[0.0]]
    assert _advantages(name, []) == []


@pytest.mark.parametrize("name", NAMES)
@given(groups=batches)
def test_advantages_sum_to_zero_in_each_group(name: str, groups: list[list[float]]) -> None:
    for own in _advantages(name, groups):
        assert sum(own) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(groups=batches, shift=st.floats(-5, 5))
def test_advantages_are_invariant_to_a_shift_of_the_rewards(name: str, groups: list[list[float]], shift: float) -> None:
    moved = _advantages(name, [[r + shift for r in g] for g in groups])
    for a, b in zip(_advantages(name, groups), moved, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("name", ["dr_grpo", "rloo"])
@given(groups=batches, scale=st.floats(0.1, 10))
def test_dr_grpo_and_rloo_advantages_scale_with_the_rewards(name: str, groups: list[list[float]], scale: float) -> None:
    scaled = _advantages(name, [[r * scale for r in g] for g in groups])
    for a, b in zip(_advantages(name, groups), scaled, strict=True):
        assert [scale * x for x in a] == pytest.approx(b, abs=1e-8)


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp"])
@given(groups=batches, scale=st.floats(0.5, 5))
def test_grpo_and_reinforce_pp_advantages_ignore_the_scale_of_rewards(
    name: str, groups: list[list[float]], scale: float
) -> None:
    assume(all(np.std(g) > 0.1 for g in groups))  # below, the eps that keeps it finite is felt
    scaled = _advantages(name, [[r * scale for r in g] for g in groups])
    for a, b in zip(_advantages(name, groups), scaled, strict=True):
        assert a == pytest.approx(b, rel=5e-3, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(groups=batches, data=st.data())
def test_advantages_do_not_depend_on_the_order_of_groups_or_samples(
    name: str, groups: list[list[float]], data: st.DataObject
) -> None:
    """Permutes the groups and the samples in them."""
    outer = data.draw(st.permutations(range(len(groups))))
    inner = [data.draw(st.permutations(range(len(g)))) for g in groups]
    plain = _advantages(name, groups)
    moved = _advantages(name, [[groups[i][k] for k in inner[i]] for i in outer])
    for i, own in zip(outer, moved, strict=True):
        assert own == pytest.approx([plain[i][k] for k in inner[i]], abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
@given(own=rewards)
def test_higher_reward_never_has_a_lower_advantage(name: str, own: list[float]) -> None:
    [found] = _advantages(name, [own])
    for i, j in ((i, j) for i in range(len(own)) for j in range(len(own))):
        if own[i] > own[j]:
            assert found[i] >= found[j]
        elif own[i] == own[j]:
            assert found[i] == found[j]


@pytest.mark.parametrize(
    ("own", "expected"),
    [([1.0, 1.0], False), ([0.5], False), ([], False), ([0.3, 0.3 + 1e-12], False), ([0.0, 1e-6], True)],
)
def test_has_signal_needs_a_spread_of_rewards(own: list[float], expected: bool) -> None:
    assert has_signal(own) is expected


# -- batches ------------------------------------------------------------------------------------------------


def _score(value: float | str) -> Score:
    if isinstance(value, str):
        return Score.error("boom") if value == "error" else Score.abstain("unsure")
    return Score.of(value)


def _scored(task: str, values: Sequence[float | str], lengths: Sequence[int], name: str = "p") -> ScoredGroup:
    """Sample n consists of `lengths[n]` tokens n + 10, so that it can be told apart."""
    answers = tuple(Sample((n + 10,) * k, (-0.5,) * k, "", "stop") for n, k in enumerate(lengths))
    return ScoredGroup(Problem(name, task, name), Group((1, 2), answers), tuple(map(_score, values)))


def _spec(**settings: str | int) -> RlSpec:
    return RlSpec.model_validate(settings)


def _weights(batch: Sequence[TrainGroup]) -> list[tuple[float, ...]]:
    return [group.weights for group in batch]


def _mass(batch: Sequence[TrainGroup], task: str | None = None) -> float:
    """What the token weights sum to."""
    return sum(
        weight * len(sample.tokens)
        for group in batch
        if task in (None, group.task)
        for sample, weight in zip(group.samples, group.weights, strict=True)
    )


def test_groups_without_signal_are_dropped() -> None:
    dead, dull = _scored("a", [0.5, 0.5], [2, 2]), _scored("a", ["error", 0.5], [2, 2])
    live = _scored("a", [0.0, 1.0], [2, 2])
    [batch] = build_batches([dead, live, dull], _spec(), MAX_TOKENS)
    assert len(batch) == 1
    assert batch[0].advantages == pytest.approx((-0.5 / (math.sqrt(0.5) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4)))
    assert build_batches([dead, dull], _spec(), MAX_TOKENS) == []
    assert build_batches([], _spec(minibatches=3), MAX_TOKENS) == []


@pytest.mark.parametrize("bad", ["error", "abstain"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normaliser", ["sample", "token", "task_token", "constant"])
def test_errors_and_abstentions_leave_the_baseline_and_the_batch(bad: str, name: str, normaliser: str) -> None:
    """Advantages and weights of the others are as if the unscored samples had never been drawn."""
    spec = _spec(advantage=name, normaliser=normaliser)
    other = _scored("b", [0.25, 1.0], [1, 5])
    [found] = build_batches([_scored("a", [1.0, bad, 0.0, 0.5], [3, 9, 4, 2]), other], spec, MAX_TOKENS)
    [expected] = build_batches([_scored("a", [1.0, 0.0, 0.5], [3, 4, 2]), other], spec, MAX_TOKENS)
    assert [sample.tokens[0] for sample in found[0].samples] == [10, 12, 13]
    assert [g.advantages for g in found] == [g.advantages for g in expected]
    assert _weights(found) == _weights(expected)


def test_normaliser_weights_equal_values_by_hand() -> None:
    # Task a: lengths 1 and 3. Task b: lengths 2, 2 and 8. In all 5 samples, 16 tokens.
    groups = [_scored("a", [0.0, 1.0], [1, 3]), _scored("b", [0.0, 1.0, 1.0], [2, 2, 8])]
    found = {
        kind: _weights(build_batches(groups, _spec(normaliser=kind), MAX_TOKENS)[0])
        for kind in ("sample", "token", "task_token", "constant")
    }
    assert found["sample"][0] == pytest.approx((1 / 5, 1 / 15))
    assert found["sample"][1] == pytest.approx((1 / 10, 1 / 10, 1 / 40))
    assert found["token"] == [pytest.approx((1 / 16,) * 2), pytest.approx((1 / 16,) * 3)]
    assert found["task_token"] == [pytest.approx((1 / 8,) * 2), pytest.approx((1 / 24,) * 3)]
    assert found["constant"] == [pytest.approx((1 / 50,) * 2), pytest.approx((1 / 50,) * 3)]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [("grpo", "sample"), ("gspo", "sample"), ("dapo", "token"), ("cispo", "token"), ("dr_grpo", "constant")],
)
def test_auto_normaliser_is_the_published_one_of_the_loss(loss: str, kind: str) -> None:
    groups = [_scored("a", [0.0, 1.0], [1, 3])]
    auto = build_batches(groups, _spec(loss=loss), MAX_TOKENS)
    assert _weights(auto[0]) == _weights(build_batches(groups, _spec(loss=loss, normaliser=kind), MAX_TOKENS)[0])


lengths = st.lists(st.integers(1, MAX_TOKENS), min_size=2, max_size=5)
mixed = st.lists(st.tuples(st.sampled_from("abc"), lengths), min_size=1, max_size=8)


def _alternating(groups: list[tuple[str, list[int]]]) -> list[ScoredGroup]:
    return [_scored(t, [float(n % 2) for n in range(len(k))], k, f"p{i}") for i, (t, k) in enumerate(groups)]


@given(groups=mixed)
def test_token_weights_of_a_batch_sum_to_1(groups: list[tuple[str, list[int]]]) -> None:
    scored = _alternating(groups)
    for kind in ("sample", "token", "task_token"):
        [batch] = build_batches(scored, _spec(normaliser=kind), MAX_TOKENS)
        assert _mass(batch) == pytest.approx(1.0)
    [batch] = build_batches(scored, _spec(normaliser="constant"), MAX_TOKENS)
    flat = [k for _, own in groups for k in own]
    assert _mass(batch) == pytest.approx(sum(flat) / (len(flat) * MAX_TOKENS))


@given(groups=mixed)
def test_task_token_gives_tasks_equal_weight(groups: list[tuple[str, list[int]]]) -> None:
    [batch] = build_batches(_alternating(groups), _spec(normaliser="task_token"), MAX_TOKENS)
    tasks = {task for task, _ in groups}
    for task in tasks:
        assert _mass(batch, task) == pytest.approx(1 / len(tasks))


@given(groups=mixed, parts=st.integers(1, 5))
def test_minibatches_contain_every_group_once_with_its_advantages(
    groups: list[tuple[str, list[int]]], parts: int
) -> None:
    scored = [
        ScoredGroup(g.problem, Group((100 + i,), g.group.samples), g.scores) for i, g in enumerate(_alternating(groups))
    ]
    found = build_batches(scored, _spec(minibatches=parts, normaliser="token", advantage="reinforce_pp"), MAX_TOKENS)
    [whole] = build_batches(scored, _spec(normaliser="token", advantage="reinforce_pp"), MAX_TOKENS)
    assert len(found) == min(parts, len(groups))
    assert sorted(g.prompt for b in found for g in b) == [(100 + i,) for i in range(len(groups))]
    assert max(map(len, found)) - min(map(len, found)) <= 1
    # Advantages are taken over all of them, weights within each.
    advantages = {g.prompt: g.advantages for g in whole}
    for batch in found:
        assert _mass(batch) == pytest.approx(1.0)
        assert all(group.advantages == advantages[group.prompt] for group in batch)


def test_minibatches_contain_every_task_in_equal_shares() -> None:
    scored = [_scored(task, [0.0, 1.0], [2, 2]) for task in "aaaabbbb"]
    found = build_batches(scored, _spec(minibatches=2), MAX_TOKENS)
    assert [[g.task for g in batch] for batch in found] == [["a", "a", "b", "b"]] * 2


def test_order_of_tasks_makes_one_batch_per_task_with_signal() -> None:
    scored = [_scored(task, [0.0, 1.0], [2, 2]) for task in "abacb"] + [_scored("d", [1.0, 1.0], [2, 2])]
    found = build_batches(scored, _spec(normaliser="token"), MAX_TOKENS, order=("d", "b", "a", "c"))
    assert [[g.task for g in batch] for batch in found] == [["b", "b"], ["a", "a"], ["c"]], "d has no signal"
    assert all(_mass(batch) == pytest.approx(1.0) for batch in found)


def test_dr_grpo_weighs_hard_and_even_groups_as_its_paper() -> None:
    """A success in 1 of 8 against one in 4 of 8: 0.875 / 0.5 without division by the deviation."""
    hard, even = _scored("a", [1.0] + [0.0] * 7, [4] * 8), _scored("a", [1.0] * 4 + [0.0] * 4, [4] * 8)
    [batch] = build_batches([hard, even], _spec(loss="dr_grpo"), MAX_TOKENS)
    assert batch[0].advantages[0] / batch[1].advantages[0] == pytest.approx(0.875 / 0.5)
    [batch] = build_batches([hard, even], _spec(loss="dr_grpo", advantage="grpo"), MAX_TOKENS)
    assert batch[0].advantages[0] / batch[1].advantages[0] == pytest.approx(2.6458, rel=1e-3)


def test_drawn_normaliser_counts_samples_without_signal() -> None:
    live, dull = _scored("a", [1.0, 0.0], [4, 4]), _scored("a", [0.0, 0.0], [4, 4])
    totals = {}
    for kind in ("sample", "drawn"):
        for name, groups in {"one": [live, dull, dull, dull], "four": [live] * 4}.items():
            [batch] = build_batches(groups, _spec(normaliser=kind), MAX_TOKENS)
            lengths = [len(sample.tokens) for group in batch for sample in group.samples]
            weights = [weight for group in batch for weight in group.weights]
            totals[kind, name] = sum(weight * length for weight, length in zip(weights, lengths, strict=True))
    assert totals == pytest.approx(
        {("sample", "one"): 1.0, ("sample", "four"): 1.0, ("drawn", "one"): 0.25, ("drawn", "four"): 1.0}
    )
