"""Transfer matrices are checked, forecasts follow their formulas, and plans are the best there are."""

from __future__ import annotations

import copy
import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.rl.evaluate import Estimate
from omni_thinker.transfer.forecast import FORECASTERS, Interval, MatrixDraws, check_order, forecast_order
from omni_thinker.transfer.matrix import TransferMatrix, load_matrix, parse_matrix, pool
from omni_thinker.transfer.plan import STRATEGIES, make_plan


def _matrix(start: list[float], after: list[list[float]], stderr: float = 0.0) -> TransferMatrix:
    """`after[i][j]`: accuracy on task j after RL on task i."""
    names = tuple("abcdefghijklmnopqrst"[: len(start)])
    return TransferMatrix(
        names,
        {t: Estimate(v, 50, stderr) for t, v in zip(names, start, strict=True)},
        {
            i: {j: Estimate(v, 50, stderr) for j, v in zip(names, row, strict=True)}
            for i, row in zip(names, after, strict=True)
        },
    )


# a: start .2, itself .6; b hurts it by .1, c hurts it by .2. And so on.
START = [0.2, 0.4, 0.5]
AFTER = [
    [0.6, 0.5, 0.4],
    [0.1, 0.8, 0.6],
    [0.0, 0.2, 0.9],
]
MATRIX = _matrix(START, AFTER)


def _at(name: str, task: str, later: str, matrix: TransferMatrix = MATRIX) -> float:
    return float(FORECASTERS[name](MatrixDraws.of(matrix, draws=1), task, later)[0])


# -- forecasts by hand --------------------------------------------------------------------------------------


def test_effects_by_hand() -> None:
    assert MATRIX.effect("a", "b") == pytest.approx(0.1)
    assert MATRIX.effect("c", "a") == pytest.approx(-0.2)
    assert MATRIX.effect("a", "a") == pytest.approx(0.4)


def test_forecasts_by_hand() -> None:
    def odds(p: float) -> float:
        return math.log(p / (1 - p))

    for name in FORECASTERS:
        assert _at(name, "b", "") == pytest.approx(0.8), "the last task ends at its own single-task accuracy"
    assert _at("naive", "b", "ac") == pytest.approx(0.8)
    assert _at("additive", "b", "ac") == pytest.approx(0.8 + 0.1 - 0.2)
    assert _at("additive", "a", "bc") == pytest.approx(0.6 - 0.1 - 0.2)
    assert _at("relative", "b", "ac") == pytest.approx(0.8 * (1 + 0.1 / 0.4) * (1 - 0.2 / 0.4))
    assert _at("relative", "a", "b") == pytest.approx(0.6 * 0.1 / 0.2)
    total = odds(0.8) + (odds(0.5) - odds(0.4)) + (odds(0.2) - odds(0.4))
    assert _at("logit", "b", "ac") == pytest.approx(1 / (1 + math.exp(-total)))


def test_forecasts_stay_within_zero_and_one() -> None:
    high = _matrix([0.5, 0.2], [[0.9, 0.7], [0.9, 0.9]])
    assert _at("additive", "a", "b", high) == 1.0
    assert _at("relative", "a", "b", high) == 1.0
    assert 0.9 < _at("logit", "a", "b", high) < 1.0
    low = _matrix([0.5, 0.9], [[0.3, 0.1], [0.1, 0.9]])
    assert _at("additive", "a", "b", low) == 0.0
    assert 0.0 < _at("logit", "a", "b", low) < 0.1


