"""Plans are optimal, bounds hold, and unsettled decisions are stated."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import AFTER, MATRIX, START, from_effects, matrix
from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import dump
from omni_thinker.runs.schema.plan import Decision
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.decide import decision_words
from omni_thinker.transfer.forecast import Joint, SetForm, check_order, evenly, in_order
from omni_thinker.transfer.forecasters import FORECASTERS, make_forecaster
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.plan import STRATEGIES, forecast_json, make_plan, stages_of
from omni_thinker.transfer.search import (
    Objective,
    _local_search,
    back_greedy,
    best_order,
    front_greedy,
    least_to_most_forgettable,
    score_order,
    upper_bound,
)

LITERAL = ("naive", "additive", "relative", "logit")
MEAN = Objective()


def form_of(own: TransferMatrix, name: str = "additive") -> SetForm:
    return make_forecaster(name, own, draws=1).set_form()


def brute(own: TransferMatrix, name: str, objective: Objective) -> dict[tuple[str, ...], float]:
    """Every order, scored by the forecaster itself."""
    predict = make_forecaster(name, own, draws=1)
    return {order: float(objective.of(predict(in_order(order)))[0]) for order in permutations(own.tasks)}


accuracy = st.floats(0, 1)
matrices = st.integers(2, 6).flatmap(
    lambda k: st.builds(
        matrix,
        st.lists(accuracy, min_size=k, max_size=k),
        st.lists(st.lists(accuracy, min_size=k, max_size=k), min_size=k, max_size=k),
    )
)


# -- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [MEAN, Objective("worst"), Objective(weights={"a": 3.0, "b": 1.0})], ids=str)
@pytest.mark.parametrize("name", LITERAL)
@given(own=matrices)
@settings(max_examples=30)
def test_exact_order_has_the_best_score_of_all_orders(name: str, objective: Objective, own: TransferMatrix) -> None:
    found = best_order(form_of(own, name), objective)
    scores = brute(own, name, objective)
    assert found.score == pytest.approx(max(scores.values()), abs=1e-9)
    assert scores[found.order] == pytest.approx(found.score, abs=1e-9)
    assert found.exact


def test_additive_order_equals_brute_force_on_1000_matrices() -> None:
    rng = np.random.default_rng(5)
    for number in range(1000):
        count = 2 + number % 6 if number % 50 == 5 else 2 + number % 5  # seven tasks now and then: 5,040 orders
        own = from_effects(rng.normal(-0.01, 0.05, (count, count)))
        form = form_of(own)
        effects = form.effect_K_C
        order = best_order(form, MEAN).order
        best = max(
            sum(np.clip(0.6 + effects[list(p[n + 1 :]), k].sum(), 0, 1) for n, k in enumerate(p)) / count
            for p in permutations(range(count))
        )
        assert score_order(form, MEAN, order) == pytest.approx(best, abs=1e-9)


def test_hierarchical_order_has_the_best_score_of_its_form() -> None:
    form = make_forecaster("hierarchical", matrix(START, AFTER, stderr=0.02), draws=50).set_form()
    for objective in (MEAN, Objective("worst")):
        scores = {order: score_order(form, objective, order) for order in permutations("abc")}
        assert best_order(form, objective).score == pytest.approx(max(scores.values()), abs=1e-9)


def test_fixed_places_are_respected_by_the_best_order() -> None:
    rng = np.random.default_rng(2)
    own = from_effects(rng.normal(0, 0.1, (5, 5)))
    objective = Objective(fixed={"t3": 1, "t0": 4})
    found = best_order(form_of(own), objective)
    allowed = {o: s for o, s in brute(own, "additive", MEAN).items() if o[0] == "t3" and o[3] == "t0"}
    assert found.score == pytest.approx(max(allowed.values()))
    large = from_effects(rng.normal(0, 0.01, (20, 20)))
    order = best_order(form_of(large), Objective(fixed={"t7": 20, "t2": 1})).order
    assert (order[0], order[-1]) == ("t2", "t7")
    assert sorted(order) == sorted(large.tasks)


def test_exact_order_of_18_tasks_takes_under_10_seconds() -> None:
    own = from_effects(np.random.default_rng(1).normal(-0.01, 0.03, (18, 18)))
    form = form_of(own)
    began = time.monotonic()
    found = best_order(form, MEAN)
    assert time.monotonic() - began < 10
    assert found.exact
    assert found.score >= score_order(form, MEAN, _local_search(form, MEAN, 4, 0)) - 1e-9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6, "in KB, all tests before this one included"


# -- local search and its bound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITERAL)
@given(own=matrices, seed=st.integers(0, 5))
@settings(max_examples=40)
def test_upper_bound_is_never_exceeded(name: str, own: TransferMatrix, seed: int) -> None:
    form = form_of(own, name)
    order = tuple(np.random.default_rng(seed).permutation(own.tasks).tolist())
    for objective in (MEAN, Objective("worst")):
        assert upper_bound(form, objective, order) >= best_order(form, objective).score - 1e-9


def test_local_search_of_7_tasks_finds_the_best_order() -> None:
    rng = np.random.default_rng(3)
    missed = 0.0
    for _ in range(50):
        form = form_of(from_effects(rng.normal(-0.01, 0.03, (7, 7))))
        missed = max(missed, best_order(form, MEAN).score - score_order(form, MEAN, _local_search(form, MEAN, 8, 0)))
    assert missed < 1e-6


def test_order_of_200_tasks_has_a_bound_within_5_percent() -> None:
    """The effects add up to the size of those of four tasks from N(-0.01, 0.03)."""
    effects = np.random.default_rng(0).normal(-0.01 / 50, 0.03 / 50, (200, 200))
    form = form_of(from_effects(effects))
    began = time.monotonic()
    found = best_order(form, MEAN)
    assert time.monotonic() - began < 30
    assert not found.exact
    assert found.score <= found.bound
    assert (found.bound - found.score) / found.bound < 0.05


# -- named rules ----------------------------------------------------------------------------------------------------


def test_strategy_orders_equal_values_by_hand() -> None:
    # Outgoing effects: a: b +.1, c -.1; b: a -.1, c +.1; c: a -.2, b -.2.
    # Incoming: a -.3, b -.1, c 0: the most damaged goes last.
    # Last place: a harms least in all (0, tied with b, first wins); then b (c +.1) against c (b -.2).
    # First place: a (0, tied with b), b, c (-.4).
    orders = {name: rule.order for name, rule in make_plan(MATRIX, forecaster="additive").strategies.items()}
    assert orders["least_to_most_forgettable"] == ("c", "b", "a")
    assert orders["back_greedy"] == ("c", "b", "a")
    assert orders["front_greedy"] == ("a", "b", "c")
    # additive: c first costs nothing (c is helped by b, hurt by a); then a before b: -.1, b before a: +.1.
    assert orders["exact"] == ("c", "b", "a")
    assert orders["reversed"] == ("a", "b", "c")
    assert sorted(orders["random"]) == ["a", "b", "c"]


def test_mean_regrets_of_the_strategies_are_the_known_ones() -> None:
    rng = np.random.default_rng(0)
    rules = {"back": back_greedy, "forgettable": least_to_most_forgettable, "front": front_greedy}
    regrets: dict[str, list[float]] = {name: [] for name in rules}
    every = list(permutations(range(4)))
    for _ in range(2000):
        effects = rng.normal(-0.01, 0.03, (4, 4))
        np.fill_diagonal(effects, 0.0)
        scores = {p: sum(effects[p[m], k] for n, k in enumerate(p) for m in range(n + 1, 4)) for p in every}
        best, worst = max(scores.values()), min(scores.values())
        for name, rule in rules.items():
            regrets[name].append((best - scores[tuple(rule(effects))]) / (best - worst))
    means = {name: float(np.mean(own)) for name, own in regrets.items()}
    assert means == pytest.approx({"back": 0.10, "forgettable": 0.20, "front": 0.81}, abs=0.02)


def test_plan_of_two_tasks_puts_the_less_harmed_last() -> None:
    """Two tasks: i before j is better exactly if D[j, i] > D[i, j]."""
    for d_ab, d_ba, best in ((0.1, -0.1, ("b", "a")), (-0.1, 0.1, ("a", "b")), (-0.2, -0.1, ("a", "b"))):
        own = matrix([0.5, 0.5], [[0.6, 0.5 + d_ab], [0.5 + d_ba, 0.6]])
        assert make_plan(own, forecaster="additive").plan.order == best


def test_tied_orders_follow_the_order_of_the_tasks() -> None:
    flat = matrix([0.5] * 4, [[0.5] * 4] * 4)
    strategies = make_plan(flat, forecaster="logit").strategies
    assert strategies["exact"].order == ("a", "b", "c", "d")
    assert all(rule.regret == 0.0 for rule in strategies.values())


# -- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LITERAL)
def test_plan_scores_equal_brute_force(name: str) -> None:
    plan = make_plan(MATRIX, forecaster=name)
    scores = brute(MATRIX, name, MEAN)
    assert {f.order: pytest.approx(f.score) for f in plan.orders} == scores
    assert [f.score for f in plan.orders] == pytest.approx(sorted(scores.values(), reverse=True))
    assert plan.upper_bound == pytest.approx(max(scores.values()))
    assert plan.plan.kind == "sequence"
    assert plan.plan.score == pytest.approx(max(scores.values()))
    assert sum(f.probability_best or 0.0 for f in plan.orders) == pytest.approx(1.0)
    for rule in plan.strategies.values():
        assert rule.score == pytest.approx(scores[rule.order])
        assert rule.regret == pytest.approx(max(scores.values()) - rule.score)
    assert plan.strategies["exact"].regret == 0.0


@pytest.mark.parametrize("name", FORECASTERS)
@pytest.mark.parametrize("objective", [MEAN, Objective("worst")], ids=str)
def test_scores_of_a_plan_equal_single_forecasts(name: str, objective: Objective) -> None:
    own = matrix(START, AFTER, stderr=0.03)
    plan = make_plan(own, forecaster=name, objective=objective)
    predict = make_forecaster(name, own)
    for row in (*plan.orders, plan.joint):
        stages = stages_of(row) or evenly(own.tasks)
        assert forecast_json(predict, stages, objective)["score"] == pytest.approx(row.score, abs=1e-9)
        if name == "hierarchical":
            assert row.low < row.score < row.high
    if name == "hierarchical":
        assert plan.decision.gain_over_joint == pytest.approx(plan.sequence.score - plan.joint.score, abs=1e-9)


def test_plan_uses_a_given_order_or_strategy() -> None:
    for name in FORECASTERS:
        assert make_plan(MATRIX, forecaster=name, order=("b", "a", "c")).plan.order == ("b", "a", "c")
        assert make_plan(MATRIX, forecaster=name, strategy="front_greedy").plan.order == ("a", "b", "c")
    six = matrix([0.5] * 6, [[0.5] * 6] * 6)
    worst = ("f", "e", "d", "c", "b", "a")
    plan = make_plan(six, order=worst)
    assert plan.plan.order == worst
    assert worst in [f.order for f in plan.orders]
    assert plan.plan.probability_best is None


def test_noise_widens_intervals_and_lowers_probability_best() -> None:
    sure = make_plan(matrix(START, AFTER, stderr=1e-6), forecaster="logit")
    doubtful = make_plan(matrix(START, AFTER, stderr=0.1), forecaster="logit")
    assert sure.plan.probability_best == pytest.approx(1.0)
    assert sure.plan.high - sure.plan.low < 1e-4
    assert doubtful.plan.probability_best is not None
    assert 0.2 < doubtful.plan.probability_best < 0.95
    assert doubtful.plan.high - doubtful.plan.low > 0.05
    assert doubtful.plan.order == sure.plan.order, "the choice goes by what was measured"
    assert doubtful.plan.score == pytest.approx(sure.plan.score)


def _all_alike(gain: float, stderr: float, n: int) -> TransferMatrix:
    """Four tasks that only their own run lifts."""
    after = [[0.3 + gain * (i == j) for j in range(4)] for i in range(4)]
    return matrix([0.3] * 4, after, stderr, n)


def test_plan_is_joint_where_later_stages_forget_the_first() -> None:
    """Only a task's own run lifts it, and what is learnt first is forgotten over nine later stages."""
    after = [[0.8 if i == j else 0.2 for j in range(10)] for i in range(10)]
    own = matrix([0.2] * 10, after, stderr=0.01, n=2000)
    plan = make_plan(own)
    assert plan.plan.kind == "joint"
    assert dump(plan)["plan"]["order"] == []
    assert "Train jointly." in plan.words
    assert plan.sequence.kind == "sequence", "a study still has its order"
    assert make_plan(own, forecaster="additive").plan.kind == "sequence"


