"""The command line: bad input gets one line, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omni_thinker.isolation import allow_weak_sandbox, shutdown, use_workers

Run = Callable[..., tuple[int, str, str]]

ROWS: list[dict[str, object]] = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]


def write_recipe(folder: Path, tasks: str, extra: str = "") -> Path:
    path = folder / "recipe.toml"
    path.write_text(f'{extra}\n[model]\nname = "tiny"\n[judge]\nkind = "likelihood"\nmodel = "tiny"\n{tasks}', "utf-8")
    return path


def write_rows(folder: Path, rows: list[dict[str, object]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


MATH = '[tasks.sums]\nsource = "jsonl"\nfiles = ["rows.jsonl"]\n'


def test_control_characters_of_rows_are_escaped_on_the_terminal(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": f"\x1b[2J{word}\r\n\tx", "answer": "\x9b1A"} for word in "abcdefghij"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[model]\nname = "tiny"\n[tasks.t]\nsource = "jsonl"\nfiles = ["{tmp_path}/rows.jsonl"]\n'
        "reward = { sum = { exact = 1.0 } }\n"
    )
    code, out, _ = run("tasks", "show", f"{recipe}:t")
    assert code == 0
    assert "\\x1b[2J" in out
    assert not set(out) & {"\x1b", "\x9b", "\r"}
    assert "\n\tx" in out


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ('[tasks.sums]\nsource = "builtin:sums"\n', ["recipe.toml", "tasks.sums.source", "unknown source"]),
        ('[tasks.sums]\nsource = "builtin:math"\nlevel = 3\n', ["recipe.toml", "tasks.sums.level", "unknown key"]),
        ("[tasks]\n", ["recipe.toml", "tasks"]),
        (MATH + "reward = { sum = { maths = 1.0 } }\n", ["recipe.toml", "maths", "unknown"]),
        (MATH + "reward = { sum = { unit_tests = 1.0 } }\n", ["rows.jsonl:", "tasks.sums.reward", "tests"]),
        (MATH.replace("rows.jsonl", "absent.jsonl"), ["absent.jsonl", "tasks.sums.files", "no such file"]),
        (MATH + "[model.lora]\nrank = 0\n", ["recipe.toml", "model.lora.rank"]),
        (MATH + "[study]\nsteps = 8\norder = ['nope']\n", ["recipe.toml", "study.order", "nope"]),
        ("not toml [", ["recipe.toml", "not valid TOML"]),
    ],
)
def test_bad_recipe_exits_2_with_one_line_and_writes_nothing(
    run: Run, tmp_path: Path, tasks: str, words: list[str]
) -> None:
    write_rows(tmp_path, list(ROWS))
    recipe = write_recipe(tmp_path, tasks)
    code, out, err = run("study", recipe, "--out", tmp_path / "out")
    assert code == 2, err
    assert not out
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not (tmp_path / "out").exists()


def test_row_that_the_reward_cannot_score_exits_2_and_names_the_reward(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path, [*ROWS, {"prompt": "What is love?", "answer": "baby"}])
    recipe = write_recipe(tmp_path, MATH + "reward = { sum = { math = 1.0 } }\n")
    code, _, err = run("study", recipe, "--out", tmp_path / "out")
    assert code == 2
    assert "tasks.sums.reward" in err
    assert err.count("\n") == 1


def test_test_split_that_overlaps_train_exits_2_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{**row, "split": "train"} for row in ROWS] + [
        {"prompt": "what is 3 + 1?", "answer": "4", "split": "test"}
    ]
    write_rows(tmp_path, rows)
    recipe = write_recipe(tmp_path, MATH)
    code, _, err = run("study", recipe, "--out", tmp_path / "out")
    assert code == 2
    assert "recipe.toml" in err
    assert "tasks.sums" in err
    assert "also in" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lacking", ["tokenizer", "template"])
def test_model_without_tokenizer_or_template_exits_2_and_writes_nothing(
    run: Run, tmp_path: Path, tiny_model: Path, lacking: str
) -> None:
    write_rows(tmp_path, list(ROWS))
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    for path in folder.iterdir():
        if (lacking == "tokenizer" and "token" in path.name) or "template" in path.name:
            path.unlink()
        elif path.name == "tokenizer_config.json":
            table = json.loads(path.read_text("utf-8"))
            table.pop("chat_template", None)
            path.write_text(json.dumps(table), "utf-8")
    recipe = write_recipe(tmp_path, MATH)
    code, _, err = run("study", recipe, "--set", f'model.name="{folder}"', "--out", tmp_path / "out")
    assert code == 2
    assert str(folder) in err
    assert lacking in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_study_into_a_directory_with_a_run_exits_2_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path, list(ROWS))
    recipe = write_recipe(tmp_path, MATH)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text("precious", "utf-8")
    code, _, err = run("study", recipe, "--out", out)
    assert code == 2
    assert "already holds a run" in err
    assert [path.name for path in out.iterdir()] == ["metrics.jsonl"]
    assert (out / "metrics.jsonl").read_text("utf-8") == "precious"


def test_dry_run_prints_the_work_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path, list(ROWS))
    recipe = write_recipe(tmp_path, MATH, 'name = "dry"')
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, _ = run("study", recipe, "--dry-run", "--json")
    assert code == 0
    *said, last = out.splitlines()
    assert json.loads(last)["name"] == "dry"
    assert said[:3] == ["name: dry", "model: tiny", f"train: sums {json.loads(last)['problems']['train']['sums']}"]
    assert "steps of RL" in next(line for line in said if line.startswith("work: "))
    assert any(line.startswith("power: ") for line in said)
    assert not any("{" in line for line in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_score_writes_rows_in_input_order_and_refuses_an_existing_file(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{n}", "response": str(n % 3), "answer": "1"} for n in range(30)]
    path = write_rows(tmp_path, rows)
    out = tmp_path / "scores.jsonl"
    code, text, _ = run("score", "--reward", "math", "--in", path, "--out", out, "--json")
    assert code == 0
    scores = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [score["id"] for score in scores] == [row["id"] for row in rows]
    assert [score["value"] for score in scores] == [float(n % 3 == 1) for n in range(30)]
    assert json.loads(text.splitlines()[-1])["mean"] == pytest.approx(1 / 3, abs=1e-3)
    code, _, err = run("score", "--reward", "math", "--in", path, "--out", out)
    assert code == 2
    assert "exists" in err


def test_score_explain_shows_row_by_row_what_was_taken_and_why_it_lost(run: Run, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "right", "response": "\\boxed{18}", "answer": "18"},
        {"id": "torn", "response": "We meet\x1b at 10:30", "answer": "30"},
        {"id": "none", "response": "no idea", "answer": "3"},
    ]
    path, out = write_rows(tmp_path, rows), tmp_path / "scores.jsonl"
    code, text, _ = run("score", "--reward", "math", "--in", path, "--out", out, "--explain", "--json")
    assert code == 0
    *table, _, last = text.splitlines()
    assert [line.split()[:2] for line in table] == [["id", "value"], ["right", "1"], ["torn", "0"], ["none", "0"]]
    assert table[1].endswith("took '18' (boxed)")
    assert table[2].endswith("took '30' (last): part of an expression")
    assert table[3].endswith("took 'no idea' (whole): no number")
    assert "\x1b" not in text
    reasons = [json.loads(line)["reason"] for line in out.read_text("utf-8").splitlines()]
    assert [row["reason"] for row in json.loads(last)["explained"]] == reasons
    assert reasons[0] == "math: took '18' (boxed)"


def test_scoring_programs_without_bubblewrap_needs_allow_weak_sandbox(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": n, "response": f"def f(x): return {n}", "tests": ["assert f(0) == 1"]} for n in range(3)]
    path, out = write_rows(tmp_path, rows), tmp_path / "scores.jsonl"
    arguments = ["score", "--reward", "unit_tests", "--in", path, "--out", out, "--workers", "1"]
    shutdown()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("omni_thinker.isolation.bubblewrap.shutil.which", lambda name: None)
            allow_weak_sandbox(False)
            code, _, err = run(*arguments)
            assert code == 2
            assert "apt-get install bubblewrap" in err
            assert not out.exists()
            assert run(*arguments, "--allow-weak-sandbox")[0] == 0
            values = [json.loads(line)["value"] for line in out.read_text("utf-8").splitlines()]
            assert values == [0.0, 1.0, 0.0]
    finally:
        shutdown()
        use_workers(None)
        allow_weak_sandbox(False)


@pytest.mark.parametrize(
    ("line", "word"), [("{", "not JSON"), ('{"id": 1}', "response"), ('{"id": 1, "response": "2"}', "line 1")]
)
def test_score_of_a_bad_line_exits_2_and_writes_nothing(run: Run, tmp_path: Path, line: str, word: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n", "utf-8")
    code, _, err = run("score", "--reward", "math", "--in", path, "--out", tmp_path / "out.jsonl")
    assert code == 2
    assert word in err
    assert not (tmp_path / "out.jsonl").exists()


def test_tasks_show_prints_problems_and_refuses_an_unknown_split(run: Run) -> None:
    code, out, _ = run("tasks", "show", "builtin:qa", "--count", 2, "--json")
    assert code == 0
    assert len(json.loads(out.splitlines()[-1])["problems"]) == 2
    code, _, err = run("tasks", "show", "builtin:qa", "--split", "dev")
    assert code == 2
    assert "--split" in err


def test_task_class_of_the_readme_validates_without_failures(
    run: Run, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class printed in README is a task: its gold answers score 1 and wrong ones don't."""
    readme = (repo / "README.md").read_text("utf-8")
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    [code_block] = [block for block in blocks if "class Reversed" in block]
    (tmp_path / "my_tasks.py").write_text(code_block, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = write_recipe(
        tmp_path, '[tasks.reversed]\nsource = "python:my_tasks:Reversed"\ntrain = 40\nvalidation = 8\ntest = 8\n'
    )
    code, out, err = run("tasks", "validate", recipe, "--json")
    assert code == 0, err
    expected = {"failures": {"reversed": []}, "refused": {}, "without_gold": {"reversed": 0}}
    assert json.loads(out.splitlines()[-1]) == expected


@pytest.fixture
def matrix_file(tmp_path: Path) -> Path:
    def cell(mean: float) -> dict[str, float]:
        return {"mean": mean, "n": 50, "stderr": 0.02}

    # Training b ruins a, training a leaves b alone: b must come first.
    table = {
        "version": 1,
        "tasks": ["a", "b"],
        "start": {"a": cell(0.4), "b": cell(0.4)},
        "after": {"a": {"a": cell(0.8), "b": cell(0.4)}, "b": {"a": cell(0.1), "b": cell(0.8)}},
    }
    path = tmp_path / "transfer.json"
    path.write_text(json.dumps(table), "utf-8")
    return path


def test_plan_of_a_matrix_picks_the_best_order_and_refuses_unknown_tasks(run: Run, matrix_file: Path) -> None:
    code, out, _ = run("plan", "--matrix", matrix_file, "--json")
    assert code == 0
    plan = json.loads(out.splitlines()[-1])
    assert plan["plan"]["order"] == ["b", "a"]
    assert plan["plan"]["probability_best"] > 0.9
    code, out, _ = run("plan", "--matrix", matrix_file, "--forecaster", "additive", "--json")
    assert json.loads(out.splitlines()[-1])["plan"]["probability_best"] > 0.99
    assert len(plan["orders"]) == 2
    code, _, err = run("plan", "--matrix", matrix_file, "--order", "a,c")
    assert code == 2
    assert "'c'" in err


def test_forecast_of_a_joint_run_an_order_or_a_merge_has_intervals(run: Run, matrix_file: Path) -> None:
    code, out, _ = run("forecast", "--matrix", matrix_file, "--joint", "a=0.5,b=0.5", "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert found["kind"] == "joint"
    assert set(found["forecast"]) == {"a", "b"}
    assert found["forecast"]["a"]["low"] < found["forecast"]["a"]["mean"] < found["forecast"]["a"]["high"]
    code, out, _ = run(
        "forecast", "--matrix", matrix_file, "--order", "a,b,a:0.5", "--forecaster", "additive", "--json"
    )
    assert json.loads(out.splitlines()[-1])["kind"] == "sequence"
    code, out, _ = run("forecast", "--matrix", matrix_file, "--merge", "1.0")
    assert code == 0
    assert "mean:" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--objective", "best"), "--objective: must be mean, worst or task=weight"),
        (("plan", "--objective", "a=x"), "--objective: must be task=number"),
        (("plan", "--objective", "a=1,a=2"), "names 'a' twice"),
        (("plan", "--fix", "a=1.5"), "--fix: places must be whole numbers"),
        (("plan", "--fix", "c=1"), "--fix: unknown task 'c'"),
        (("plan", "--forecaster", "tarot"), "--forecaster: unknown forecaster 'tarot'"),
        (("forecast",), "--joint: give one of --joint, --order and --merge"),
        (("forecast", "--joint", "a=1", "--order", "a,b"), "give one of"),
        (("forecast", "--joint", "a=0.5"), "--joint: shares must add up to 1, not 0.5"),
        (("forecast", "--joint", "a=0.5,z=0.5"), "unknown task 'z'"),
        (("forecast", "--order", "a,z"), "--order: unknown task 'z'"),
        (
            ("plan", "--fix", "a=1", "--strategy", "reversed"),
            "--fix: places can be fixed only with the strategy 'exact'",
        ),
        (("plan", "--fix", "a=1", "--order", "a,b"), "--fix: places can be fixed"),
        (("forecast", "--merge", "nan"), "--merge: must be between 0 and 10"),
        (("forecast", "--merge", "-1"), "--merge: must be between 0 and 10"),
        (("forecast", "--joint", "a=1", "--passes", "inf"), "--passes: must be above 0"),
        (("forecast", "--order", "a", "--passes", "3"), "--passes: applies to --joint only"),
        (("forecast", "--order", "a:0"), "--order: passes must be above 0"),
        (("forecast", "--order", "a:x"), "--order: 'x' isn't a number of passes"),
    ],
)
def test_bad_options_of_plan_and_forecast_exit_2_with_one_line(
    run: Run, matrix_file: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = run(words[0], "--matrix", matrix_file, *words[1:])
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_judge_info_prints_an_agreement_above_chance(run: Run) -> None:
    code, out, _ = run("judge", "info", "--json")
    assert code == 0
    assert "length balanced" in out
    card = json.loads(out.splitlines()[-1])
    assert card["agreement"]["pandalm_human_pairs"]["consistent"] >= 0.85
    low, _ = card["agreement"]["pandalm_human_pairs"]["balanced_interval_95"]
    assert low > 0.5, "above chance, or the default would have to be another"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("transfer", "MATRIX", "--csv", "x.svg", "--plot", "x.svg"), "--csv: is given twice"),
        (("transfer", "MATRIX", "--csv", "x.csv", "--plot", "x.txt"), "--plot: must be a file that ends in"),
        (("transfer", "MATRIX", "--csv", "x.csv", "--plot", "."), "--plot: exists already"),
        (("transfer", "MATRIX", "--csv", "x.csv", "--plot", "no/x.svg"), "--plot: its folder doesn't exist"),
        (("transfer", "MATRIX", "--plot", "n" * 300 + ".svg"), "--plot: can't be written"),
        (("plan", "--matrix", "MATRIX", "--evidence", "n" * 300), "--evidence: can't be read"),
        (("plan", "--matrix", "MATRIX", "--evidence", "."), "result.json: --evidence: can't be read"),
        (("plan", "--matrix", "MATRIX", "--evidence", ".", "--forecaster", "logit"), "only hierarchical learns"),
        (("plan", "--matrix", "MATRIX", "--evidence", ".", "--evidence", "./"), "names a run twice"),
        (("plan", "--matrix", "MATRIX", "--level", "nan"), "--level: must be between 0.01 and 0.999"),
        (("plan", "--matrix", "MATRIX", "--refresh-cost", "-1"), "--refresh-cost: must be 0 or more"),
    ],
)
def test_bad_options_of_transfer_exit_2_and_write_nothing(
    run: Run, matrix_file: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = sorted(tmp_path.iterdir())
    code, _, err = run(*(str(matrix_file) if word == "MATRIX" else word for word in arguments))
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_transfer_prints_a_table_and_writes_csv_and_png(run: Run, matrix_file: Path, tmp_path: Path) -> None:
    code, out, _ = run("transfer", matrix_file, "--csv", "x.csv", "--plot", "x.png", "--json")
    assert code == 0
    assert set(json.loads(out.splitlines()[-1])) == {"start", "transfer", "shared", "specific"}
    assert "after RL on" in out
    assert (tmp_path / "x.csv").read_text("utf-8").startswith("evaluation,task,trained,transfer,mean,n,stderr\n")
    assert (tmp_path / "x.png").read_bytes()[1:4] == b"PNG"


def test_matrix_with_a_duplicate_key_exits_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"version": 1, "version": 1, "tasks": ["a", "b"]}')
    code, _, err = run("plan", "--matrix", "m.json")
    assert code == 2
    assert "appears twice" in err


