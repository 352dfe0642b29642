"""Forecasts follow their formulas, fall back where they know nothing, and are calibrated where the truth is known."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting import guru
from matrices import AFTER, MATRIX, START, from_effects, matrix
from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.studies.units import probe_steps
from omni_thinker.transfer.assumptions import check_assumptions
from omni_thinker.transfer.forecast import (
    Array,
    Draws,
    Joint,
    Merge,
    Stage,
    evenly,
    gain_share,
    in_order,
    interval,
    measured,
)
from omni_thinker.transfer.forecasters import FORECASTERS, make_forecaster
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from omni_thinker.transfer.metrics import (
    StageSeen,
    backward_transfer,
    forgetting,
    forward_transfer,
    shared,
    specific,
    to_csv,
    transfer,
)
from omni_thinker.transfer.probe import extrapolate
from simulated_learners import WORLDS, World, seen

LITERAL = ("naive", "additive", "relative", "logit")


def at(name: str, order: str, task: str, own: TransferMatrix = MATRIX) -> float:
    """The first draw (what was measured) of a task's forecast."""
    return float(make_forecaster(name, own, draws=1)(in_order(order))[task][0])


def odds(p: float) -> float:
    return math.log(p / (1 - p))


# -- the formulas ---------------------------------------------------------------------------------------------------


def test_sequence_forecasts_equal_values_by_hand() -> None:
    for name in LITERAL:
        assert at(name, "acb", "b") == pytest.approx(0.8), "the last task ends at its own single-task accuracy"
    assert at("naive", "bac", "b") == pytest.approx(0.8)
    assert at("additive", "bac", "b") == pytest.approx(0.8 + 0.1 - 0.2)
    assert at("additive", "abc", "a") == pytest.approx(0.6 - 0.1 - 0.2)
    assert at("relative", "bac", "b") == pytest.approx(0.8 * (1 + 0.1 / 0.4) * (1 - 0.2 / 0.4))
    assert at("relative", "cab", "a") == pytest.approx(0.6 * 0.1 / 0.2)
    total = odds(0.8) + (odds(0.5) - odds(0.4)) + (odds(0.2) - odds(0.4))
    assert at("logit", "bac", "b") == pytest.approx(1 / (1 + math.exp(-total)))


def test_joint_and_merge_forecasts_equal_values_by_hand() -> None:
    additive = make_forecaster("additive", MATRIX, draws=1)
    # b: start .4, itself +.4, a +.1, c -.2.
    assert additive(evenly("abc"))["b"][0] == pytest.approx(0.4 + 0.4 + 0.1 - 0.2)
    assert additive(Merge(0.5))["b"][0] == pytest.approx(0.4 + 0.5 * (0.4 + 0.1 - 0.2))
    assert make_forecaster("naive", MATRIX, draws=1)(evenly("abc"))["b"][0] == pytest.approx(0.8)
    # All on b, for one pass: just its single-task run.
    assert additive(Joint({"b": 1.0}, passes=1.0))["b"][0] == pytest.approx(0.8)
    assert additive(Joint({"b": 1.0}, passes=1.0))["a"][0] == pytest.approx(0.1)


def test_repeated_or_short_stages_equal_values_by_hand() -> None:
    additive = make_forecaster("additive", MATRIX, draws=1)
    assert additive(in_order("acb"))["a"][0] == pytest.approx(0.6 - 0.2 - 0.1)
    assert additive(in_order("acba"))["a"][0] == pytest.approx(0.6)
    assert additive((Stage("a"), Stage("b", 0.5)))["a"][0] == pytest.approx(0.6 - 0.1 * gain_share(0.5))
    assert additive(())["a"][0] == pytest.approx(0.2)
    assert gain_share(0) == 0
    assert gain_share(1) == 1


def test_forecasts_stay_within_zero_and_one() -> None:
    high = matrix([0.5, 0.2], [[0.9, 0.7], [0.9, 0.9]])
    assert at("additive", "ab", "a", high) == 1.0
    assert at("relative", "ab", "a", high) == 1.0
    assert 0.9 < at("logit", "ab", "a", high) < 1.0
    low = matrix([0.5, 0.9], [[0.3, 0.1], [0.1, 0.9]])
    assert at("additive", "ab", "a", low) == 0.0
    assert 0.0 < at("logit", "ab", "a", low) < 0.1


accuracy = st.floats(0, 1)


