"""docs/recipe.md has a table of every class of a recipe, and recipes/ has the schema that editors check recipes by.
`python tests/test_recipe_page.py` writes both."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from omni_thinker.packaged import SCHEMA
from omni_thinker.recipe.keys import classes, default, docstrings, schema, taken
from omni_thinker.recipe.schedulers import SchedulerSpec
from omni_thinker.recipe.types import Table

MARK = re.compile(r"<!-- keys of (\w+) -->\n(?:\n?\|[^\n]*\n)*")
PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
RECIPES = Path(__file__).parents[1] / "recipes"


def table_of(kind: type[Table]) -> str:
    """Its keys, what they take, their defaults and what their docstrings say, as Markdown."""
    inherited = [] if kind is SchedulerSpec else list(SchedulerSpec.model_fields)
    rows = []
    for key, field in kind.model_fields.items():
        if key in inherited and issubclass(kind, SchedulerSpec):
            continue
        meaning = docstrings(kind).get(key)
        assert meaning, f"{kind.__name__}.{key} has no docstring"
        cells = f"`{key}` | {taken(field.annotation, list(field.metadata))} | {default(field)} | {meaning}"
        rows.append(f"| {cells} |\n")
    return "\n| key | takes | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows) if rows else ""


def with_tables(text: str) -> str:
    return MARK.sub(lambda mark: f"<!-- keys of {mark[1]} -->\n{table_of(classes()[mark[1]])}", text)


def test_recipe_page_lists_every_key() -> None:
    page = PAGE.read_text("utf-8")
    assert {name for name, kind in classes().items() if table_of(kind)} == set(MARK.findall(page))
    assert page == with_tables(page), "run python tests/test_recipe_page.py"


@pytest.mark.parametrize(
    ("table", "key", "words"),
    [
        ("RlSpec", "group_size", "| whole number from 2 | `8` |"),
        ("RlSpec", "eps_low", "| number above 0 | none |"),
        ("RlSpec", "max_error_rate", "| number from 0 to 1 | `0.2` |"),
        ("WarmupSpec", "target", "| list of 2: number from 0 to 1 | `[0.2, 0.6]` |"),
        ("StudySpec", "confidence", "| number above 0.5, below 1 | `0.95` |"),
        ("StudySpec", "probe_share", "| number above 0, at most 1 | `0.13` |"),
        ("StudySpec", "bootstrap", "| whole number from 50 | `4000` |"),
        ("TaskSpec", "thinking", '| `auto`, `off` or whole number from 0 | `"auto"` |'),
        ("TaskSpec", "source", "| text | required |"),
        ("TaskSpec", "splits", "| table: list: text | `{ }` |"),
        ("Recipe", "tasks", "| table | required |"),
    ],
)
def test_a_key_is_listed_with_its_range_and_default(table: str, key: str, words: str) -> None:
    [row] = [row for row in table_of(classes()[table]).splitlines() if row.startswith(f"| `{key}` ")]
    assert words in row


def schema_text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def test_schema_beside_the_recipes_is_that_of_the_code() -> None:
    assert (RECIPES / SCHEMA).read_text("utf-8") == schema_text(), "run python tests/test_recipe_page.py"


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_begins_with_the_place_of_its_schema(recipe: Path) -> None:
    first, second = recipe.read_text("utf-8").splitlines()[:2]
    place = os.path.relpath(RECIPES / SCHEMA, recipe.parent)
    assert first == f"#:schema {'' if place.startswith('..') else './'}{place}"
    assert second.startswith("# "), "and with what it is for"


if __name__ == "__main__":
    (RECIPES / SCHEMA).write_text(schema_text(), "utf-8")
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
