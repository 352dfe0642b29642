"""What a recipe may say, as editors and people are told."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from omni_thinker.recipe.keys import all_keys, schema


@pytest.fixture(scope="module")
def checks() -> Any:
    whole = schema()
    jsonschema.Draft202012Validator.check_schema(whole)
    return jsonschema.Draft202012Validator(whole)


def test_every_recipe_of_the_project_fits_the_schema(repo: Path, checks: Any) -> None:
    recipes = sorted((repo / "recipes").rglob("*.toml"))
    assert recipes
    for path in recipes:
        faults = [fault.message for fault in checks.iter_errors(tomllib.loads(path.read_text("utf-8")))]
        assert not faults, path


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("nonsense = 1", "nonsense"),
        ("[rl]\ngroup_size = 1", "minimum"),
        ('[rl]\nloss = "ppo"', "ppo"),
        ("[study.schedulers.mine]\nkind = 'sec'\nnonsense = 2", "mine"),
        ("[study.schedulers.mine]\ntau = 2", "mine"),
    ],
)
def test_what_a_recipe_may_not_say_does_not_fit(checks: Any, text: str, word: str) -> None:
    table = {"tasks": {"math": {"source": "builtin:math"}}, **tomllib.loads(text)}
    faults = list(checks.iter_errors(table))
    assert faults
    assert word in json.dumps([[*map(str, fault.absolute_path), fault.message, fault.validator] for fault in faults])


def test_the_schema_says_what_keys_mean() -> None:
    whole = schema()
    assert whole["$defs"]["RlSpec"]["properties"]["group_size"]["description"] == "Answers to each problem."
    assert all("description" in table for table in whole["properties"].values())


def test_every_key_is_explained_once_and_in_full() -> None:
    keys = list(all_keys())
    paths = [key.path for key in keys]
    assert {"rl.group_size", "tasks.NAME.reward.gate", "judge.endpoint.budget.money", "study.schedulers.NAME.rate"} <= {
        *paths
    }
    assert all(key.meaning and key.takes for key in keys)


def test_explain_shows_values_and_where_they_come_from(repo: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    recipe = repo / "recipes" / "tiny.toml"
    code, out, _ = run("recipe", "explain", recipe, "--set", "rl.kl_beta=0.1", "--json")
    assert code == 0
    rows = {row["key"]: row for row in json.loads(out.splitlines()[-1])["keys"]}
    assert (rows["rl.group_size"]["value"], rows["rl.group_size"]["source"]) == (4, "recipe")
    assert (rows["rl.kl_beta"]["value"], rows["rl.kl_beta"]["source"]) == (0.1, "recipe")
    assert rows["rl.temperature"]["source"] == "default"
    assert rows["tasks.math.max_tokens"]["value"] == 8
    assert "tasks.NAME.max_tokens" not in rows
    code, _, err = run("recipe", "explain", "--key", "nonsense")
    assert code == 2
    assert err.startswith("omni-thinker: --key: no key contains 'nonsense'")
    code, out, _ = run("recipe", "schema")
    assert json.loads(out) == schema()
