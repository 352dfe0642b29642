"""Priors learned from an atlas: cases read from rows, a proper score, and priors that move to the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrices import MATRIX
from omni_thinker.errors import UserError
from omni_thinker.recipe import parse_recipe
from omni_thinker.runs.json_text import to_json
from omni_thinker.runs.schema.atlas import AtlasKind, AtlasRow, AtlasStage
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.transfer.forecast import Joint, Merge, Stage, in_order
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.priors.cases import cases_of, matrices_of, without
from omni_thinker.transfer.priors.learn import LEAST_CASES, crps, learn_from
from omni_thinker.transfer.priors.named import HAND
from simulated_atlas import Truth, atlas_row, simulated_rows

Run = Callable[..., tuple[int, str, str]]
TASKS = ("a", "b", "c")


def row(
    name: str,
    kind: AtlasKind,
    accuracy: Sequence[float],
    stages: Sequence[tuple[dict[str, float], int]] = (),
    *,
    whole: bool = True,
    merged: tuple[str, ...] = (),
) -> AtlasRow:
    """An evaluation of the tasks a, b, c."""
    known = tuple(AtlasStage(shares, steps) for shares, steps in stages)
    seen = dict(zip(TASKS, accuracy, strict=True))
    return atlas_row(("short", 0), name, kind, seen, known, whole=whole, merged=merged, scale=0.5 if merged else None)


SINGLES = [
    row("start", "start", [0.2, 0.3, 0.4]),
    row("alone-a", "single", [0.3, 0.3, 0.4], [({"a": 1.0}, 6)], whole=False),
    row("alone-a", "single", [0.6, 0.35, 0.4], [({"a": 1.0}, 24)]),
    row("alone-b", "single", [0.2, 0.7, 0.45], [({"b": 1.0}, 24)]),
]


def test_cases_hold_what_was_known_what_was_trained_and_what_came() -> None:
    rows = [
        *SINGLES,
        row("mixture-00", "mixture", [0.5, 0.6, 0.4], [({"a": 0.75, "b": 0.25}, 48)]),
        row("sequence-00", "sequence", [0.55, 0.3, 0.4], [({"b": 1.0}, 12)], whole=False),
        row("sequence-00", "sequence", [0.5, 0.65, 0.4], [({"b": 1.0}, 12), ({"a": 1.0}, 36)]),
        row("merge-00", "merge", [0.5, 0.6, 0.4], merged=("a", "b")),
    ]
    mixture, first, second, merged = cases_of(rows)
    assert mixture.matrix.tasks == ("a", "b")
    assert mixture.matrix.start["a"].mean == 0.2
    assert mixture.matrix.after["a"]["b"].mean == 0.35  # of the whole run, not of its read on the way
    assert mixture.plan == Joint({"a": 0.75, "b": 0.25}, 2.0)
    assert {task: seen.mean for task, seen in mixture.seen.items()} == {"a": 0.5, "b": 0.6}
    assert first.plan == (Stage("b", 0.5),)
    assert first.matrix.tasks == ("b", "a")
    assert (first.whole, second.whole) == (False, True)
    assert second.plan == (Stage("b", 0.5), Stage("a", 1.5))
    assert merged.plan == Merge(0.5)


def test_runs_on_tasks_that_were_never_alone_are_no_cases() -> None:
    other_start = replace(SINGLES[3], start="long")
    rows = [
        *SINGLES[:3],
        other_start,
        row("mixture-00", "mixture", [0.5, 0.6, 0.4], [({"a": 0.5, "b": 0.5}, 48)]),
        row("sequence-00", "sequence", [0.5, 0.6, 0.4], [({"a": 1.0}, 48)]),
    ]
    assert [case.id for case in cases_of(rows)] == ["short/0/sequence-00"]
    assert [seat[1] for seat in matrices_of(rows)] == ["short"]


def test_holding_tasks_out_leaves_runs_that_never_trained_them() -> None:
    rows = [
        *SINGLES,
        row("mixture-00", "mixture", [0.5, 0.6, 0.4], [({"a": 0.5, "b": 0.5}, 48)]),
        row("sequence-00", "sequence", [0.5, 0.6, 0.4], [({"a": 1.0}, 48)]),
    ]
    assert [case.kind for case in without(cases_of(rows), ["b"])] == ["sequence"]


def test_rows_that_lack_what_their_kind_has_are_left_out() -> None:
    whole = row("mixture-00", "mixture", [0.5, 0.6, 0.4], [({"a": 0.5, "b": 0.5}, 48)])
    unscored = {**whole.accuracy, "b": Estimate(math.nan, 0, math.inf)}
    for changed in (
        replace(whole, stages=()),
        replace(whole, stages=whole.stages * 2),
        replace(whole, stages=(AtlasStage({"a": 0.0, "b": 0.0}, 48),)),
        replace(whole, kind="sequence"),
        replace(whole, kind="merge"),
        replace(whole, accuracy={"a": whole.accuracy["a"]}),
        replace(whole, accuracy=unscored),
    ):
        assert cases_of([*SINGLES, changed]) == []
    assert len(cases_of([*SINGLES, whole])) == 1
    unseen = replace(SINGLES[3], accuracy={**SINGLES[3].accuracy, "a": Estimate(math.nan, 0, math.inf)})
    assert [matrix.tasks for matrix in matrices_of([*SINGLES[:3], unseen]).values()] == [("b",)]


def test_crps_of_two_draws_is_the_hand_computed_value() -> None:
    # mean |x - y| = 1/2, half the mean distance of two draws = 1/4
    assert crps(np.array([[0.0, 1.0]]), np.array([0.0])) == pytest.approx([0.25])
    assert crps(np.array([[0.3, 0.3]]), np.array([0.3])) == pytest.approx([0.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0, 1))
def test_crps_equals_its_definition(draws: list[float], seen: float) -> None:
    x = np.array(draws)
    brute = np.abs(x - seen).mean() - 0.5 * np.abs(x[:, None] - x[None]).mean()
    assert crps(x[None], np.array([seen]))[0] == pytest.approx(brute, abs=1e-12)


def test_other_priors_change_shares_and_luck_but_no_latents() -> None:
    predict = Hierarchical(MATRIX, 400)
    harder = replace(HAND, dilution=(20.0, 80.0), retention=(20.0, 80.0), luck=(0.01, 0.01))
    under = predict.under(harder)
    assert np.array_equal(under.gain_C_N, predict.gain_C_N)
    assert under.diluted_N.mean() == pytest.approx(0.2, abs=0.02)
    assert under.retained_N[0] == pytest.approx(0.2)
    plan = in_order("abc")
    assert under.expected(plan).mean() < predict.expected(plan).mean()
    assert predict.retained_N.mean() == pytest.approx(0.9, abs=0.02)  # as it was


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.95), st.floats(2, 60))
def test_shares_of_other_priors_have_their_mean(mean: float, weight: float) -> None:
    under = Hierarchical(MATRIX, 400).under(replace(HAND, merged=(mean * weight, (1 - mean) * weight)))
    assert under.merged_N[1:].mean() == pytest.approx(mean, abs=0.12 / weight**0.5)


def test_priors_learned_from_a_file_move_to_the_truth(run: Run, tmp_path: Path) -> None:
    atlas, matrix = tmp_path / "atlas.jsonl", tmp_path / "transfer.json"
    tasks = {task: {"source": "builtin:math"} for task in "abcd"}
    study = {"arms": ["start", "joint"], "seeds": list(range(12)), "steps": 24}
    whole = {"mixture_tasks": [4, 4], "sequence_stages": [4, 4], "mixed_steps": 96, "starts": {"short": 20}}
    design = whole | {"mixtures": 12, "sequences": 12, "merges": 0, "repeated": 0}
    pool = parse_recipe({"tasks": tasks, "study": study, "atlas": design}, "here")
    rows = simulated_rows(pool, Truth(kept=0.6, mixed=0.5, luck=0.05, specific=0.1, problems=400))
    atlas.write_text("".join(to_json(one) + "\n" for one in rows), "utf-8")
    matrix.write_text(to_json(MATRIX), "utf-8")
    code, out, err = run("plan", "--matrix", matrix, "--evidence", atlas, "--json")
    assert code == 0, err
    assert "learning priors from" in err
    assert "of its own gain a task keeps" in out
    learned = json.loads(out.splitlines()[-1])["priors"]
    assert learned["name"] == str(atlas)
    dilution, retention = (learned[name][0] / sum(learned[name]) for name in ("dilution", "retention"))
    assert 0.4 < dilution < 0.65  # 0.85 by hand
    assert 0.5 < retention < 0.75  # 0.9 by hand
    assert learned["merged"] == pytest.approx(HAND.merged, rel=0.02)  # no merge was seen


def test_too_small_an_atlas_and_two_of_them_are_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{LEAST_CASES} evaluations"):
        learn_from(SINGLES, name="few")
    matrix, one, two = tmp_path / "transfer.json", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    matrix.write_text(to_json(MATRIX), "utf-8")
    for path in (one, two):
        path.write_text("".join(to_json(each) + "\n" for each in SINGLES), "utf-8")
    for files, words in (([one], "20 evaluations"), ([one, two], "takes one atlas.jsonl")):
        options = [word for path in files for word in ("--evidence", path)]
        code, _, err = run("plan", "--matrix", matrix, *options)
        assert code == 2
        assert words in err