@pytest.mark.parametrize("name", FORECASTERS)
def test_forecasts_stand_certain_accuracies(name: str) -> None:
    edge = _matrix([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
    for task, later in (("a", "b"), ("b", "a"), ("a", ""), ("b", "")):
        assert 0.0 <= _at(name, task, later, edge) <= 1.0


def test_an_order_is_forecast_task_by_task() -> None:
    found = forecast_order(FORECASTERS["additive"], MatrixDraws.of(MATRIX, draws=1), ("c", "a", "b"))
    assert {task: float(v[0]) for task, v in found.items()} == pytest.approx(
        {"c": 0.9 - 0.1 + 0.1, "a": 0.6 - 0.1, "b": 0.8}
    )


def test_draws_hold_the_measurement_and_its_noise() -> None:
    draws = MatrixDraws.of(_matrix([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], stderr=0.05))
    cell = draws.after["a", "b"]
    assert cell[0] == 0.5
    assert float(cell.std()) == pytest.approx(0.05, rel=0.1)
    assert abs(float(np.corrcoef(cell, draws.after["b", "a"])[0, 1])) < 0.1
    unknown = MatrixDraws.of(_matrix([0.5] * 2, [[0.5] * 2] * 2, stderr=math.inf)).start["a"]
    assert unknown.min() == 0.0
    assert unknown.max() == 1.0
    assert np.array_equal(cell, MatrixDraws.of(_matrix([0.5] * 2, [[0.5] * 2] * 2, stderr=0.05)).after["a", "b"])


def test_interval_by_hand() -> None:
    interval = Interval.of(np.linspace(0, 1, 1001))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.5, 0.025, 0.975))


# -- plans --------------------------------------------------------------------------------------------------

accuracy = st.floats(0, 1)
matrices = st.integers(2, 6).flatmap(
    lambda k: st.builds(
        _matrix,
        st.lists(accuracy, min_size=k, max_size=k),
        st.lists(st.lists(accuracy, min_size=k, max_size=k), min_size=k, max_size=k),
    )
)


def _score(matrix: TransferMatrix, forecaster: str, order: tuple[str, ...]) -> float:
    """Straight from the formulas, without the code under test's draws."""
    values = []
    for k, task in enumerate(order):
        values.append(_at(forecaster, task, "".join(order[k + 1 :]), matrix))
    return sum(values) / len(values)


@pytest.mark.parametrize("forecaster", FORECASTERS)
@given(matrix=matrices)
def test_the_exact_order_is_the_best_of_all(forecaster: str, matrix: TransferMatrix) -> None:
    draws = MatrixDraws.of(matrix, draws=1)
    predict = FORECASTERS[forecaster]
    found = STRATEGIES["exact"](matrix, predict, draws)
    assert sorted(found) == sorted(matrix.tasks)

    def score(order: tuple[str, ...]) -> float:
        return float(sum(v[0] for v in forecast_order(predict, draws, order).values()))

    assert score(found) == pytest.approx(max(map(score, permutations(matrix.tasks))), abs=1e-9)


@pytest.mark.parametrize("forecaster", FORECASTERS)
def test_a_plan_by_hand(forecaster: str) -> None:
    plan = make_plan(MATRIX, forecaster=forecaster)
    scores = {order: _score(MATRIX, forecaster, order) for order in permutations("abc")}
    assert {f.order: pytest.approx(f.score) for f in plan.orders} == scores
    assert [f.score for f in plan.orders] == pytest.approx(sorted(scores.values(), reverse=True))
    assert plan.best_score == pytest.approx(max(scores.values()))
    assert plan.chosen.score == pytest.approx(max(scores.values()))
    assert sum(f.probability_best or 0.0 for f in plan.orders) == pytest.approx(1.0)
    for order, score, regret in plan.strategies.values():
        assert score == pytest.approx(scores[order])
        assert regret == pytest.approx(max(scores.values()) - score)
        assert regret > -1e-12
    assert plan.strategies["exact"][2] == 0.0


def test_named_strategies_by_hand() -> None:
    # Outgoing effects: a: b +.1, c -.1; b: a -.1, c +.1; c: a -.2, b -.2.
    # Incoming: a -.3, b -.1, c 0: the most damaged goes last.
    # Last place: a harms least in all (0, tied with b, first wins); then b (c +.1) against c (b -.2).
    # First place: a (0, tied with b); then b before c.
    orders = {name: order for name, (order, _, _) in make_plan(MATRIX, forecaster="additive").strategies.items()}
    assert orders["least_to_most_forgettable"] == ("c", "b", "a")
    assert orders["back_greedy"] == ("c", "b", "a")
    assert orders["front_greedy"] == ("a", "b", "c")
    # additive: c first costs nothing (c is helped by b, hurt by a); then a before b: -.1, b before a: +.1.
    assert orders["exact"] == ("c", "b", "a")


