"""metrics.jsonl by columns, against the lines as they were written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from omni_thinker.runs.metrics_log import MetricsLog


def _line(step: Any, metrics: Any, **more: Any) -> bytes:
    head = {"seed": 0, "unit": "joint", "arm": "joint", "kind": "train", "stage": None, "step": step, "seconds": 1.5}
    return json.dumps(head | {"metrics": metrics} | more).encode()


def _log(*lines: bytes) -> MetricsLog:
    log = MetricsLog()
    for line in lines:
        log.add(line)
    return log


def test_lines_come_by_step_with_today_s_names_and_without_nulls() -> None:
    log = _log(_line(2, {"a": 0.5, "b": None}), _line(1, {"a": 1, "b": 2.0}), _line(3, {"clip_share/x": 0.25}))
    assert [(row.step, row.metrics) for row in log] == [
        (1, {"a": 1.0, "b": 2.0}),
        (2, {"a": 0.5}),
        (3, {"clip_frac/x": 0.25}),
    ]
    assert (len(log), log[-1].step, [row.step for row in log[:2]]) == (3, 3, [1, 2])
    assert log.curves("joint", "b", "train")[0].tolist() == [[1.0, 2.0]]
    assert log.curves("joint", "clip_frac/x", "train")[0].tolist() == [[3.0, 0.25]]
    assert not log.curves("joint", "a", "validation")


def test_later_line_of_the_same_step_counts_whatever_its_unit_and_metrics() -> None:
    log = _log(_line(1, {"a": 1.0}), _line(2, {"a": 2.0}), _line(1, {"a": 3.0, "b": 4.0}, unit="joint-again"))
    assert [(row.step, row.unit, dict(row.metrics)) for row in log] == [
        (1, "joint-again", {"a": 3.0, "b": 4.0}),
        (2, "joint", {"a": 2.0}),
    ]
    assert log.curves("joint", "a", "train")[0].tolist() == [[1.0, 3.0], [2.0, 2.0]]


def test_seeds_are_curves_of_their_own_and_stages_are_one_curve() -> None:
    log = _log(
        _line(2, {"a": 2.0}, arm="curriculum", stage="y"),
        _line(1, {"a": 1.0}, arm="curriculum", stage="x"),
        _line(1, {"a": 7.0}, arm="curriculum", stage="x", seed=5),
    )
    curves = log.curves("curriculum", "a", "train")
    assert {seed: curve.tolist() for seed, curve in curves.items()} == {0: [[1.0, 1.0], [2.0, 2.0]], 5: [[1.0, 7.0]]}
    assert log.stages("curriculum", "train") == {0: [("x", 1), ("y", 2)], 5: [("x", 1)]}
    assert log.has("curriculum", "train")
    assert not log.has("joint", "train")
    assert (log.seconds("train"), log.seconds("test")) == (4.5, 0.0)
    assert np.sort(log.values("curriculum", "a", "train")).tolist() == [1.0, 2.0, 7.0]


@pytest.mark.parametrize(
    "line",
    [
        _line(True, {"a": 1.0}),
        _line(2, {"a": True}),
        _line(2, {"a": "1"}),
        _line(-1, {"a": 1.0}),
        _line(2, {"a": 1.0}, seed=False),
        _line(2, {"a": 1.0}, seconds=None),
        _line(2, {"a": 1.0}, seconds=10**400),
        _line(2, {"a": 10**400}),
        _line(2, [1.0]),
        _line(2, {"a": 1.0}, kind="training"),
        b"[1]",
        b"{",
    ],
)
def test_line_of_another_shape_is_refused_after_good_ones_and_leaves_nothing(line: bytes) -> None:
    log = _log(_line(1, {"a": 1.0}))
    with pytest.raises(ValueError, match=r"validation error|Expecting"):
        log.add(line)
    assert [row.step for row in log] == [1]
