"""Advantages from several rewards, from the order of a group, and from a judge's preference as it stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rewards.hybrid import HybridReward
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.rl.advantages import ADVANTAGES, STD_EPS, gdpo
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.metrics import group_metrics
from omni_thinker.rl.scoring import Scoring
from omni_thinker.rl.shaping import shaped
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Group, Problem, Sample, Score
from trl_batch import moved_policy, ragged_groups, trainer_maker, trl_inputs

WEIGHTS = {"right": 3.0, "short": 1.0}


def _scored(parts: Sequence[Mapping[str, float]], weights: Mapping[str, float] = WEIGHTS) -> ScoredGroup:
    """A group with the weighed means of `parts` as scores, as a hybrid reward has them."""
    total = sum(weights.values())
    scores = [Score.of(sum(weights[k] * own.get(k, 0.0) for k in weights) / total, **own) for own in parts]
    samples = tuple(Sample((1, 2), (-1.0, -1.0), "", "stop") for _ in parts)
    return ScoredGroup(Problem("p", "t", "p"), Group((1,), samples), tuple(scores), weights=weights)


def _advantages(groups: Sequence[ScoredGroup], spec: RlSpec) -> list[tuple[float, ...]]:
    [batch] = build_batches([shaped(group, spec, 10) for group in groups], spec, 10)
    return [group.advantages for group in batch]


# -- GDPO ---------------------------------------------------------------------------------------------------


def test_gdpo_equals_values_by_hand() -> None:
    # Part right: 1, 0, mean 0.5, deviation sqrt(0.5). Part short: 0.2, 0.6, mean 0.4, deviation 0.2 sqrt(2).
    first = _scored([{"right": 1.0, "short": 0.2}, {"right": 0.0, "short": 0.6}])
    second = _scored([{"right": 0.5, "short": 1.0}, {"right": 0.5, "short": 0.0}])
    z = 0.5 / (math.sqrt(0.5) + STD_EPS)
    s = 0.2 / (0.2 * math.sqrt(2) + STD_EPS)
    sums = [0.75 * z - 0.25 * s, -0.75 * z + 0.25 * s, 0.25 * z, -0.25 * z]
    scale = np.std(sums, ddof=1) + STD_EPS
    found = _advantages([first, second], RlSpec(advantage="gdpo"))
    assert [a for own in found for a in own] == pytest.approx([x / scale for x in sums])
    # The sum's reward lets the wide part drown the other: here only the sign of `right` is left.
    summed = _advantages([first], RlSpec(advantage="grpo"))[0]
    assert summed[0] == pytest.approx(0.5**0.5, abs=1e-3)


def test_answers_of_equal_reward_are_told_apart_by_their_parts() -> None:
    group = _scored([{"right": 1.0, "short": 0.0}, {"right": 2 / 3, "short": 1.0}, {"right": 1.0, "short": 0.0}])
    assert not group.has_signal
    assert build_batches([group], RlSpec(), 10) == []
    apart = shaped(group, RlSpec(advantage="gdpo"), 10)
    assert apart.has_signal
    [own] = _advantages([group], RlSpec(advantage="gdpo"))
    assert own[0] == pytest.approx(own[2])
    assert own[0] > 0 > own[1], "the heavier part decides"


def test_a_part_that_a_gate_closed_counts_as_0() -> None:
    group = _scored([{"right": 1.0, "short": 1.0}, {"finished": 0.0}])
    assert group.parts == {"right": [1.0, 0.0], "short": [1.0, 0.0]}


def test_a_reward_without_parts_is_its_only_part() -> None:
    bare = ScoredGroup(Problem("p", "t", "p"), _scored([{}, {}]).group, (Score.of(1.0), Score.of(0.0)))
    [own] = _advantages([bare], RlSpec(advantage="gdpo"))
    assert own[0] == pytest.approx(-own[1])
    assert own[0] > 0


def test_overlong_answers_lose_in_a_part_of_its_own() -> None:
    group = _scored([{"right": 1.0, "short": 1.0}, {"right": 1.0, "short": 1.0}])
    longer = Group((1,), (Sample((1,) * 10, (-1.0,) * 10, "", "length"), group.group.samples[1]))
    long = ScoredGroup(group.problem, longer, group.scores, weights=WEIGHTS)
    [own] = _advantages([long], RlSpec(advantage="gdpo", overlong_buffer=4))
    assert own[0] < 0 < own[1]


def test_samples_without_a_score_have_no_part_in_it() -> None:
    group = _scored([{"right": 1.0}, {"right": 0.0}, {"right": 0.5}])
    holed = ScoredGroup(group.problem, group.group, (*group.scores[:2], Score.error("x")), weights=WEIGHTS)
    [own] = _advantages([holed], RlSpec(advantage="gdpo"))
    assert len(own) == 2


PARTS = (((1.0, 0.25), (0.0, 0.5), (0.25, 0.0)), ((0.2, 1.0), (0.9, 0.0), (0.9, 0.5)))


def test_gdpo_equals_trl(tiny_model: Path, tmp_path: Path) -> None:
    groups = ragged_groups(moved_policy(tiny_model))
    trainer = trainer_maker(tiny_model, tmp_path)(
        parts=2, multi_objective_aggregation="normalize_then_sum", reward_weights=[3.0, 1.0]
    )
    theirs = trl_inputs(trainer, groups, [row for own in PARTS for row in own])["advantages"].tolist()
    scored = [
        ScoredGroup(g.problem, g.group, tuple(Score.of(0.5, right=r, short=s) for r, s in own), weights=WEIGHTS)
        for g, own in zip(groups, PARTS, strict=True)
    ]
    found = _advantages(scored, RlSpec(advantage="gdpo"))
    # TRL's weights don't add up to 1, and its eps is beside a spread that is larger by as much.
    assert [a for own in found for a in own] == pytest.approx(theirs, rel=1e-3)
    doubled = gdpo([np.array(own) for own in PARTS], [np.array([3.0, 1.0])] * 2)
    assert [float(a) for own in doubled for a in own] == pytest.approx(theirs, abs=1e-5)


rows = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=5)


@given(groups=st.lists(rows, min_size=1, max_size=4), data=st.data())
def test_gdpo_moves_with_its_groups_and_samples(groups: list[Any], data: st.DataObject) -> None:
    weights = np.array([0.75, 0.25])
    plain = gdpo([np.array(own) for own in groups], [weights] * len(groups))
    outer = data.draw(st.permutations(range(len(groups))))
    inner = [data.draw(st.permutations(range(len(own)))) for own in groups]
    moved = gdpo([np.array([groups[i][k] for k in inner[i]]) for i in outer], [weights] * len(groups))
    for i, own in zip(outer, moved, strict=True):
        assert own.tolist() == pytest.approx([plain[i][k] for k in inner[i]], abs=1e-6)
    for own in plain:
        assert float(own.sum()) == pytest.approx(0, abs=1e-6)


@given(own=rows, scale=st.floats(0.2, 1.0))
def test_a_parts_spread_does_not_change_its_say(own: list[tuple[float, float]], scale: float) -> None:
    parts = np.array(own)
    if parts.std(axis=0).min() < 0.05:  # below, the eps that keeps it finite is felt
        return
    weights = [np.array([0.7, 0.3])]  # equal ones may cancel, and the batch's scale blows up what is left
    [one], [other] = gdpo([parts], weights), gdpo([parts * np.array([1.0, scale])], weights)
    assert other.tolist() == pytest.approx(one.tolist(), abs=0.02)


# -- the order of a group, and preferences ------------------------------------------------------------------


def test_rank_equals_values_by_hand() -> None:
    [own] = ADVANTAGES["rank"]([np.array([0.9, 0.1, 0.1, 0.2])])
    assert own.tolist() == pytest.approx([1.0, -2 / 3, -2 / 3, 1 / 3])
    assert ADVANTAGES["rank"]([np.array([0.7])])[0].tolist() == [0.0]


@given(own=st.lists(st.integers(0, 5), min_size=2, max_size=6))
def test_rank_depends_on_the_order_alone_and_is_centred(own: list[int]) -> None:
    [a], [b] = ADVANTAGES["rank"]([np.array(own, float)]), ADVANTAGES["rank"]([np.exp(np.array(own, float))])
    assert a.tolist() == b.tolist()
    assert sum(a) == pytest.approx(0)
    assert a.max() <= 1


def test_preference_is_the_judges_word_as_it_stands() -> None:
    wins, mixed = np.array([1.0, 1.0, 0.5]), np.array([0.0, 1.0])
    [one, other] = ADVANTAGES["preference"]([wins, mixed])
    assert one.tolist() == [1.0, 1.0, 0.0]
    assert other.tolist() == [-1.0, 1.0]
    # Shares of siblings beaten, as `ranking` gives them, are centred: then it is the whole ranking at twice dr_grpo's.
    shares = np.array([1.0, 2 / 3, 1 / 3, 0.0])
    [ranking] = ADVANTAGES["preference"]([shares])
    assert ranking.tolist() == pytest.approx((2 * ADVANTAGES["dr_grpo"]([shares])[0]).tolist())
    assert ranking.tolist() == pytest.approx(ADVANTAGES["rank"]([shares])[0].tolist())


# -- through rewards and a step -----------------------------------------------------------------------------


class _Says(SamplePart):
    def __init__(self, value: Callable[[Sample], float]) -> None:
        self._value = value

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        return valued(self._value(sample))


def _hybrid() -> HybridReward:
    even = _Says(lambda sample: float(sample.tokens[0] % 2 == 0))
    return HybridReward({"gate": _Says(lambda sample: float(sample.tokens[0] % 3 > 0))}, {
        "right": even, "short": _Says(lambda sample: 1 - len(sample.tokens) / 16),
    }, WEIGHTS)  # fmt: skip


def test_scoring_takes_the_weights_from_a_hybrid_reward() -> None:
    samples = tuple(Sample((n,) * (n + 1), (-1.0,) * (n + 1), str(n), "stop") for n in range(4))
    with Scoring({"t": _hybrid()}) as scoring:
        scoring.submit(0, Problem("p", "t", "p"), Group((1,), samples))
        [group] = scoring.results()
    assert group.weights == WEIGHTS
    assert group.parts == {"right": [0.0, 0.0, 1.0, 0.0], "short": [0.0, 1 - 2 / 16, 1 - 3 / 16, 0.0]}
    means = [sum(WEIGHTS[k] * group.parts[k][n] for k in WEIGHTS) / 4 for n in range(4)]
    assert group.values == pytest.approx(means)


def test_metrics_say_how_often_each_part_has_signal() -> None:
    groups = [
        _scored([{"right": 1.0, "short": 0.2}, {"right": 1.0, "short": 0.6}]),
        _scored([{"right": 1.0, "short": 0.2}, {"right": 0.0, "short": 0.6}]),
        _scored([{"right": 0.0, "short": 0.5}, {"right": 0.0, "short": 0.5}]),
    ]
    metrics = group_metrics(groups)
    assert metrics["part_signal.right/t"] == pytest.approx(1 / 3)
    assert metrics["part_signal.short/all"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("advantage", ["gdpo", "rank", "preference"])
def test_a_step_trains_by_each_estimator(advantage: str) -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    pools = {"t": [Problem(f"{n}", "t", str(n)) for n in range(20)]}
    spec = RlSpec.model_validate({"advantage": advantage, "kl_every": 0, "lr": 1e-5})
    metrics = Learner(policy, spec, make_streams(pools, 0), {"t": _hybrid()}, {"t": 8}).step({"t": 3}, 0).metrics
    assert metrics["update_applied"] == 1.0
    assert metrics["advantage/t"] > 0
    assert 0 < metrics["part_signal.short/t"] <= 1