def test_adjacent_swap_rule() -> None:
    """Two tasks: i before j is better exactly if D[j, i] > D[i, j]."""
    for d_ab, d_ba, best in ((0.1, -0.1, ("b", "a")), (-0.1, 0.1, ("a", "b")), (-0.2, -0.1, ("a", "b"))):
        matrix = _matrix([0.5, 0.5], [[0.6, 0.5 + d_ab], [0.5 + d_ba, 0.6]])
        assert make_plan(matrix, forecaster="additive").chosen.order == best


def test_ties_go_to_the_order_of_the_tasks() -> None:
    flat = _matrix([0.5] * 4, [[0.5] * 4] * 4)
    strategies = make_plan(flat).strategies
    assert strategies["exact"][0] == ("a", "b", "c", "d")
    assert all(regret == 0.0 for _, _, regret in strategies.values())


def test_a_given_order_or_strategy_is_chosen() -> None:
    assert make_plan(MATRIX, order=("b", "a", "c")).chosen.order == ("b", "a", "c")
    assert make_plan(MATRIX, strategy="front_greedy").chosen.order == ("a", "b", "c")
    six = _matrix([0.5] * 6, [[0.5] * 6] * 6)
    worst = ("f", "e", "d", "c", "b", "a")
    plan = make_plan(six, order=worst)
    assert plan.chosen.order == worst
    assert worst in [f.order for f in plan.orders]
    assert plan.chosen.probability_best is None


def test_noise_makes_intervals_and_doubt() -> None:
    sure = make_plan(_matrix(START, AFTER, stderr=1e-6))
    doubtful = make_plan(_matrix(START, AFTER, stderr=0.1))
    assert sure.chosen.probability_best == pytest.approx(1.0)
    assert sure.chosen.interval.high - sure.chosen.interval.low < 1e-4
    assert doubtful.chosen.probability_best is not None
    assert 0.2 < doubtful.chosen.probability_best < 0.95
    assert doubtful.chosen.interval.high - doubtful.chosen.interval.low > 0.1
    assert doubtful.chosen.order == sure.chosen.order, "the choice goes by what was measured"
    assert doubtful.chosen.score == pytest.approx(sure.chosen.score)


def test_a_plan_is_plain_json() -> None:
    table = json.loads(json.dumps(make_plan(_matrix(START, AFTER, stderr=0.02)).to_json(), allow_nan=False))
    assert sorted(table["plan"]["order"]) == ["a", "b", "c"]
    assert len(table["orders"]) == 6
    assert set(table["strategies"]) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"forecaster": "tarot"}, "--forecaster: unknown forecaster 'tarot'; known: naive"),
        ({"strategy": "bwt"}, "--strategy: unknown strategy 'bwt'; known: exact"),
        ({"order": ("a", "b")}, "--order: leaves out 'c'"),
        ({"order": ("a", "b", "b", "c")}, "--order: an order names each task once"),
        ({"order": ("a", "b", "z")}, "--order: unknown task 'z'; the matrix has a, b, c"),
    ],
)
def test_what_can_not_be_planned_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(MATRIX, **settings)
    assert str(caught.value).startswith(words)


def test_too_many_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="19 tasks"):
        make_plan(_matrix([0.5] * 19, [[0.5] * 19] * 19))
    check_order(("c", "a", "b"), ("a", "b", "c"))


# -- the file -----------------------------------------------------------------------------------------------

GOOD = MATRIX.to_json()


def test_a_matrix_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "transfer.json"
    unknown = _matrix(START, AFTER, stderr=math.inf)
    for matrix in (MATRIX, unknown):
        path.write_text(json.dumps(matrix.to_json(), allow_nan=False), "utf-8")
        assert load_matrix(path) == matrix


DELETE = object()


def _with(path: str, value: Any) -> dict[str, Any]:
    table: dict[str, Any] = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    inner: Any = table
    for key in way:
        inner = inner[key]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    return table


