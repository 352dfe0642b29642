"""Forecasts held against outcomes, beside forecasts that take no method."""

from dataclasses import replace

import pytest

from matrices import matrix
from omni_thinker.runs.schema.result import ForecastOutcome
from omni_thinker.transfer.quality import constant_gain, forecast_quality, own_level

ROW = ForecastOutcome(
    seed=0, arm="joint", task="a", forecast=0.5, low=0.4, high=0.6, outcome=0.5, inside=True, test=0.62, constant=0.6,
    naive=0.7,
)  # fmt: skip


def test_baselines_equal_values_by_hand() -> None:
    own = matrix([0.4, 0.6], [[0.6, 0.5], [0.3, 0.7]])
    assert constant_gain(own) == pytest.approx({"a": 0.4 + 0.15, "b": 0.6 + 0.15})
    assert own_level(own) == pytest.approx({"a": 0.6, "b": 0.7})


def test_errors_are_reported_for_both_splits_beside_the_baselines() -> None:
    found = forecast_quality([ROW, replace(ROW, task="b", test=0.45)])
    assert found is not None
    assert (found.test.inside, found.validation.inside, found.test.n) == (1, 2, 2)
    assert found.test.forecast == pytest.approx((0.12 + 0.05) / 2)
    assert found.test.constant == pytest.approx((0.02 + 0.15) / 2)
    assert found.test.naive == pytest.approx((0.08 + 0.25) / 2)
    assert found.rank is None
    assert found.words.startswith("1 of 2 forecasts held on the test split (2 on validation")
    assert "no better than these" in found.words


def test_forecasts_that_rank_arms_backwards_are_named() -> None:
    rows = [replace(ROW, arm=f"arm{n}", forecast=0.5 + n / 20, test=0.5 - n / 20) for n in range(4)]
    found = forecast_quality(rows)
    assert found is not None
    assert found.rank == pytest.approx(-1.0)
    assert "do not rank arms" in found.words


def test_runs_of_earlier_versions_have_no_quality() -> None:
    assert forecast_quality([replace(ROW, test=None)]) is None
    assert forecast_quality([]) is None
