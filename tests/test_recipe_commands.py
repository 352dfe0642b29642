"""Recipes by name, a new one after a few questions, and what a shell completes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import omni_thinker as ot
from omni_thinker.cli.app import main
from omni_thinker.errors import UserError
from omni_thinker.packaged import about, packaged
from omni_thinker.recipe import load_recipe

CODE = "from omni_thinker.cli.app import main; main()"
Command = Callable[..., list[str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs a command in an empty folder without a terminal; the lines that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115

    def call(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["omni-thinker", *arguments])
        main()
        return capsys.readouterr().out.splitlines()

    return call


def test_every_recipe_is_listed_with_what_it_is_for(command: Command, repo: Path) -> None:
    lines = command("recipe", "list")
    files = sorted((repo / "recipes").rglob("*.toml"))
    assert [line.split()[0] for line in lines] == [str(f.relative_to(repo / "recipes").with_suffix("")) for f in files]
    assert all(
        about(file) in line and about(file).endswith((".", "?")) for file, line in zip(files, lines, strict=True)
    )


def test_a_recipe_is_found_by_its_name_where_no_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("tiny")) == load_recipe(packaged()["tiny"])
    assert load_recipe(Path("models/qwen3"), ["study.steps=7"]).study.steps == 7
    Path("tiny").write_text('name = "mine"\n[tasks.qa]\nsource = "builtin:qa"\n', "utf-8")
    assert load_recipe(Path("tiny")).name == "mine"
    with pytest.raises(UserError, match="quickstat: no such recipe file; did you mean 'quickstart'"):
        ot.study("quickstat")
    with pytest.raises(UserError, match=r"x\.toml: no such recipe file$"):
        load_recipe(Path("x.toml"))


def test_show_prints_the_file_itself(command: Command) -> None:
    assert command("recipe", "show", "quickstart") == packaged()["quickstart"].read_text("utf-8").splitlines()


def test_explain_takes_a_name_too(command: Command) -> None:
    assert "rl.group_size = 4 (recipe)" in command("recipe", "explain", "tiny", "--key", "rl.group_size")


def test_init_without_a_terminal_takes_defaults(command: Command) -> None:
    command("recipe", "init")
    recipe = load_recipe(Path("recipe.toml"))
    assert (recipe.name, recipe.model.name, list(recipe.tasks)) == (
        "study",
        "builtin",
        ["math", "coding", "qa", "writing"],
    )
    quick = load_recipe(packaged()["quickstart"])
    assert {name: task.max_tokens for name, task in recipe.tasks.items()} == {
        name: task.max_tokens for name, task in quick.tasks.items()
    }
    schema = Path("recipe.toml").read_text("utf-8").splitlines()[0].removeprefix("#:schema file://")
    assert json.loads(Path(schema).read_text("utf-8"))["title"] == "A recipe of Omni-Thinker"


def test_init_takes_options_and_rows_of_ones_own(command: Command) -> None:
    Path("rows.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n', "utf-8")
    options = ["--tasks", "qa,mine=rows.jsonl", "--steps", "9", "--arms", "start,joint", "--track", "wandb", "--json"]
    table = json.loads(command("recipe", "init", "sums.toml", "--model", "tiny", *options)[-1])
    recipe = load_recipe(Path("sums.toml"))
    assert (recipe.name, recipe.model.name, recipe.study.steps) == ("sums", "tiny", 9)
    assert (recipe.study.arms, recipe.track.to) == (("start", "joint"), ("wandb",))
    assert (recipe.tasks["mine"].source, recipe.tasks["mine"].files) == ("jsonl", ("rows.jsonl",))
    assert {**tomllib.loads(Path("sums.toml").read_text("utf-8")), "recipe": "sums.toml"} == table


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "maths"], "--tasks: 'maths' is neither one of math, coding, qa, writing nor NAME=FILE"),
        (["--tasks", "mine=none.jsonl"], "none.jsonl: --tasks: no such file of rows"),
        (["--tasks", "qa,qa"], "--tasks: names a task twice"),
        (["--arms", "joined"], "--arms: no arm 'joined'"),
        (["--name", "a/b"], "--name: begins with a letter or a digit"),
        (["--model", " "], "--model: needs a name"),
        (["--track", "wandbb"], "--track: unknown tracker 'wandbb'; did you mean 'wandb'"),
    ],
)
def test_init_refuses_in_one_line_and_writes_nothing(
    options: list[str], words: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command("recipe", "init", "x.toml", *options)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("x.toml").exists()


def test_init_asks_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "recipe", "init", "mine.toml", "--steps", "5"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"\ntiny\nmath, qa\nstart,joint\n\n")
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, err
    assert "Which model?" in err
    assert "How many RL steps" not in err, "what is given isn't asked"
    recipe = load_recipe(tmp_path / "mine.toml")
    assert (recipe.name, recipe.model.name, list(recipe.tasks)) == ("mine", "tiny", ["math", "qa"])
    assert (recipe.study.arms, recipe.study.steps, recipe.track.to) == (("start", "joint"), 5, ())
    assert "omni-thinker study mine.toml --dry-run" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("omni-thinker tr", ["train", "track", "transfer"]),
        ("omni-thinker study quick", ["quickstart"]),
        ("omni-thinker study own", ["own.toml"]),
        ("omni-thinker recipe ", ["init", "list", "show", "schema", "explain"]),
        ("omni-thinker study tiny --cl", ["--cluster"]),
    ],
)
def test_a_shell_completes_commands_options_and_recipes(words: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "own.toml").touch()
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "_OMNI_THINKER_COMPLETE": "complete_bash",
        "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert sorted(done.stdout.split()) == sorted(expected), done.stderr


def _asked(folder: Path, answers: bytes, meanwhile: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """The exit code and what was said, where a terminal gives `answers`. meanwhile: done once the first is asked."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "recipe", "init", "mine.toml"], stdin=theirs, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
    )  # fmt: skip
    os.close(theirs)
    assert process.stderr is not None
    said = process.stderr.read(1)  # the first question
    meanwhile()
    os.write(ours, answers)
    _, err = process.communicate(timeout=60)
    os.close(ours)
    return process.returncode, said + err


def test_init_asks_again_after_a_wrong_answer(tmp_path: Path) -> None:
    code, said = _asked(tmp_path, b"my study\nours\n\nmath,foo\nmath\nmany\n5\n\nfoo\n\n")
    assert code == 0, said
    assert all(f"--{key}: " in said for key in ("name", "tasks", "steps", "track"))
    recipe = load_recipe(tmp_path / "mine.toml")
    assert (recipe.name, list(recipe.tasks), recipe.study.steps) == ("ours", ["math"], 5)


def test_init_that_is_left_writes_nothing(tmp_path: Path) -> None:
    code, said = _asked(tmp_path, b"\x04")
    assert code == 130
    assert said.rstrip().endswith("omni-thinker: interrupted")
    assert not (tmp_path / "mine.toml").exists()


def test_init_keeps_a_file_that_came_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    code, said = _asked(tmp_path, b"\n" * 6, lambda: file.write_text("precious"))
    assert (code, file.read_text("utf-8")) == (2, "precious")
    assert "exists already" in said


def test_a_folder_of_weights_hides_no_packaged_recipe(command: Command) -> None:
    Path("models/qwen3").mkdir(parents=True)
    assert command("recipe", "show", "models/qwen3") == packaged()["models/qwen3"].read_text("utf-8").splitlines()