@pytest.mark.parametrize("name", FORECASTERS)
@given(
    start=st.lists(accuracy, min_size=3, max_size=3),
    after=st.lists(st.lists(accuracy, min_size=3, max_size=3), min_size=3, max_size=3),
    stderr=st.sampled_from([0.0, 0.05, math.inf]),
)
def test_every_forecast_is_an_accuracy(name: str, start: list[float], after: list[list[float]], stderr: float) -> None:
    predict = make_forecaster(name, matrix(start, after, stderr), draws=20)
    for plan in (in_order("cab"), in_order("aba"), evenly("abc"), Merge(0.7)):
        for draws in predict(plan).values():
            assert np.isfinite(draws).all()
            assert ((draws >= 0) & (draws <= 1)).all()


def test_draws_contain_the_measurement_and_its_noise() -> None:
    draws = Draws.of(matrix([0.5, 0.5], [[0.5, 0.5], [0.5, 0.5]], stderr=0.05))
    cell = draws.after_K_C_N[0, 1]
    assert cell[0] == 0.5
    assert float(cell.std()) == pytest.approx(0.05, rel=0.1)
    assert abs(float(np.corrcoef(cell, draws.after_K_C_N[1, 0])[0, 1])) < 0.1
    unknown = Draws.of(matrix([0.5] * 2, [[0.5] * 2] * 2, stderr=math.inf)).start_C_N[0]
    assert unknown.min() == 0.0
    assert unknown.max() == 1.0


def test_interval_equals_values_by_hand() -> None:
    known = interval(np.linspace(0, 1, 1001))
    assert (known.mean, known.low, known.high) == pytest.approx((0.5, 0.1, 0.9))
    assert interval(np.linspace(0, 1, 1001), 0.95).low == pytest.approx(0.025)


def test_measured_adds_the_evaluation_noise() -> None:
    predict = make_forecaster("additive", matrix([0.5] * 2, [[0.5] * 2] * 2, stderr=0.05))
    truth = predict.by_column(in_order("ab"))
    shown = measured(predict, truth)
    assert shown.std(axis=1) == pytest.approx(np.hypot(truth.std(axis=1), 0.05), rel=0.1)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"z": 1.0}, "unknown task 'z'"), ({}, "between 0 and 1"), ({"a": 0.7}, "add up to 1, not 0.7"),
        ({"a": 1.5, "b": -0.5}, "between 0 and 1"), ({"a": math.nan}, "between 0 and 1"),
    ],
)  # fmt: skip
def test_bad_shares_of_a_joint_run_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_forecaster("naive", MATRIX, draws=1)(Joint(weights))


# -- the hierarchical model ---------------------------------------------------------------------------------------


def test_hierarchical_without_cross_task_cells_equals_naive() -> None:
    sharp = matrix(START, AFTER, stderr=0.01, n=2000)
    own = {t: {t: sharp.after[t][t]} for t in "abc"}
    alone = Hierarchical(TransferMatrix(sharp.tasks, sharp.start, own))
    for plan in (in_order("abc"), in_order("cba"), evenly("abc")):
        found = {task: float(draws.mean()) for task, draws in alone(plan).items()}
        for task in "abc":
            assert found[task] == pytest.approx(sharp.after[task][task].mean, abs=0.02)


def test_hierarchical_counts_the_effect_shared_by_all_tasks_once() -> None:
    """Any run lifts all three tasks from 0.3 to 0.5, so no order and no mixture may add these gains up."""
    lifted = matrix([0.3] * 3, [[0.5] * 3] * 3, stderr=0.01, n=2000)
    predict = Hierarchical(lifted)
    for plan in (in_order("abc"), evenly("abc")):
        for draws in predict(plan).values():
            assert float(draws.mean()) == pytest.approx(0.5, abs=0.03)
    assert make_forecaster("logit", lifted)(in_order("abc"))["a"].mean() > 0.65


def test_hierarchical_shrinks_gains_that_are_mixed_or_followed_by_stages() -> None:
    sharp = matrix([0.2] * 3, [[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8]], stderr=0.01, n=2000)
    predict = Hierarchical(sharp)
    first, middle, last = (float(predict(in_order("abc"))[task].mean()) for task in "abc")
    assert first < middle < last
    assert last == pytest.approx(0.8, abs=0.03)
    assert 0.6 < float(predict(evenly("abc"))["a"].mean()) < 0.8
    # A mixture of one is a single-task run.
    assert float(predict(Joint({"a": 1.0}, 1.0))["a"].mean()) == pytest.approx(0.8, abs=0.03)


