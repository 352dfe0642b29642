"""Planned shares of joint training: slopes are exact, and no mixture that is asked ends worse than even shares."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import MATRIX, matrix
from omni_thinker.errors import UserError
from omni_thinker.recipe import builtin_recipe
from omni_thinker.studies.units import plan_work
from omni_thinker.transfer.forecast import Joint, evenly
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.plan import make_plan
from omni_thinker.transfer.search import Objective, expected_score
from omni_thinker.transfer.shares import _sloped, best_shares

OBJECTIVES = [Objective(), Objective("worst"), Objective(weights={"a": 3.0, "b": 1.0})]
shares = st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3).map(lambda own: np.array(own) / sum(own))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@settings(max_examples=15, deadline=None)
@given(shares)
def test_slopes_of_a_mixture_are_those_of_its_forecast(objective: Objective, own: np.ndarray) -> None:
    predict = Hierarchical(MATRIX, 50)

    def score(weights: np.ndarray) -> float:
        return expected_score(predict, objective, Joint(dict(zip("abc", weights.tolist(), strict=True)), 3.0))

    value, slopes = _sloped(predict, objective, Joint(dict(zip("abc", own.tolist(), strict=True)), 3.0))
    assert value == pytest.approx(score(own), abs=1e-12)
    for first, second in ((0, 1), (1, 2)):  # along directions in which shares still add up to 1
        step = np.zeros(3)
        step[first], step[second] = 1e-6, -1e-6
        if min(own[first], own[second], abs(own - 0.5).min()) < 1e-5:
            continue  # a share of one half is a kink
        rise = (score(own + step) - score(own - step)) / 2e-6
        assert slopes[first] - slopes[second] == pytest.approx(rise, abs=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.floats(0.05, 0.95), min_size=4, max_size=4), min_size=4, max_size=4))
def test_planned_shares_add_up_and_end_no_worse_than_even_ones(objective: Objective, after: list[list[float]]) -> None:
    predict = Hierarchical(matrix([0.2, 0.3, 0.4, 0.5], after, stderr=0.03), 100)
    found = best_shares(predict, objective, 4.0, evenly(predict.tasks))
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert min(found.weights.values()) >= 0.0
    even = Joint(evenly(predict.tasks).weights, 4.0)
    assert expected_score(predict, objective, found) >= expected_score(predict, objective, even)


def test_a_task_that_gains_nothing_gets_less_than_one_that_gains_much() -> None:
    own = matrix([0.3, 0.3, 0.3], [[0.8, 0.3, 0.3], [0.3, 0.31, 0.3], [0.3, 0.3, 0.6]], stderr=0.01, n=2000)
    planned = make_plan(own).mixture
    assert planned is not None
    assert planned.shares["a"] > planned.shares["c"] > planned.shares["b"]
    assert planned.kind == "joint"
    assert planned.score >= make_plan(own).joint.score
    assert make_plan(own, forecaster="additive").mixture is None


def test_planned_joint_arm_waits_for_the_plan_and_needs_a_forecaster_of_shares() -> None:
    study = {"arms": ["start", "joint", "joint_planned"]}
    settings_ = [f"study.{key}={json.dumps(value)}" for key, value in study.items()]
    work = plan_work(builtin_recipe(settings_))
    needs = {unit.name: unit.needs for unit in work.units}
    assert needs["joint_planned"] == ("plan",)
    assert needs["joint"] == ("start",)
    assert needs["plan"] == ("probe:math", "probe:coding", "probe:qa", "probe:writing")
    ordered = builtin_recipe([*settings_, 'study.order=["qa", "math", "coding", "writing"]'])
    assert {unit.name: unit.needs for unit in plan_work(ordered).units}["joint_planned"] == ("plan",)
    with pytest.raises(UserError, match="'joint_planned' needs two tasks and"):
        builtin_recipe([*settings_, 'study.forecaster="additive"'])
    with pytest.raises(UserError, match="3 steps can't be shared by 4 tasks"):
        builtin_recipe([*settings_, "study.steps=3"])  # a probe of no stage