def test_unsettled_decision_is_stated_in_words() -> None:
    plan = make_plan(_all_alike(0.3, 0.05, 96))
    assert not plan.decision.settled
    assert "the data can't tell: the expected gain of the sequence is" in plan.words
    assert plan.decision.stderr > 0
    more = Decision(0.01, 0.02, 0.7, False, 120)
    assert "about 120 more evaluation problems a task would settle it" in decision_words(more)
    assert "only running both" in decision_words(Decision(0.01, 0.02, 0.7, False, None))
    worse = Decision(-0.05, 0.01, 0.01, True, 0)
    assert "Joint training is forecast to beat the sequence by 0.050" in decision_words(worse)


def test_refresh_is_added_only_where_it_pays_its_cost() -> None:
    own = matrix([0.2] * 3, [[0.9, 0.1, 0.1], [0.1, 0.5, 0.2], [0.1, 0.2, 0.5]], stderr=0.01, n=2000)
    plain = make_plan(own, order=())
    free = make_plan(own, refresh_cost=0.0)
    dear = make_plan(own, refresh_cost=5.0)
    assert len(plain.sequence.order) == len(dear.sequence.order) == 3
    assert len(free.sequence.order) > 3
    assert set(free.sequence.passes) == {1.0, 0.25}
    assert free.sequence.score > plain.sequence.score - 0.02
    rng = np.random.default_rng(0)
    for _ in range(3):
        level = float(rng.uniform(0.3, 0.6))
        flat = matrix([level] * 6, [[level] * 6] * 6, stderr=0.0005, n=100_000)
        assert len(make_plan(flat, refresh_cost=0.01).sequence.order) == 6, "nothing to gain, nothing put in"