def test_evidence_of_forgetting_lowers_the_retained_share() -> None:
    sharp = matrix([0.2] * 3, [[0.8, 0.2, 0.2], [0.2, 0.8, 0.2], [0.2, 0.2, 0.8]], stderr=0.02, n=400)
    before = Hierarchical(sharp)
    forgot = Evidence(in_order("ab"), {"a": Estimate(0.35, 400, 0.024), "b": Estimate(0.8, 400, 0.02)})
    after = Hierarchical(sharp, evidence=[forgot])
    assert after.retained_N.mean() < before.retained_N.mean() - 0.05
    assert after(in_order("bc"))["b"].mean() < before(in_order("bc"))["b"].mean()


def test_the_same_seed_gives_the_same_forecast() -> None:
    own = matrix(START, AFTER, stderr=0.05)
    first, again = (Hierarchical(own, 200, 3)(in_order("cab"))["a"] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, Hierarchical(own, 200, 4)(in_order("cab"))["a"])


def test_forecast_of_a_stage_of_length_near_0_changes_nothing() -> None:
    """Forecasts are continuous in the length of a stage or a joint run."""
    own = matrix([0.5] * 3, [[0.8, 0.3, 0.4], [0.3, 0.8, 0.4], [0.4, 0.2, 0.8]], stderr=0.02, n=400)
    for predict in (Hierarchical(own, 300), *(make_forecaster(name, own, draws=1) for name in ("naive", "additive"))):
        nothing = predict.expected(())
        for plan in (Joint(dict.fromkeys("abc", 1 / 3), 1e-9), (Stage("a", 1e-9),)):
            assert predict.expected(plan) == pytest.approx(nothing, abs=1e-6)
        before = predict.expected(in_order("abc"))
        assert predict.expected((*in_order("abc"), Stage("a", 1e-9))) == pytest.approx(before, abs=1e-6)


def test_longer_stage_never_lowers_its_own_task() -> None:
    own = matrix([0.3, 0.5], [[0.7, 0.5], [0.3, 0.6]], stderr=0.02, n=400)
    predict = Hierarchical(own, 300)
    once, twice = predict.expected((Stage("a"),)), predict.expected((Stage("a", 2.0),))
    assert (twice[0] >= once[0]).all()
    for more in (0.1, 1.0):
        assert predict.expected((Stage("a", 2.0), Stage("a", more)))[0] == pytest.approx(twice[0], abs=1e-9)


def test_short_refresh_recovers_most_of_a_loss() -> None:
    own = matrix([0.5, 0.5], [[0.8, 0.5], [0.3, 0.8]], stderr=0.01, n=4000)
    predict = Hierarchical(own, 500)
    whole, lost, back = (
        predict.expected(plan)[0].mean()
        for plan in (in_order("ba"), in_order("ab"), (*in_order("ab"), Stage("a", 0.25)))
    )
    assert lost < back < whole
    assert back - lost > 0.6 * (whole - lost)


def test_measured_noise_depends_on_the_problems_not_on_the_start() -> None:
    """A start of 0 has almost no error, but a forecast of one half on the same problems has."""
    for mean in (0.0, 0.02, 0.3):
        for n in (48, 400):
            shrunk = (mean * n + 0.5) / (n + 1)
            own = matrix([mean, 0.5], [[0.5, 0.5], [0.5, 0.5]], stderr=(shrunk * (1 - shrunk) / n) ** 0.5, n=n)
            predict = Hierarchical(own, 4000)
            shown = measured(predict, np.full((2, 4000), 0.5))[0]
            assert shown.std() == pytest.approx(0.5 / n**0.5, rel=0.1), (mean, n)


