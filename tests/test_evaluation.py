"""Evaluations with several answers to a problem, a fixed evaluation set, and every answer as JSONL."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

import omni_thinker as ot
from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec, parse_recipe
from omni_thinker.report import write_report
from omni_thinker.rewards.registry import is_verifiable
from omni_thinker.tasks.registry import check_splits, make_task, make_tasks

LM_EVAL_KEYS = [
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash"
]  # fmt: skip
"""What lm-eval 0.4.13 writes for each document, besides the metrics by their names."""

SIZES = {"max_tokens": 8, "train": 16, "validation": 4, "test": 4}
SMALL: dict[str, Any] = {
    "model": {"name": "tiny"},
    "tasks": {
        "math": {**SIZES, "source": "builtin:math", "difficulty": 0},
        "brief": {**SIZES, "source": "builtin:qa", "reward": {"sum": {"brevity": 1.0}}},
    },
    "warmup": {"steps": 1, "batch": 4},
    "rl": {"group_size": 2, "problems_per_step": 2},
    "study": {"steps": 2, "arms": ["start", "joint"], "bootstrap": 50},
}
SEVERAL = {"samples": 4, "pass_at": [1, 2, 4], "majority_at": [1, 4], "greedy": True, "test_problems": 4}


@pytest.fixture(scope="module")
def answered(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("answers")
    return folder, ot.evaluate(tiny_model, SMALL | {"evaluation": SEVERAL}, samples=folder)


def spec(**table: Any) -> TaskSpec:
    return TaskSpec.model_validate(table)


def rows_of(folder: Path, task: str) -> list[dict[str, Any]]:
    [file] = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_model_has_all_measures_that_were_asked_for(answered: tuple[Path, dict[str, Any]]) -> None:
    _, result = answered
    assert list(result["measures"]["math"]) == ["pass@1", "pass@2", "pass@4", "majority@1", "majority@4", "greedy"]
    assert list(result["measures"]["brief"]) == ["pass@1", "pass@2", "pass@4", "greedy"]
    assert any("majority@k isn't defined for brief" in note for note in result["notes"])
    for task, own in result["measures"].items():
        assert own["pass@1"]["mean"] == pytest.approx(result["tasks"][task]["mean"])
        assert own["pass@1"]["mean"] <= own["pass@2"]["mean"] <= own["pass@4"]["mean"]
        assert result["metrics"][f"pass@4/{task}"] == pytest.approx(own["pass@4"]["mean"])
        assert own["greedy"]["n"] == 4


def test_rows_have_the_keys_of_lm_eval(answered: tuple[Path, dict[str, Any]]) -> None:
    folder, result = answered
    rows = rows_of(folder, "math")
    assert [(row["doc_id"], row["filter"]) for row in rows] == [
        (place, name) for name in ("none", "greedy") for place in range(4)
    ]
    for row in rows:
        assert list(row)[: len(LM_EVAL_KEYS)] == LM_EVAL_KEYS
        assert all(row[metric] is not None for metric in row["metrics"])
        prompt, drawn = (row["arguments"]["gen_args_0"][key] for key in ("arg_0", "arg_1"))
        assert row["doc"]["prompt"] in prompt
        assert row["prompt_hash"] == hashlib.sha256(prompt.encode()).hexdigest()
        assert row["target_hash"] == hashlib.sha256(row["target"].encode()).hexdigest()
        assert (
            row["doc_hash"] == hashlib.sha256(json.dumps(row["doc"], indent=2, ensure_ascii=False).encode()).hexdigest()
        )
        sampled = row["filter"] == "none"
        assert len(row["resps"][0]) == len(row["filtered_resps"][0]) == len(row["scores"]) == (4 if sampled else 1)
        assert (drawn["do_sample"], drawn["max_gen_toks"]) == (sampled, 8)
    assert rows[0]["metrics"] == ["score", "pass@1", "pass@2", "pass@4", "majority@1", "majority@4"]
    assert rows[-1]["metrics"] == ["score"]
    mean = sum(row["score"] for row in rows if row["filter"] == "none") / 4
    assert mean == pytest.approx(result["tasks"]["math"]["mean"])


def test_rows_are_a_data_set_as_lm_eval_uploads_them(answered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import datasets

    folder, _ = answered
    for file in folder.glob("samples_*.jsonl"):
        loaded = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
        assert len(loaded) == 8
        assert set(LM_EVAL_KEYS) <= set(loaded.column_names)
        # How lm-eval takes a task and a time out of a file's name.
        assert file.name[file.name.find("_") + 1 : file.name.rfind("_")] in ("math", "brief")


def test_values_have_the_types_of_lm_eval(answered: tuple[Path, dict[str, Any]]) -> None:
    types: dict[str, Any] = {
        "doc_id": int,
        "doc": dict[str, Any],
        "target": str,
        "arguments": dict[str, dict[str, Any]],
        "resps": list[list[str]],
        "filtered_resps": list[list[str]],
        "filter": str,
        "metrics": list[str],
        "doc_hash": str,
        "prompt_hash": str,
        "target_hash": str,
    }
    assert list(types) == LM_EVAL_KEYS
    for task in ("math", "brief"):
        for row in rows_of(answered[0], task):
            for key, kind in types.items():
                TypeAdapter(kind).validate_python(row[key], strict=True)
            assert all(isinstance(row[metric], float) for metric in row["metrics"])


def test_a_second_evaluation_writes_files_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    recipe = SMALL | {"evaluation": {"samples": 1, "test_problems": 2}}
    for _ in range(2):
        assert ot.evaluate(tiny_model, recipe, samples=tmp_path)["measures"] == {}
    assert len(list(tmp_path.glob("samples_math_*.jsonl"))) == 2
    file = next(tmp_path.glob("samples_math_*.jsonl"))
    row = json.loads(file.read_text("utf-8").splitlines()[0])
    assert row["filtered_resps"] == row["resps"][0], "one answer is no list, as lm-eval has it"
    with pytest.raises(UserError, match="--samples: can't be written"):
        ot.evaluate(tiny_model, recipe, samples=file)


def test_a_study_reports_measures_of_every_arm_and_default_numbers_stay(tmp_path: Path) -> None:
    plain = ot.study(SMALL | {"evaluation": {"samples": 4, "test_problems": 4}}, tmp_path / "plain")
    result = ot.study(SMALL | {"evaluation": SEVERAL}, tmp_path / "run")
    assert any("majority@k isn't defined for brief" in note for note in result["notes"])
    for arm, [run] in result["arms"].items():
        assert list(run["measures"]["math"]) == ["pass@1", "pass@2", "pass@4", "majority@1", "majority@4", "greedy"]
        assert run["test"] == plain["arms"][arm][0]["test"], "what else is measured changes no number"
        assert run["validation"] == plain["arms"][arm][0]["validation"]
        assert plain["arms"][arm][0]["measures"] == {}
    loaded = ot.load_run(tmp_path / "run")
    assert loaded.result.arms["joint"][0].measures["math"]["pass@4"].n == 4
    page = write_report(tmp_path / "run").read_text("utf-8")
    assert page.count('class="left">mean@4</td>') == 2
    assert page.count('class="left">pass@2</td>') == 2
    assert "table-measures" not in write_report(tmp_path / "plain").read_text("utf-8")
    kinds = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(("pass@4/math" in row["metrics"]) == (row["kind"] != "train") for row in kinds if row["arm"] != "warmup")
    assert all(("greedy/math" in row["metrics"]) == (row["kind"] == "test") for row in kinds)


def rows_file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def sums(first: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n} + 1 = ?", "answer": str(n + 1), **more} for n in range(first, first + count)]


def test_a_fixed_set_takes_the_place_of_the_test_rows_alone(tmp_path: Path) -> None:
    files = rows_file(tmp_path / "train.jsonl", [{**row, "id": str(n)} for n, row in enumerate(sums(0, 60))])
    fixed = rows_file(
        tmp_path / "fixed.jsonl", [{**row, "id": str(n), "split": "train"} for n, row in enumerate(sums(100, 5))]
    )
    own = spec(source="jsonl", files=(files,))
    task = make_task("t", spec(source="jsonl", files=(files,), test_set={"files": [fixed]}))
    plain = make_task("t", own)
    assert [p.prompt for p in task.problems("train")] == [p.prompt for p in plain.problems("train")]
    assert {p.prompt for p in task.problems("test")} == {row["prompt"] for row in sums(100, 5)}
    assert {p.id for p in task.problems("test")} == {f"test_set/{n}" for n in range(5)}
    assert task.reward == plain.reward
    check_splits(task)


def test_a_fixed_set_has_a_form_and_fields_of_its_own_and_works_beside_generated_tasks(tmp_path: Path) -> None:
    fixed = rows_file(
        tmp_path / "gsm.jsonl",
        [{"question": f"What is {n} + {n}?", "answer": f"It is\n#### {2 * n}"} for n in range(9)],
    )
    table = spec(source="builtin:math", test_set={"files": [fixed]}, test=4)
    task = make_task("math", table)
    assert len(task.problems("test")) == 4
    assert all(p.answer is not None and p.answer.isdigit() for p in task.problems("test"))
    assert is_verifiable(task.reward)
    named = rows_file(tmp_path / "named.jsonl", [{"q": "1 + 1 = ?", "a": "2"}])
    fields = {"files": [named], "format": "plain", "fields": {"prompt": "q", "answer": "a"}}
    [problem] = make_task("math", spec(source="builtin:math", test_set=fields)).problems("test")
    assert (problem.prompt, problem.answer) == ("1 + 1 = ?", "2")


def test_prompts_that_are_trained_on_are_refused_or_left_out_of_train(tmp_path: Path) -> None:
    files = rows_file(tmp_path / "train.jsonl", sums(0, 60))
    fixed = rows_file(tmp_path / "fixed.jsonl", sums(0, 60))
    table = {"source": "jsonl", "files": [files], "test_set": {"files": [fixed]}}
    with pytest.raises(UserError, match=r"prompt\(s\) of test also in"):
        check_splits(make_task("t", spec(**table)))
    with pytest.raises(UserError, match=r"tasks.t.test_set: every prompt of train is in it"):
        check_splits(make_task("t", spec(**table, options={"drop_overlap": True})))
    fixed = rows_file(tmp_path / "fixed.jsonl", sums(0, 20))
    task = make_task("t", spec(**table, options={"drop_overlap": True}))
    check_splits(task)
    kept = {p.prompt for p in (*task.problems("train"), *task.problems("validation"))}
    assert kept
    assert not kept & {row["prompt"] for row in sums(0, 20)}


@pytest.mark.parametrize(
    ("test_set", "words"),
    [
        ({"files": ["none.jsonl"]}, r"tasks.t.test_set.files: no such file"),
        ({"files": []}, "test_set"),
        ({"files": ["{}"], "format": "nonsense"}, r"tasks.t.test_set.format"),
        ({"files": ["{}"], "fields": {"prompt": "absent"}}, r"fixed.jsonl:1: absent: is missing"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused_by_its_own_key(
    test_set: dict[str, Any], words: str, tmp_path: Path
) -> None:
    fixed = rows_file(tmp_path / "fixed.jsonl", sums(100, 5))
    files = [fixed if file == "{}" else file for file in test_set["files"]]
    table = {"tasks": {"t": {"source": "builtin:math", "test_set": {**test_set, "files": files}}}}
    with pytest.raises(UserError, match=words):
        make_tasks(parse_recipe(table, "r").tasks)


def test_sets_of_reasoning_gym_take_no_rows() -> None:
    table = spec(source="reasoning_gym:leg_counting", test_set={"files": ["rows.jsonl"]})
    with pytest.raises(UserError, match=r"tasks\.t\.test_set: .*doesn't use this key"):
        make_task("t", table)


def test_the_files_of_a_set_are_relative_to_the_data_root(tmp_path: Path) -> None:
    rows_file(tmp_path / "fixed.jsonl", sums(100, 5))
    table = {
        "data_root": str(tmp_path),
        "tasks": {"t": {"source": "builtin:math", "test_set": {"files": ["fixed.jsonl"]}}},
    }
    recipe = parse_recipe(table, "r.toml")
    assert len(make_tasks(recipe.tasks, recipe.data_root)["t"].problems("test")) == 5


def test_a_fixed_set_is_evaluated_and_named(tiny_model: Path, tmp_path: Path) -> None:
    fixed = rows_file(tmp_path / "fixed.jsonl", sums(100, 5))
    tasks = {"math": SMALL["tasks"]["math"] | {"test_set": {"files": [fixed]}}}
    result = ot.evaluate(tiny_model, SMALL | {"tasks": tasks}, samples=tmp_path / "rows")
    assert result["tasks"]["math"]["n"] == 4
    assert any(note.startswith("Test problems of math: 4 of ") for note in result["notes"])
    assert {row["doc"]["prompt"] for row in rows_of(tmp_path / "rows", "math")} <= {
        row["prompt"] for row in sums(100, 5)
    }
