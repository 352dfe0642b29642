"""Recipes: what is refused, and by which key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.recipe import load_recipe, parse_recipe
from omni_thinker.recipe.rl import PRESETS, Preset
from omni_thinker.tasks.registry import make_tasks

TASKS: dict[str, Any] = {"a": {"source": "builtin:math"}, "b": {"source": "builtin:qa"}}


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"rl": {"lr": float("inf")}}, "rl.lr"),
        ({"rl": {"kl_beta": float("nan")}}, "rl.kl_beta"),
        ({"rl": {"group_size": 1}}, "rl.group_size"),
        ({"study": {"merge_scale": float("inf")}}, "study.merge_scale"),
        ({"study": {"seeds": [0, 0]}}, "study.seeds"),
        ({"study": {"seeds": []}}, "study.seeds"),
        ({"study": {"arms": ["joint", "joint"]}}, "study.arms"),
        ({"study": {"steps": 1}}, "study.steps"),
        ({"study": {"order": ["a"]}}, "study.order"),
        ({"study": {"order": ["a", "c"]}}, "study.order"),
        ({"warmup": {"target": [0.6, 0.2]}}, "warmup.target"),
        ({"name": "../up"}, "name"),
        ({"tasks": {**TASKS, "a": {**TASKS["a"], "weight": 1e308}}}, "tasks.a.weight"),
        ({"modle": {}}, "modle"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(table: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_recipe({"tasks": TASKS, **table}, "r.toml")
    assert str(refused.value).startswith(f"r.toml: {key}")
    assert "Value error" not in str(refused.value)


@pytest.mark.parametrize("name", ["all", "macro", "", "a/b", "../a", "a.b", "x" * 65, "1st", "a b"])
def test_task_names_that_collide_or_escape_a_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="a task's name"):
        parse_recipe({"tasks": {name: TASKS["a"]}, "study": {"arms": ["joint"]}}, "r.toml")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a = " + b"[" * 5000, b"a" * 10 + b"\x00", b"[" + b"a." * 3000 + b"b]"]
)
def test_file_that_is_not_a_recipe_is_refused_by_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_recipe(path)
    assert str(refused.value).startswith(str(path))


def test_overrides_are_parsed_as_toml_or_text(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('\ufeff[tasks.a]\nsource = "builtin:math"\n', "utf-8")
    recipe = load_recipe(path, ["rl.lr=2e-5", "study.seeds=[3, 4]", "model.name=tiny", 'study.arms=["joint"]'])
    assert (recipe.rl.lr, recipe.study.seeds, recipe.model.name) == (2e-5, (3, 4), "tiny")
    for bad in ("rl.lr", "=3", "name.x=1"):
        with pytest.raises(UserError):
            load_recipe(path, ["name=word", bad])


def test_page_on_losses_has_the_presets(repo: Path) -> None:
    page = (repo / "docs" / "training.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| arXiv", page, re.M)
    table = {
        name: Preset(advantage, normaliser, float(low), float(high)) for name, advantage, normaliser, low, high in rows
    }
    assert table == PRESETS


@pytest.mark.parametrize("name", ["equal-budgets", "short-probes"])
def test_tasks_of_committed_studies_can_be_made(repo: Path, name: str) -> None:
    recipe = load_recipe(repo / "docs" / "studies" / name / "recipe.toml")
    assert {*make_tasks(recipe.tasks, recipe.data_root)} == {"math", "coding", "qa", "writing"}