def test_evidence_narrows_intervals_that_stay_calibrated() -> None:
    """Worlds are drawn from the forecaster: its 80 % intervals of a new order, after four others were observed."""
    own = matrix([0.3, 0.4, 0.5], [[0.6, 0.45, 0.5], [0.35, 0.6, 0.55], [0.3, 0.4, 0.7]], stderr=0.06, n=60)
    inside, widths = [], []
    spread = float(np.hypot(0.15, 0.6 * Hierarchical(own, 10).spread))
    for trial in range(60):
        rng = np.random.default_rng(trial)
        world = Hierarchical(own, 20, 1000 + trial)
        truth = {order: world._sequence(in_order(order))[:, 7] for order in map(tuple, permutations("abc"))}
        orders = [list(truth)[int(k)] for k in rng.permutation(6)]
        evidence = []
        for order in orders[:4]:
            for length in range(1, 4):
                value = world._sequence(in_order(order[:length]))[:, 7] + rng.normal(0, spread, 3)
                accuracy = {
                    task: seen(float(1 / (1 + np.exp(-x))), 96, rng) for task, x in zip("abc", value, strict=True)
                }
                evidence.append(Evidence(in_order(order[:length]), accuracy))
        found = [Hierarchical(own, 1000, 0, told)._sequence(in_order(orders[5])) for told in ((), evidence)]
        low, high = np.quantile(found[1], [0.1, 0.9], axis=1)
        inside += list((low <= truth[orders[5]]) & (truth[orders[5]] <= high))
        widths.append([np.diff(np.quantile(own_draws, [0.1, 0.9], axis=1), axis=0).mean() for own_draws in found])
    before, after = np.mean(widths, axis=0)
    assert 0.7 < np.mean(inside) < 0.9
    assert after < 0.75 * before


# -- known truths -------------------------------------------------------------------------------------------------


def coverage(simulations: int) -> tuple[float, dict[str, float], float]:
    """(share of 80 % intervals that hold what one run then showed, mean errors, false claims about orders)."""
    inside: list[bool] = []
    errors: dict[str, list[float]] = {name: [] for name in ("hierarchical", "naive", "logit")}
    false_claims = 0
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        world = World.drawn(WORLDS[seed % len(WORLDS)], rng)
        own = world.measured(96, rng)
        order = [int(k) for k in rng.permutation(len(world.tasks))]
        stages = in_order([world.tasks[k] for k in order])
        predict = Hierarchical(own, 400, seed)
        for plan, truth in ((stages, world.sequence(order)), (evenly(world.tasks), world.joint())):
            reached = world.with_luck(truth, rng)
            shown = np.array([seen(float(p), 96, rng).mean for p in reached])
            low, high = np.quantile(measured(predict, predict.by_column(plan), seed), [0.1, 0.9], axis=1)
            inside += list((shown >= low) & (shown <= high))
        ended = world.with_luck(world.sequence(order), rng)
        for name, own_errors in errors.items():
            found = predict if name == "hierarchical" else make_forecaster(name, own, draws=1)
            own_errors.append(float(np.abs(found.by_column(stages).mean(axis=1) - ended).mean()))
        false_claims += _claims_too_much(world, predict)
    return (
        float(np.mean(inside)),
        {name: float(np.mean(own)) for name, own in errors.items()},
        false_claims / simulations,
    )


def _claims_too_much(world: World, predict: Hierarchical) -> bool:
    """Whether an order is said, at 95 %, to beat its reverse or joint training, and doesn't."""
    order = list(range(len(world.tasks)))
    plans: list[tuple[Array, float]] = [
        (predict.by_column(in_order([world.tasks[k] for k in own])).mean(axis=0), float(world.sequence(own).mean()))
        for own in (order, order[::-1])
    ]
    plans.append((predict.by_column(evenly(world.tasks)).mean(axis=0), float(world.joint().mean())))
    return any(
        float((a > b).mean()) > 0.95 and true_a <= true_b + 1e-9
        for n, (a, true_a) in enumerate(plans)
        for m, (b, true_b) in enumerate(plans)
        if n != m
    )


def test_intervals_on_synthetic_worlds_are_calibrated() -> None:
    share, errors, false_claims = coverage(500)
    assert 0.75 <= share <= 0.85
    assert false_claims < 0.05
    assert errors["hierarchical"] < errors["naive"] < errors["logit"]


# -- real runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["last", "best_mean"])
def test_forecast_of_a_published_mixed_run_is_within_0_035(key: str, shared_data: Path) -> None:
    own, truth = guru(shared_data / "transfer", key)
    errors = {}
    for name in FORECASTERS:
        predict = make_forecaster(name, own)
        errors[name] = float(np.abs(predict.by_column(evenly(own.tasks)).mean(axis=1) - truth).mean())
    assert errors["hierarchical"] <= 0.035
    assert errors["hierarchical"] < errors["naive"] < errors["additive"]
    predict = Hierarchical(own)
    low, high = np.quantile(measured(predict, predict.by_column(evenly(own.tasks))), [0.1, 0.9], axis=1)
    assert 0.70 <= ((truth >= low) & (truth <= high)).mean() <= 0.95


