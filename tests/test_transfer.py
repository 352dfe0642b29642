"""Transfer matrices are checked, round-trip through files, and are pooled over seeds."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from matrices import AFTER, MATRIX, START, matrix
from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import Estimate, dump
from omni_thinker.runs.schema.transfer import Column, TransferMatrix
from omni_thinker.transfer.matrix import load_matrix, parse_matrix, pool


def test_effects_equal_values_by_hand() -> None:
    assert MATRIX.effect("a", "b") == pytest.approx(0.1)
    assert MATRIX.effect("c", "a") == pytest.approx(-0.2)
    assert MATRIX.effect("a", "a") == pytest.approx(0.4)


# -- the file -----------------------------------------------------------------------------------------------

GOOD = dump(MATRIX)


def test_matrix_round_trips_through_its_file(tmp_path: Path) -> None:
    path = tmp_path / "transfer.json"
    unknown = matrix(START, AFTER, stderr=math.inf)
    for made in (MATRIX, unknown, LACKING, EVALUATED):
        path.write_text(json.dumps(dump(made), allow_nan=False), "utf-8")
        assert load_matrix(path) == made


LACKING = TransferMatrix(
    MATRIX.tasks,
    MATRIX.start,
    {i: {j: e for j, e in row.items() if (i, j) != ("a", "b")} for i, row in MATRIX.after.items()},
)
EVALUATED = TransferMatrix(
    MATRIX.tasks,
    MATRIX.start,
    MATRIX.after,
    (
        Column("a/one", "a", Estimate(0.1, 20, 0.05), {"a": Estimate(0.5, 20, 0.1), "c": Estimate(0.2, 20, 0.1)}),
        Column("other/two", "other", Estimate(0.3, 20, 0.1), {"b": Estimate(0.4, 20, 0.1)}),
    ),
)


def test_missing_cells_stay_missing() -> None:
    assert dump(LACKING)["after"]["a"]["b"] is None
    assert "b" not in LACKING.after["a"]
    assert LACKING.effect("a", "b") == 0.0
    assert "a" not in next(column for column in LACKING.columns() if column.name == "b").after
    assert "b" not in pool([MATRIX, LACKING]).after["a"], "a cell of one seed is no cell of both"


def test_columns_of_evaluations_replace_the_column_of_their_task() -> None:
    columns = EVALUATED.columns()
    assert [(column.name, column.task) for column in columns] == [
        ("b", "b"), ("c", "c"), ("a/one", "a"), ("other/two", "other"),
    ]  # fmt: skip
    assert set(columns[2].after) == {"a", "c"}
    assert pool([EVALUATED, EVALUATED]).columns()[2].start.mean == pytest.approx(0.1)


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
    ("evaluations", [], "evaluations"),
    ("evaluations", {"x": 3}, "evaluations.x"),
    ("evaluations", {"x": {"task": "a", "start": CELL, "after": {"zebra": CELL}}}, "evaluations.x.after"),
    ("evaluations", {"x": {"task": "a", "start": CELL, "after": {"b": {"mean": 2}}}}, "evaluations.x.after.b.mean"),
    ("evaluations", {"x": {"task": "a", "after": {}}}, "evaluations.x.start"),
    ("tasks", ["a", "b", "\ud800"], "tasks"),
    ("tasks", ["a", "b", "c=1"], "tasks"),
    ("tasks", ["a", "b", " "], "tasks"),
    ("evaluations", {"a": {"task": "b", "start": CELL, "after": {}}}, "evaluations.a"),
    ("after.b.c.n", 10**400, "after.b.c.n"),
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
def test_file_that_is_not_a_matrix_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    file = tmp_path / "transfer.json"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError) as caught:
        load_matrix(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_missing_or_unreadable_matrix_is_refused_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"tasks": ["\xe9"]}')
    for name in ("none.json", ".", "latin"):
        with pytest.raises(UserError) as caught:
            load_matrix(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path))


def test_omitted_keys_of_a_matrix_get_their_defaults() -> None:
    bare = parse_matrix(_with("start.a", {"mean": 1}), "here").start["a"]
    assert (bare.mean, bare.n) == (1.0, 0)
    assert bare.stderr == pytest.approx(math.sqrt(0.0025 * 0.9975 / 200), rel=0.01), "as if of 200 answers"
    known = parse_matrix(_with("start.a", {"mean": 0.5, "n": 25}), "here").start["a"]
    assert known.stderr == pytest.approx(0.1), "that of so many right or wrong answers"
    assert parse_matrix(_with("start.a.stderr", 0), "here").start["a"].stderr == 0.0
    assert parse_matrix(_with("start.a.stderr", None), "here").start["a"].stderr == math.inf
    assert parse_matrix(_with("version", DELETE), "here").tasks == ("a", "b", "c")


# -- several seeds ------------------------------------------------------------------------------------------


def _parts(estimate: Estimate) -> tuple[float, int, float]:
    return estimate.mean, estimate.n, estimate.stderr


def test_pooled_seeds_equal_values_by_hand() -> None:
    one, two = matrix([0.2, 0.5], [[0.4, 0.5], [0.1, 0.9]], 0.03), matrix([0.4, 0.5], [[0.4, 0.5], [0.3, 0.9]], 0.04)
    pooled = pool([one, two])
    assert pooled.tasks == ("a", "b")
    # Seeds that agree: the joint evaluation error, sqrt(.03^2 + .04^2) / 2.
    assert _parts(pooled.after["a"]["a"]) == pytest.approx((0.4, 100, 0.025))
    # Seeds that don't: the spread between them, |.2 - .4| / 2.
    assert _parts(pooled.start["a"]) == pytest.approx((0.3, 100, 0.1))
    assert pooled.effect("b", "a") == pytest.approx(-0.1)
    assert _parts(pool([one]).after["a"]["a"]) == pytest.approx((0.4, 50, 0.03))


def test_seed_with_unknown_stderr_makes_the_pooled_stderr_unknown() -> None:
    assert pool([matrix([0.5] * 2, [[0.5] * 2] * 2, e) for e in (0.1, math.inf)]).start["a"].stderr == math.inf