def test_plan_dumps_to_plain_json() -> None:
    table = json.loads(json.dumps(dump(make_plan(matrix(START, AFTER, stderr=0.02))), allow_nan=False))
    assert {"plan", "orders", "strategies", "exact", "upper_bound", "forecaster"} <= set(table)
    assert sorted(table["sequence"]["order"]) == ["a", "b", "c"]
    assert len(table["orders"]) == 6
    assert set(table["strategies"]) == set(STRATEGIES)
    assert set(table["plan"]["forecast"]["a"]) == {"mean", "low", "high"}
    assert table["forecaster"] == "hierarchical"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"forecaster": "tarot"}, "--forecaster: unknown forecaster 'tarot'; known: naive"),
        ({"strategy": "bwt"}, "--strategy: unknown strategy 'bwt'; known: exact"),
        ({"order": ("a", "b")}, "--order: leaves out 'c'"),
        ({"order": ("a", "b", "b", "c")}, "--order: an order must name each task once"),
        ({"order": ("a", "b", "z")}, "--order: unknown task 'z'; the matrix has a, b, c"),
        ({"objective": Objective(weights={"z": 1.0})}, "--objective: unknown task 'z'"),
        ({"objective": Objective(weights={"a": 0.0})}, "--objective: weights must be 0 or more"),
        ({"objective": Objective(weights={"a": -1.0, "b": 2.0})}, "--objective: weights must be 0 or more"),
        ({"objective": Objective(fixed={"z": 1})}, "--fix: unknown task 'z'"),
        ({"objective": Objective(fixed={"a": 4})}, "--fix: a place must lie between 1 and 3"),
        ({"objective": Objective(fixed={"a": 1, "b": 1})}, "--fix: two tasks can't have the same place"),
    ],
)
def test_bad_arguments_of_a_plan_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(MATRIX, **wrong)
    assert str(caught.value).startswith(words)


