"""The atlas: an even, repeatable design; rows that survive a lost machine, and can be repeated bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe, load_recipe, parse_recipe
from omni_thinker.runs.read import read_atlas
from omni_thinker.studies.atlas.design import design
from omni_thinker.studies.atlas.hours import OutOfTime, within
from omni_thinker.studies.atlas.rows import Rows, differences
from omni_thinker.studies.atlas.run import describe_atlas, run_atlas, work_of
from omni_thinker.studies.crews.make import Where

POOL = """
name = "pool"
[model]
name = "tiny"
date = "2026-01-02"
[tasks.math]
source = "builtin:math"
difficulty = 0
max_tokens = 8
train = 16
validation = 4
test = 2
[tasks.coding]
source = "builtin:coding"
difficulty = 0
max_tokens = 8
train = 16
validation = 4
test = 2
[tasks.qa]
source = "builtin:qa"
difficulty = 0
max_tokens = 8
train = 16
validation = 4
test = 2
[warmup]
batch = 4
lr = 1e-3
check_every = 2
check_problems = 2
[rl]
group_size = 2
problems_per_step = 2
lr = 1e-3
refill_rounds = 0
[evaluation]
validation_problems = 3
samples = 1
keep_samples = 1
[study]
steps = 3
arms = ["start", "joint"]
seeds = [0, 1]
[atlas]
starts = { short = 1, long = 2 }
mixtures = 3
sequences = 3
merges = 1
repeated = 1
sequence_stages = [2, 3]
mixture_tasks = [2, 3]
mixed_steps = 9
reads = [1]
"""
FEW = ["atlas.mixtures=1", "atlas.sequences=1", "study.seeds=[0]", "atlas.starts={ short = 1 }"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.toml"
    path.write_text(POOL, "utf-8")
    return path


def many(count: int = 12, **atlas: Any) -> Recipe:
    tasks = {f"t{number}": {"source": "builtin:math"} for number in range(count)}
    study = {"arms": ["start", "joint"], "seeds": [0, 1]}
    return parse_recipe({"tasks": tasks, "study": study, "atlas": atlas}, "here")


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.integers(0, 12), st.integers(0, 9))
def test_design_is_repeatable_and_every_task_is_taken_about_as_often(count: int, number: int, seed: int) -> None:
    pool = many(count, mixtures=number, sequences=number, merges=number, seed=seed)
    rounds = design(pool)
    assert [(each.cell.name, each.seed, each.runs) for each in rounds] == [
        (each.cell.name, each.seed, each.runs) for each in design(pool)
    ]
    runs = {run.name: run for each in rounds for run in each.runs}
    assert Counter(run.kind for run in runs.values()) == Counter(
        {"single": count} | dict.fromkeys(("mixture", "sequence", "merge"), number) if number else {"single": count}
    )
    for kind in ("mixture", "merge", "sequence"):
        taken = Counter(task for run in runs.values() if run.kind == kind for task in set(run.tasks))
        if number:
            assert max(taken.values()) - min(taken[task] for task in pool.tasks) <= 1
    for run in runs.values():
        if run.kind == "mixture":
            assert 2 <= len(set(run.tasks)) == len(run.tasks) == len(run.weights) <= 8
        if run.kind == "sequence":
            assert 2 <= len(run.tasks) <= 5
            assert all(one != other for one, other in zip(run.tasks, run.tasks[1:], strict=False))


def test_single_runs_come_first_from_every_start_and_seed_and_every_run_has_its_unit() -> None:
    rounds = design(many(5))
    seats = [("short", 0), ("long", 0), ("short", 1), ("long", 1)]
    assert [(each.cell.start, each.seed) for each in rounds[:4]] == seats
    for each in rounds[:4]:
        assert {run.name for run in each.runs if run.kind == "single"} == {f"alone-t{n}" for n in range(5)}
    assert Counter(run.name for each in rounds for run in each.runs)["mixture-01"] == 4  # in every seat
    assert Counter(run.name for each in rounds for run in each.runs)["mixture-02"] == 1
    for each in rounds:
        units = [unit.name for unit in work_of(each).units]
        assert units[:2] == ["warmup", "start"]
        assert set(units[2:]) == {run.name for run in each.runs}
        for unit in work_of(each).units:
            assert set(unit.needs) <= set(units[: units.index(unit.name)])


@pytest.mark.parametrize(
    ("atlas", "words"),
    [
        ({"mixture_tasks": [3, 2]}, "atlas.mixture_tasks"),
        ({"reads": [48]}, "atlas.reads"),
        ({"mixed_steps": 8}, "atlas.mixed_steps"),
        ({"starts": {"a/b": 1}}, "atlas.starts"),
    ],
)
def test_settings_that_dont_go_together_are_refused(atlas: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        design(many(**atlas))


CHOSEN = {"kind": "sequence", "start": "long", "seed": 1, "tasks": ["t1", "t0", "t1"], "weights": [1.0, 2.0, 1.0]}


def test_chosen_runs_come_last_and_change_no_others() -> None:
    mixed = {"kind": "mixture", "start": "short", "seed": 0, "tasks": ["t2", "t0"], "weights": [3.0, 1.0]}
    plain, own = design(many(4)), design(many(4, chosen={"plan-00": CHOSEN, "even-00": mixed}))
    assert [(each.cell.name, each.seed, each.runs) for each in own[: len(plain)]] == [
        (each.cell.name, each.seed, each.runs) for each in plain
    ]
    first, second = own[len(plain) :]
    assert (first.cell.name, first.seed, [run.name for run in first.runs]) == ("short-chosen", 0, ["even-00"])
    assert second.runs[0].scheduler(()) == {"kind": "sequence", "stages": ["t1:1", "t0:2", "t1:1"]}
    assert work_of(second).total["step"] == many(4).atlas.mixed_steps


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("mixture-01", {}, "can't be the name of a run"),
        ("mine", {"start": "none"}, "no start 'none' with seed 1; starts are short, long, seeds 0, 1"),
        ("mine", {"seed": 7}, "no start 'long' with seed 7"),
        ("mine", {"tasks": ["t1", "x", "t1"]}, "no task 'x'"),
        ("mine", {"weights": [1.0]}, "1 for 3 tasks"),
        ("mine", {"kind": "mixture"}, "has each task once"),
        ("mine", {"weights": [0.01, 2.0, 1.0]}, "fewer than two steps"),
    ],
)
def test_chosen_runs_that_cant_be_run_are_refused(name: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        design(many(4, chosen={name: CHOSEN | changed}))


def test_forecast_counts_runs_steps_and_evaluations() -> None:
    # 2 starts x 2 seeds, 3 tasks, no mixtures or sequences: 12 single runs of 4 steps, read once on the way
    pool = many(3, mixtures=0, sequences=0, merges=0, reads=[1]).model_copy()
    summary = describe_atlas(pool)
    assert summary["runs"] == {"single": 12}
    assert summary["work"]["step"] == 12 * 48
    assert summary["work"]["validation"] == 4 + 12 * 2


def test_hours_end_what_runs_and_leave_the_handler_as_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OutOfTime), within(0.05 / 3600):
        time.sleep(20)
    assert signal.getsignal(signal.SIGTERM) is before
    with within(1) as check:
        check()


@pytest.mark.timeout(280)
def test_atlas_stops_resumes_skips_what_is_known_and_repeats_a_row_bit_for_bit(
    file: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [word for each in FEW for word in ("--set", each)]
    out = tmp_path / "atlas"
    code, said, err = run("atlas", file, "--out", out, "--hours", "0.0001", *few, "--json")
    assert code == 0, err
    stopped = json.loads(said.splitlines()[-1])
    assert stopped["out_of_time"]
    assert stopped["runs_left"]
    code, said, err = run("atlas", file, "--out", out, *few, "--json")
    assert code == 0, err
    assert json.loads(said.splitlines()[-1])["runs_left"] == 0
    rows = read_atlas(out / "atlas.jsonl")
    ids = Counter(row.id for row in rows)
    assert ids["short/0/start"] == 1  # that of single runs and that of mixtures are one
    assert [ids[f"short/0/alone-{task}"] for task in ("math", "coding", "qa")] == [2, 2, 2]
    assert ids["short/0/mixture-00"] == ids["short/0/merge-00"] == 1
    sequence = [row for row in rows if row.kind == "sequence"]
    assert [row.steps for row in sequence] == [sum(stage.steps for stage in row.stages) for row in sequence]
    assert [row.whole for row in sequence] == [False] * (len(sequence) - 1) + [True]
    assert sequence[-1].steps == 9
    merge = next(row for row in rows if row.kind == "merge")
    assert merge.steps == 3 * len(merge.merged)
    assert all(set(row.accuracy) == {"math", "coding", "qa"} for row in rows)
    assert not list(out.glob("*/models/seed-0/state/*"))  # nobody needs them

    # A machine was lost: only the rows are left. Nothing is run again.
    known = tmp_path / "known.jsonl"
    known.write_bytes((out / "atlas.jsonl").read_bytes())
    again = tmp_path / "again"
    code, said, _ = run("atlas", file, "--out", again, "--known", known, *few, "--json")
    assert code == 0
    assert json.loads(said.splitlines()[-1])["runs_left"] == 0
    assert not list(again.glob("*/journal.jsonl"))
    assert (again / "atlas.jsonl").read_bytes() == known.read_bytes()

    # A row more is lost, and is made again from a start that is made again.
    less = [line for line in known.read_text("utf-8").splitlines() if '"short/0/mixture-00"' not in line]
    known.write_text("\n".join(less) + "\n", "utf-8")
    code, said, _ = run("atlas", file, "--out", tmp_path / "third", "--known", known, *few, "--json")
    assert code == 0
    third = {(row.id, row.steps): row for row in read_atlas(tmp_path / "third" / "atlas.jsonl")}
    assert all(not differences(row, third[row.id, row.steps]) for row in rows)
    assert len(third) == len(rows)

    only = ["--only", "short/0/merge-00", "--only", sequence[0].id]
    code, said, err = run("atlas", file, "--out", tmp_path / "check", "--known", out / "atlas.jsonl", *only, *few)
    assert code == 0, said + err
    assert "all repeated rows are the same" in said
    wrong = (
        (out / "atlas.jsonl")
        .read_text("utf-8")
        .replace(f'"tokens_trained": {merge.tokens_trained}', '"tokens_trained": 1')
    )
    known.write_text(wrong, "utf-8")
    code, said, _ = run("atlas", file, "--out", tmp_path / "check", "--known", known, *only, *few)
    assert code == 1
    assert "merge-00 after" in said
    assert "differs: tokens_trained" in said

    # Half a row, as a kill leaves it, is cut off.
    text = known.read_text("utf-8")
    known.write_text(text[:-40], "utf-8")
    assert len(Rows(known).known) == len({row.key for row in rows}) - 1
    assert known.read_bytes().endswith(b"}\n")
    assert os.path.getsize(known) < len(text)


@pytest.mark.slow
def test_jobs_give_the_rows_that_one_process_gives(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order would be other numbers
    pool, only, threads = load_recipe(file), ["short/0/alone-math", "short/0/mixture-00"], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_atlas(pool, tmp_path / "one", only=only)
    finally:
        torch.set_num_threads(threads)
    run_atlas(pool, tmp_path / "two", only=only, where=Where(2))
    one, two = (
        {(row.id, row.steps): row for row in read_atlas(tmp_path / name / "atlas.jsonl")} for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(not differences(row, two[key]) for key, row in one.items())
