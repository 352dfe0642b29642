"""What commands say to somebody who meets them for the first time."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.compare.verdict import verdict
from omni_thinker.runs.schema.result import Comparison
from omni_thinker.tasks.pool import split_of

Run = Callable[..., tuple[int, str, str]]


def test_difficulty_of_tasks_show_applies_to_a_recipes_task(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[tasks.m]\nsource = "builtin:math"\ndifficulty = 0\n')
    _, easy, _ = run("tasks", "show", f"{recipe}:m")
    code, hard, _ = run("tasks", "show", f"{recipe}:m", "--difficulty", 5)
    assert code == 0
    assert hard != easy
    assert hard == run("tasks", "show", f"{recipe}:m", "--set", "tasks.m.difficulty=5")[1]


def test_tasks_show_of_a_bare_source_refuses_keys_of_a_recipe(run: Run) -> None:
    code, _, err = run("tasks", "show", "builtin:math", "--set", "difficulty=5")
    assert code == 2
    assert "--set" in err


def test_judge_cache_that_no_judge_has_used_yet_is_empty(run: Run, own_home: Path, tmp_path: Path) -> None:
    code, out, _ = run("judge", "cache", "stats")
    assert code == 0
    assert out == f"{own_home / 'judge.sqlite'}: 0 replies\n"
    assert run("judge", "cache", "clear")[:2] == (0, "0 replies deleted\n")
    assert not own_home.exists()
    code, _, err = run("judge", "cache", "stats", "--cache", tmp_path / "absent")
    assert code == 2
    assert "no such cache" in err


def test_judge_agree_says_shares_and_intervals_in_words(run: Run, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "Say hi.", "response_1": "hi", "response_2": "hello there", "label": 2, "votes": [2, 2, 1]}
    pairs.write_text(json.dumps({"id": "a"} | row) + "\n" + json.dumps({"id": "b"} | row | {"label": 0}) + "\n")
    code, out, err = run("judge", "agree", "--pairs", pairs, "--model", "tiny")
    assert code == 0, err
    assert "pairs: 1 that people decided; 1 more were ties to people\n" in out
    assert re.search(r"^agreement with people: \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]$", out, re.MULTILINE)
    assert "ceiling (how often two people agree): 0.333\n" in out
    assert "length balanced (mean of these two): too few pairs\n" in out
    assert "None" not in out


@pytest.mark.parametrize(
    ("objective", "aim"),
    [("mean", "the mean accuracy"), ("worst", "the worst task's accuracy"), ("a=2", "the weighted")],
)
def test_plan_says_what_its_star_and_its_scores_are(run: Run, tmp_path: Path, objective: str, aim: str) -> None:
    file = tmp_path / "transfer.json"
    cells = {"a": {"mean": 0.4, "n": 50}, "b": {"mean": 0.3, "n": 50}}
    file.write_text(json.dumps({"version": 1, "tasks": ["a", "b"], "start": cells, "after": {"a": cells, "b": cells}}))
    code, out, _ = run("plan", "--matrix", file, "--objective", objective)
    assert code == 0
    assert f"(* is the plan; scores are forecasts of {aim}" in out
    assert "no candidate" not in out


def test_plan_says_why_joint_training_is_no_candidate(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "transfer.json"
    start, up, down = ({"mean": mean, "n": 500} for mean in (0.4, 0.6, 0.1))
    after = {"a": {"a": up, "b": down}, "b": {"a": up, "b": up}}
    file.write_text(json.dumps({"version": 1, "tasks": ["a", "b"], "start": {"a": start, "b": start}, "after": after}))
    said = "(joint training is no candidate with --order, --fix, --strategy or another --forecaster)\n"
    assert said not in run("plan", "--matrix", file)[1]
    code, out, _ = run("plan", "--matrix", file, "--order", "b,a")  # a would undo what b has learned
    assert code == 0
    assert "* b -> a" in out
    assert said in out


def test_missing_option_takes_one_line(run: Run) -> None:
    code, out, err = run("score", "--reward", "math")
    assert (code, out) == (2, "")
    assert err == "omni-thinker: Missing option '--in'; see omni-thinker score --help\n"
    code, out, err = run("plan", "--matrx", "x")
    assert code == 2
    assert err.count("\n") == 1


def test_command_without_arguments_prints_its_help(run: Run) -> None:
    for command in ([], ["judge"]):
        code, out, err = run(*command)
        assert code == 2
        assert "Usage:" in out + err


def test_score_explain_needs_no_file_for_the_scores(run: Run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "response": "It is 4.", "answer": "4"}\n')
    code, out, _ = run("score", "--reward", "math", "--in", rows, "--explain")
    assert code == 0
    assert "1 rows: 1 values (mean 1.0)" in out
    code, _, err = run("score", "--reward", "math", "--in", rows)
    assert code == 2
    assert "--out" in err


def _comparison(a: str, b: str, **changed: Any) -> Comparison:
    same = {"task": "macro", "difference": 0.0, "low": 0.0, "high": 0.0, "n": 8, "detectable": 0.1, "shown": False}
    return Comparison(a=a, b=b, **{**same, **changed})


def test_verdict_names_the_arms_that_were_compared_with_joint_training() -> None:
    words = verdict([_comparison("curriculum", "joint"), _comparison("merge", "joint")], 0.95, 1)
    assert words.startswith(
        "None of the 2 arms (curriculum, merge) was shown to differ from joint training at this budget; a difference "
        "of 10.0 points would be shown nine times in ten."
    )


@pytest.mark.parametrize("setting", ["evaluation.test_problems=3", 'study.arms=["start", "curriculum"]'])
def test_dry_run_says_what_its_power_needs(run: Run, repo: Path, setting: str) -> None:
    code, out, _ = run("study", repo / "recipes" / "tiny.toml", "--dry-run", "--set", setting)
    assert code == 0
    assert "power: no forecast: that needs joint training, an arm to compare with it, and " in out


def test_train_calls_what_it_does_a_run_and_says_that_all_scores_are_0(run: Run, repo: Path, tmp_path: Path) -> None:
    quick = ("--set", "warmup.steps=0", "--set", "rl.refill_rounds=0", "--set", "rl.problems_per_step=2")
    code, out, err = run("train", repo / "recipes" / "tiny.toml", "--steps", "1", "--out", tmp_path / "out", *quick)
    assert code == 0, err
    assert "run 'tiny' into" in err
    assert "the run has ended" in err
    assert "study" not in err
    assert out.startswith("arm (test split) "), "the table that the run was for"
    assert "\nEvery score on the test split is 0, so no arm can be told from another. " in out


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


_LINES = {n: f"What is {n}\n= 1?" for n in range(20)}
NO_TEST = [{"prompt": line, "answer": str(n)} for n, line in _LINES.items() if split_of(line) != "test"]


def test_all_that_import_prints_is_a_recipes_table(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("tasks", "import", write(tmp_path / "a.jsonl", [*NO_TEST, {"prompt": ""}]))
    assert code == 0
    assert tomllib.loads(out)["tasks"]["mine"]["files"] == [str(tmp_path / "a.jsonl")]
    assert "# no row falls into test: give more rows, or name those of each split (docs/recipe.md)\n" in out
    assert "# a study refuses the task because of these, unless it sets skip_refused = true\n" in out
    assert "# => " in out


def test_split_that_no_row_falls_into_is_refused_with_the_cure(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", NO_TEST)
    code, _, err = run("tasks", "validate", _recipe(tmp_path, "a.jsonl"))
    assert code == 2
    assert "no row falls into this split; give more rows, or name those of each split (docs/recipe.md)" in err


def _recipe(folder: Path, file: str) -> Path:
    recipe = folder / "r.toml"
    recipe.write_text(f'[model]\nname = "tiny"\n[tasks.mine]\nsource = "jsonl"\nfiles = ["{file}"]\nmax_tokens = 8\n')
    return recipe


def test_missing_file_is_refused_with_the_folder_that_was_looked_in(run: Run, tmp_path: Path) -> None:
    for file in ("absent.jsonl", "absent.csv", "absent.parquet"):
        code, _, err = run("tasks", "validate", _recipe(tmp_path, file))
        assert code == 2
        assert f"{file}: tasks.mine.files: no such file in {tmp_path}, where the command runs\n" in err


def test_rows_without_a_gold_answer_are_counted_and_left_out_of_the_warm_up(run: Run, tmp_path: Path) -> None:
    tests = {"tests": ["assert f(1) == 2"], "entry_point": "f"}
    write(tmp_path / "a.jsonl", [{"prompt": f"Write f, number {n}.", **tests} for n in range(40)])
    recipe = _recipe(tmp_path, "a.jsonl")
    assert run("tasks", "show", f"{recipe}:mine")[1].count("=> no gold answer\n") == 3
    code, out, err = run("tasks", "validate", recipe, "--json")
    assert code == 0, err
    assert out.startswith("mine: all rows pass; no row has a gold answer, so only a wrong answer was tried there\n")
    assert json.loads(out.splitlines()[-1])["without_gold"] == {"mine": 40}
    sizes = [word for key in ("validation_problems", "test_problems") for word in ("--set", f"evaluation.{key}=1")]
    code, _, err = run(
        "train", recipe, "--steps", 1, "--set", "rl.problems_per_step=1", *sizes, "--out", tmp_path / "o"
    )
    assert code == 0, err
    assert "the warm-up leaves out mine: no gold answers" in err