# -- A1, A2 and the other quantities --------------------------------------------------------------------------------


def cells(stderr: float = 0.02, **means: float) -> dict[str, Estimate]:
    return {task: Estimate(mean, 100, stderr) for task, mean in means.items()}


def test_assumption_checks_equal_values_by_hand() -> None:
    own = matrix(START, AFTER, stderr=0.02)
    run = [StageSeen("a", cells(a=0.6, b=0.5, c=0.4)), StageSeen("b", cells(a=0.5, b=0.8, c=0.1))]
    first, second = check_assumptions(own, [run])
    # b on a: expected -.1, seen -.1; b on c: expected +.1, seen -.3. Four evaluations of .02 each make .04.
    assert [(cell.expected, cell.seen, cell.stderr) for cell in first.cells] == [
        pytest.approx((-0.1, -0.1, 0.04)),
        pytest.approx((0.1, -0.3, 0.04)),
    ]
    assert first.mean_difference == pytest.approx(0.2)
    assert first.p is not None
    assert first.p < 1e-10
    assert "speaks against constant transfer" in first.words
    [level] = second.cells
    assert (level.where, level.expected, level.seen) == ("stage 2, b", 0.8, 0.8)
    assert level.stderr == pytest.approx(math.sqrt(2) * 0.02)
    assert second.p == pytest.approx(1.0)
    assert "doesn't contradict saturation" in second.words
    nothing, _ = check_assumptions(own, [run[:1]])
    assert "nothing to test" in nothing.words


def test_transfer_quantities_equal_values_by_hand() -> None:
    assert transfer(MATRIX)["c"] == pytest.approx({"a": -0.2, "b": -0.2, "c": 0.4})
    assert shared(MATRIX) == pytest.approx({"a": -0.15, "b": -0.05, "c": 0.0})
    assert specific(MATRIX)["c"]["a"] == pytest.approx(-0.05)
    run = [StageSeen("a", cells(a=0.6, b=0.5, c=0.4)), StageSeen("b", cells(a=0.4, b=0.8, c=0.5))]
    run.append(StageSeen("c", cells(a=0.5, b=0.6, c=0.9)))
    assert backward_transfer(run) == pytest.approx(((0.5 - 0.6) + (0.6 - 0.8)) / 2)
    assert forward_transfer(MATRIX.start, run) == pytest.approx(((0.5 - 0.4) + (0.5 - 0.5)) / 2)
    assert forgetting(run) == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.0})
    assert backward_transfer(run[:1]) is None
    lines = to_csv(MATRIX).splitlines()
    assert lines[0] == "evaluation,task,trained,transfer,mean,n,stderr"
    assert len(lines) == 1 + 3 * 4
    assert lines[1] == "a,a,,,0.2,50,0.0"
    assert lines[3].startswith("a,a,b,-0.1,0.1,50")
    assert from_effects(np.zeros((2, 2))).effect("t0", "t1") == 0.0


# -- short probes ---------------------------------------------------------------------------------------------------


def test_probe_steps_stay_within_their_share_of_one_arm() -> None:
    assert probe_steps(60, 240, 4, 0.15) == 9
    assert 4 * 9 <= 0.15 * 240 < 4 * 10
    assert probe_steps(6, 24, 4, 0.15) == 1
    assert probe_steps(6, 24, 4, 1.0) == 6, "never more than a stage"


def test_short_probe_is_extrapolated_along_the_curve() -> None:
    own = matrix([0.5, 0.5], [[0.6, 0.5], [0.45, 0.7]], stderr=0.02, n=10**6)
    whole = extrapolate(own, {"a": 0.5, "b": 1.0})
    assert whole.after["b"] == own.after["b"]
    assert odds(whole.after["a"]["a"].mean) == pytest.approx(odds(0.6) / gain_share(0.5), abs=1e-3)
    assert whole.after["a"]["b"].mean == pytest.approx(0.5, abs=1e-3)
    assert whole.after["a"]["a"].stderr > 0.02


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 3), st.sampled_from([0.0, 0.05, math.inf]))
def test_extrapolated_cells_are_accuracies_with_a_stderr(
    start: float, after: float, passes: float, stderr: float
) -> None:
    own = matrix([start, 0.5], [[after, 0.5], [0.5, 0.5]], stderr=stderr)
    cell = extrapolate(own, {"a": passes, "b": passes}).after["a"]["a"]
    assert 0 <= cell.mean <= 1
    assert cell.stderr >= 0