def test_interrupt_hides_errors_of_half_built_objects(repo: Path) -> None:
    script = """
import omni_thinker.cli.app as cli

class HalfMade:
    def __del__(self):
        raise AttributeError("not set yet")

def app(**_):
    half_made = HalfMade()
    raise cli._Ended("interrupted", 130, "; resume")

cli.app = app
cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=repo, capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stderr == "omni-thinker: interrupted; resume\n"


def test_terminated_score_says_so_without_a_word_of_resuming(repo: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    os.mkfifo(rows)  # reading waits until somebody writes
    command = [sys.executable, "-m", "omni_thinker", "score", "--reward", "math", "--in", str(rows)]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True) as process:
        writer = os.open(rows, os.O_WRONLY)  # opens once the command reads
        process.terminate()
        assert process.stderr is not None
        assert process.stderr.read() == "omni-thinker: terminated\n"
        assert process.wait() == 143
        os.close(writer)


@pytest.mark.parametrize("arm", ["joint", "single:qa"])
def test_train_and_probe_take_recipes_that_replan_their_curriculum(run: Run, tmp_path: Path, arm: str) -> None:
    recipe = tmp_path / "recipe.toml"
    tasks = "".join(f'[tasks.{name}]\nsource = "builtin:{name}"\n' for name in ("qa", "math"))
    recipe.write_text(
        f'name = "r"\n{tasks}[study]\narms = ["start", "curriculum"]\nprobes = ["short"]\nreplan = true\n'
    )
    for command in (["train", str(recipe), "--arm", arm], ["probe", str(recipe)]):
        code, _, err = run(*command, "--set", "tasks.qa.train=0")  # refused before anything is trained
        assert code == 2
        assert "tasks.qa.train" in err
        code, _, err = run(*command, "--set", 'model.name="./nowhere"')
        assert code == 2
        assert "replan" not in err


def test_help_imports_no_torch_rich_numpy_or_pydantic() -> None:
    """`--help` has to stay under 0.3 s; torch, pydantic, numpy and rich each take longer than all that it needs."""
    program = (
        "import sys\nfrom omni_thinker.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'rich', 'numpy', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("name", ["plan.json", "report.html", "samples.jsonl", "journal.jsonl", "models"])
def test_study_overwrites_no_file_of_the_users_own(run: Run, tmp_path: Path, repo: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).write_text("mine")
    code, _, err = run("study", repo / "recipes" / "tiny.toml", "--out", folder)
    assert code == 2
    assert "already holds a run's files; choose another --out" in err
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]
