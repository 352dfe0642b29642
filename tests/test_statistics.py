"""Comparisons of arms: a difference is shown where there is one, and only there."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.compare.paired import Values, compare_arms, paired_differences
from omni_thinker.compare.verdict import verdict
from omni_thinker.runs.schema.base import dump
from omni_thinker.runs.schema.result import Comparison

Table = dict[str, dict[str, float]]


def _table(**tasks: Sequence[float]) -> Table:
    return {task: {f"p{i}": float(v) for i, v in enumerate(values)} for task, values in tasks.items()}


def _compare(
    a: Sequence[Values], b: Sequence[Values], resamples: int = 400, confidence: float = 0.95
) -> dict[str, Comparison]:
    """`a` against `b`, by task."""
    found = compare_arms({"b": b, "a": a}, resamples=resamples, confidence=confidence)
    assert all((c.a, c.b) == ("a", "b") for c in found)
    return {c.task: c for c in found}


# -- pairing ------------------------------------------------------------------------------------------------


def test_differences_are_taken_by_problem() -> None:
    found = paired_differences([_table(x=[1.0, 0.5, 0.0])], [_table(x=[0.0, 0.5, 0.25])])
    assert found["x"].tolist() == [[1.0, 0.0, -0.25]]


def test_paired_differences_have_one_row_per_seed() -> None:
    a = [_table(x=[1.0, 0.0]), _table(x=[0.0, 0.0])]
    b = [_table(x=[0.0, 0.0]), _table(x=[0.0, 1.0])]
    assert paired_differences(a, b)["x"].tolist() == [[1.0, 0.0], [0.0, -1.0]]
    assert _compare(a, b)["x"].difference == 0.0


def test_problems_that_one_arm_did_not_score_are_left_out() -> None:
    a = [{"x": {"p": 1.0, "q": 1.0}}, {"x": {"p": 0.0, "r": 1.0}}]
    b = [{"x": {"q": 0.0, "r": 0.5}}, {"x": {"p": 1.0, "r": 0.0}}]
    # Seed 1 pairs q; seed 2 pairs p and r. In no seed is a problem compared with another seed's answer.
    found = paired_differences(a, b)["x"]
    assert np.array_equal(found, [[1.0, np.nan, np.nan], [np.nan, -1.0, 1.0]], equal_nan=True)
    assert _compare(a, b)["x"].difference == pytest.approx(1 / 3)


def test_arms_with_different_numbers_of_seeds_raise() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare_arms({"b": [_table(x=[1.0])], "a": [_table(x=[1.0])] * 2}, resamples=10, confidence=0.9)


def test_macro_difference_weighs_tasks_alike() -> None:
    found = _compare([_table(x=[1.0, 1.0], y=[0.0] * 6)], [_table(x=[0.0, 1.0], y=[0.0] * 6)])
    assert found["x"].difference == 0.5
    assert found["y"].difference == 0.0
    assert found["macro"].difference == pytest.approx(0.25)
    assert [found[t].n for t in ("x", "y", "macro")] == [2, 6, 8]


def test_every_pair_is_compared_later_against_earlier() -> None:
    arms = {name: [_table(x=[v, 0.0], y=[0.0, 0.0])] for name, v in (("start", 0.0), ("joint", 1.0), ("merge", 0.5))}
    found = compare_arms(arms, resamples=50, confidence=0.95)
    assert [(c.a, c.b, c.task) for c in found] == [
        (a, b, task)
        for a, b in (("joint", "start"), ("merge", "start"), ("merge", "joint"))
        for task in ("x", "y", "macro")
    ]
    assert [c.difference for c in found if c.task == "x"] == [0.5, 0.25, -0.25]


# -- shown or not -------------------------------------------------------------------------------------------


def test_identical_arms_have_difference_0_not_shown() -> None:
    rng = np.random.default_rng(0)
    table = _table(x=rng.random(30).tolist(), y=rng.random(20).tolist())
    for comparison in _compare([table], [table]).values():
        assert (comparison.difference, comparison.low, comparison.high) == (0.0, 0.0, 0.0)
        assert not comparison.shown


def test_a_clear_difference_is_shown_in_both_directions() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(0, 0.6, 60)
    low, high = _table(x=base.tolist()), _table(x=(base + rng.uniform(0.1, 0.3, 60)).tolist())
    up, down = _compare([high], [low])["x"], _compare([low], [high])["x"]
    assert up.shown
    assert down.shown
    assert 0.1 < up.low < up.difference < up.high < 0.3
    assert (down.difference, down.low, down.high) == pytest.approx((-up.difference, -up.high, -up.low), abs=5e-3)


def test_noise_around_zero_is_not_shown() -> None:
    half = [0.2, -0.2] * 20
    found = _compare([_table(x=[0.5 + d for d in half])], [_table(x=[0.5] * 40)])["x"]
    assert not found.shown
    assert found.low < 0 < found.high


def test_small_paired_difference_is_shown_despite_spread_of_problems() -> None:
    base = np.linspace(0, 0.9, 40)
    found = _compare([_table(x=(base + 0.02 + 0.01 * (-1.0) ** np.arange(40)).tolist())], [_table(x=base.tolist())])
    assert found["x"].shown
    assert found["x"].high - found["x"].low < 0.02


def test_a_higher_confidence_widens_the_interval() -> None:
    a, b = [_table(x=np.random.default_rng(2).random(30).tolist())], [_table(x=[0.5] * 30)]
    narrow, wide = (_compare(a, b, 2000, c)["x"] for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_comparisons_are_repeatable() -> None:
    a, b = [_table(x=np.random.default_rng(3).random(30).tolist())], [_table(x=[0.5] * 30)]
    assert _compare(a, b) == _compare(a, b)


def test_interval_is_the_percentile_bootstrap() -> None:
    """Compares with a bootstrap written out in this test."""
    d = np.random.default_rng(4).normal(0.1, 0.3, 50)
    found = _compare([_table(x=d.tolist())], [_table(x=[0.0] * 50)], resamples=4000)["x"]
    rng = np.random.default_rng(5)
    means = rng.choice(d, (4000, 50)).mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.01)


def test_macro_interval_resamples_each_task_independently() -> None:
    """The width of the macro interval joins the tasks' own: sqrt(sum of variances) / number of tasks."""
    rng = np.random.default_rng(6)
    a = _table(x=rng.normal(0, 0.3, 80).tolist(), y=rng.normal(0.2, 0.1, 20).tolist())
    found = _compare([a], [_table(x=[0.0] * 80, y=[0.0] * 20)], resamples=4000)
    width = {task: c.high - c.low for task, c in found.items()}
    assert width["macro"] == pytest.approx(np.hypot(width["x"], width["y"]) / 2, rel=0.1)