CELL = {"mean": 0.5, "n": 10, "stderr": 0.1}
BAD = [
    ("tasks", DELETE, "tasks"),
    ("tasks", [], "tasks"),
    ("tasks", "abc", "tasks"),
    ("tasks", ["a", "b", 3], "tasks"),
    ("tasks", ["a", "b", "b"], "tasks"),
    ("tasks", ["a"], "tasks"),
    ("tasks", ["a", "b"], "start"),
    ("version", 99, "version"),
    ("start", DELETE, "start"),
    ("start", [0.1, 0.2, 0.3], "start"),
    ("start.b", DELETE, "start.b"),
    ("start.zebra", CELL, "start"),
    ("start.a", 0.5, "start.a"),
    ("after", DELETE, "after"),
    ("after.zebra", {}, "after"),
    ("after.b", DELETE, "after.b"),
    ("after.b", None, "after.b"),
    ("after.b.zebra", CELL, "after.b"),
    ("after.b.c", DELETE, "after.b.c"),
    ("after.b.c", {"n": 3}, "after.b.c"),
    ("after.b.c.mean", 1.01, "after.b.c.mean"),
    ("after.b.c.mean", -0.01, "after.b.c.mean"),
    ("after.b.c.mean", math.nan, "after.b.c.mean"),
    ("after.b.c.mean", math.inf, "after.b.c.mean"),
    ("after.b.c.mean", "0.5", "after.b.c.mean"),
    ("after.b.c.mean", None, "after.b.c.mean"),
    ("after.b.c.mean", True, "after.b.c.mean"),
    ("after.b.c.mean", 10**400, "after.b.c.mean"),
    ("after.b.c.stderr", -0.1, "after.b.c.stderr"),
    ("after.b.c.stderr", math.nan, "after.b.c.stderr"),
    ("after.b.c.stderr", "x", "after.b.c.stderr"),
    ("after.b.c.n", -1, "after.b.c.n"),
    ("after.b.c.n", 2.5, "after.b.c.n"),
    ("after.b.c.n", True, "after.b.c.n"),
]


@pytest.mark.parametrize(("path", "value", "key"), BAD, ids=lambda part: f"{part!s:.20}")
def test_a_bad_matrix_is_refused_by_file_and_key(path: str, value: Any, key: str, tmp_path: Path) -> None:
    file = tmp_path / "transfer.json"
    file.write_text(json.dumps(_with(path, value)), "utf-8")  # NaN and Infinity too, as Python writes them
    with pytest.raises(UserError) as caught:
        load_matrix(file)
    assert str(caught.value).startswith(f"{file}: {key}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '"x"', "\ufeff{}", "[" * 100_000], ids=lambda text: repr(text[:8])
)
def test_what_is_no_matrix_is_refused_by_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "transfer.json"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_matrix(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_missing_or_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"tasks": ["\xe9"]}')
    for name in ("none.json", ".", "latin"):
        with pytest.raises(UserError) as caught:
            load_matrix(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))


def test_what_may_be_left_out() -> None:
    matrix = parse_matrix(_with("start.a", {"mean": 1}), "here")
    assert matrix.start["a"] == Estimate(1.0, 0, 0.0)
    assert parse_matrix(_with("start.a.stderr", None), "here").start["a"].stderr == math.inf
    assert parse_matrix(_with("version", DELETE), "here").tasks == ("a", "b", "c")


# -- several seeds ------------------------------------------------------------------------------------------


def _parts(estimate: Estimate) -> tuple[float, int, float]:
    return estimate.mean, estimate.n, estimate.stderr


def test_seeds_are_pooled_by_hand() -> None:
    one, two = _matrix([0.2, 0.5], [[0.4, 0.5], [0.1, 0.9]], 0.03), _matrix([0.4, 0.5], [[0.4, 0.5], [0.3, 0.9]], 0.04)
    pooled = pool([one, two])
    assert pooled.tasks == ("a", "b")
    # Seeds that agree: the joint evaluation error, sqrt(.03^2 + .04^2) / 2.
    assert _parts(pooled.after["a"]["a"]) == pytest.approx((0.4, 100, 0.025))
    # Seeds that don't: the spread between them, |.2 - .4| / 2.
    assert _parts(pooled.start["a"]) == pytest.approx((0.3, 100, 0.1))
    assert pooled.effect("b", "a") == pytest.approx(-0.1)
    assert _parts(pool([one]).after["a"]["a"]) == pytest.approx((0.4, 50, 0.03))


def test_a_seed_with_unknown_error_makes_the_pool_unknown() -> None:
    assert pool([_matrix([0.5] * 2, [[0.5] * 2] * 2, e) for e in (0.1, math.inf)]).start["a"].stderr == math.inf