def test_task_without_its_own_run_is_refused() -> None:
    after = {i: {j: e for j, e in row.items() if i != "b" or j != "b"} for i, row in MATRIX.after.items()}
    lacking = TransferMatrix(MATRIX.tasks, MATRIX.start, after)
    with pytest.raises(UserError, match="'b' was not measured after training on its own task"):
        make_plan(lacking)


def test_planned_order_names_every_task() -> None:
    check_order(("c", "a", "b"), ("a", "b", "c"))
    names: Sequence[str] = make_plan(MATRIX).sequence.order
    check_order(names, MATRIX.tasks)


@pytest.mark.parametrize("kind", ["mean", "worst"])
def test_plan_of_six_tasks_is_the_best_order_within_its_bound(kind: str) -> None:
    rng = np.random.default_rng(4)
    count = 6
    effects = rng.normal(-0.03, 0.08, (count, count))
    start = rng.uniform(0.3, 0.6, count)
    after = np.clip(start + np.where(np.eye(count, dtype=bool), 0.25, effects), 0.02, 0.98)
    own = matrix(start.tolist(), after.tolist(), stderr=0.05, n=48)
    objective = Objective(kind)
    plan = make_plan(own, objective=objective)
    predict = Hierarchical(own, 400)
    best = max(
        float(objective.of(predict.by_task(predict.expected(in_order(order)))).mean())
        for order in permutations(own.tasks)
    )
    assert plan.sequence.score == pytest.approx(best, abs=2e-3)
    assert plan.upper_bound >= best - 1e-9
    assert not plan.exact


def test_joint_forecast_uses_the_given_shares() -> None:
    own = matrix(START, AFTER, stderr=0.03)
    shares = {"a": 0.8, "b": 0.1, "c": 0.1}
    plan = make_plan(own, shares=shares)
    predict = Hierarchical(own, 2000)
    assert plan.joint.score == pytest.approx(forecast_json(predict, Joint(shares, 3.0))["score"], abs=1e-9)
    assert plan.joint.score != pytest.approx(make_plan(own).joint.score, abs=1e-3)


def test_words_of_a_plan_give_the_length_of_a_refresh() -> None:
    own = matrix([0.2] * 3, [[0.9, 0.1, 0.1], [0.1, 0.5, 0.2], [0.1, 0.2, 0.5]], stderr=0.01, n=2000)
    plan = make_plan(own, refresh_cost=0.0)
    assert ":0.25" in plan.words