@pytest.mark.parametrize("truth", [0.0, 0.15])
def test_intervals_contain_the_truth_in_90_to_99_percent_of_runs(truth: float) -> None:
    rng = np.random.default_rng(7)
    held = shown = 0
    for _ in range(200):
        x, y = rng.normal(truth - 0.1, 0.4, 48), rng.normal(truth + 0.1, 0.2, 48)
        macro = _compare([_table(x=x.tolist(), y=y.tolist())], [_table(x=[0.0] * 48, y=[0.0] * 48)], 300)["macro"]
        held += macro.low <= truth <= macro.high
        shown += macro.shown
    assert 180 <= held <= 199
    assert shown <= 20 if truth == 0.0 else shown >= 180


# -- few problems -------------------------------------------------------------------------------------------


def test_difference_on_one_problem_is_not_shown() -> None:
    found = _compare([_table(x=[1.0])], [_table(x=[0.0])])
    for comparison in found.values():
        assert comparison.difference == 1.0
        assert (comparison.low, comparison.high) == (-1.0, 1.0)
        assert not comparison.shown


@pytest.mark.parametrize("y", [[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
def test_task_of_one_problem_among_others_is_not_shown(y: list[float]) -> None:
    """A recipe may set `test = 1`, and its study must still end with a comparison."""
    found = _compare([_table(x=[1.0], y=y)], [_table(x=[0.0], y=[0.0, 0.0, 0.0])])
    assert not found["x"].shown
    assert found["macro"].difference == pytest.approx((1.0 + sum(y) / 3) / 2)
    assert not found["macro"].shown


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_equal_differences_are_not_shown(count: int) -> None:
    """Resampling equal differences only repeats them, which proves nothing."""
    assert not _compare([_table(x=[1.0] * count)], [_table(x=[0.0] * count)])["x"].shown


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 3))
def test_interval_contains_its_difference(values: list[float], seeds: int) -> None:
    found = _compare([_table(x=values, y=values[::-1])] * seeds, [_table(x=[0.5] * len(values), y=values)] * seeds, 200)
    for comparison in found.values():
        slack = 1e-9 + 0.2 * (max(values) - min(values))  # few resamples: a skewed mean may lie near an end
        assert comparison.low - slack <= comparison.difference <= comparison.high + slack
        assert -1 <= comparison.low <= comparison.high <= 1


def test_comparison_dumps_to_plain_json() -> None:
    [one, *_] = compare_arms({"b": [_table(x=[0, 1])], "a": [_table(x=[1, 1])]}, resamples=50, confidence=0.9)
    table = json.loads(json.dumps(dump(one), allow_nan=False))
    assert table["difference"] == 0.5
    assert table["shown"] is one.shown


# -- in words -----------------------------------------------------------------------------------------------


def _comparison(a: str, b: str, difference: float, low: float, high: float, task: str = "macro") -> Comparison:
    return Comparison(a, b, task, difference, low, high, 100, shown=low > 0 or high < 0)


def test_verdict_on_an_interval_with_0_says_no_difference_shown() -> None:
    text = verdict([_comparison("curriculum", "joint", 0.01, -0.02, 0.04)], 0.95, 3)
    assert text.startswith(
        "The arm curriculum was not shown to differ from joint training at this budget. "
        "No difference shown between the planned curriculum and joint training (95 % interval -2.0 to +4.0 points)"
    )
    assert text.endswith("(Macro average over tasks, test split, 3 seeds.)")
    assert "ended" not in text
    for low, high in ((0.0, 0.1), (-0.1, 0.0), (0.0, 0.0)):
        assert "No difference shown" in verdict([_comparison("curriculum", "joint", 0.05, low, high)], 0.95, 1)


def test_verdict_on_a_difference_states_side_and_size() -> None:
    above = verdict([_comparison("curriculum", "start", 0.123, 0.1, 0.15)], 0.9, 2)
    assert above.startswith(
        "The planned curriculum ended 12.3 points above the start (90 % interval +10.0 to +15.0 points)."
    )
    below = verdict([_comparison("joint", "merge", -0.05, -0.08, -0.02)], 0.95, 2)
    assert below.startswith(
        "Shown to beat joint training: merge by 5.0 points. "
        "Joint training ended 5.0 points below merging the single-task experts"
    )
    assert "No difference" not in above + below


def test_verdict_turns_comparisons_in_the_other_order() -> None:
    """Arms are compared later against earlier; the questions have an order of their own."""
    turned = verdict([_comparison("joint", "curriculum", -0.05, -0.08, -0.02)], 0.95, 2)
    assert turned.startswith(
        "Shown to beat joint training: curriculum by 5.0 points. "
        "The planned curriculum ended 5.0 points above joint training (95 % interval +2.0 to +8.0 points)."
    )


def test_verdict_on_one_seed_has_a_warning() -> None:
    comparison = _comparison("joint", "start", 0.1, 0.05, 0.15)
    assert "one seed: another training run may come out differently" in verdict([comparison], 0.95, 1)
    assert "one seed" not in verdict([comparison], 0.95, 2)


def test_verdict_uses_macro_averages_against_start_or_joint_only() -> None:
    assert verdict([_comparison("joint", "start", 0.1, 0.05, 0.15, task="math")], 0.95, 1) == "Nothing was compared."
    assert verdict([], 0.95, 1) == "Nothing was compared."
    alone = verdict([_comparison("sec", "dump", 0.1, 0.05, 0.15)], 0.95, 1)
    assert alone == "Nothing was compared with the start or with joint training."


def test_verdict_answers_every_question_once() -> None:
    arms = {
        name: [_table(x=[v] * 8 + [0.0] * 2, y=[v, 0.1, 0.2] * 2)]
        for name, v in (("start", 0.0), ("curriculum", 0.9), ("joint", 0.5), ("merge", 0.4))
    }
    text = verdict(compare_arms(arms, resamples=100, confidence=0.95), 0.95, 1)
    headline, text = text.split(" Shown to fall short of joint training: merge by 5.7 points. ")
    assert headline == "Shown to beat joint training: curriculum by 22.7 points."
    firsts = [sentence.split(" ended ")[0] for sentence in text.split("points). ")[:-1]]
    assert firsts == ["The planned curriculum", "Joint training"] + ["The planned curriculum"] * 2 + ["Joint training"]
    for words in ("51.0 points above the start", "22.7 points above joint", "5.7 points above merging"):
        assert text.count(words) == 1
