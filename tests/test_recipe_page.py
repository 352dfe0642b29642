"""docs/recipe.md has a table of every class of a recipe. `python tests/test_recipe_page.py` writes them."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omni_thinker.recipe import Recipe
from omni_thinker.recipe.schedulers import KINDS, SchedulerSpec
from omni_thinker.recipe.types import MAX_INT, Table

MARK = re.compile(r"<!-- keys of (\w+) -->\n(?:\n?\|[^\n]*\n)*")
PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Table)


def classes() -> dict[str, type[Table]]:
    """Every class that a recipe is made of, and those of the schedulers."""
    known: dict[str, type[Table]] = {}
    waiting: list[Any] = [Recipe, *(KINDS.find(name, "kind") for name in KINDS.names)]
    while waiting:
        kind = waiting.pop(0)
        if _is_table(kind) and kind.__name__ not in known:
            known[kind.__name__] = kind
        waiting += [f.annotation for f in kind.model_fields.values()] if _is_table(kind) else get_args(kind)
    return known


def docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """What stands below each key of a class, as one line."""
    [node] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for key, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(key.target)] = " ".join(str(below.value.value).split())
    return found


def span(bounds: list[Any]) -> str:
    """The range of a number, by the narrowest of its bounds."""
    values = {key: [v for b in bounds if (v := getattr(b, key, None)) is not None] for key in ("gt", "ge", "lt", "le")}
    low = max(values["gt"] + values["ge"], default=None)
    high = min([*values["lt"], *(value for value in values["le"] if value != MAX_INT)], default=None)
    begin = "" if low is None else f"{'above' if low in values['gt'] else 'from'} {low:g}"
    if high is None or (low not in values["gt"] and high not in values["lt"]):
        return begin if high is None else f"{begin} to {high:g}"
    return f"{begin}, {'below' if high in values['lt'] else 'at most'} {high:g}"


def taken(kind: Any, bounds: list[Any]) -> str:
    """What a key takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    bounds = [bound for given in bounds for bound in (given.metadata if isinstance(given, FieldInfo) else [given])]
    if origin is Annotated:
        return taken(parts[0], [*bounds, *parts[1:]])
    if origin in (Union, UnionType):
        return " or ".join(taken(part, bounds) for part in parts if part is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return (
            f"list of {len(parts)}: {taken(parts[0], [])}" if Ellipsis not in parts else f"list: {taken(parts[0], [])}"
        )
    if origin is dict:
        return "table" if _is_table(parts[1]) or (inner := taken(parts[1], [])) == "table" else f"table: {inner}"
    return "table" if _is_table(kind) else " ".join(filter(None, (WORDS.get(kind, "anything"), span(bounds))))


def default(field: FieldInfo) -> str:
    """A key's default as the recipe would set it."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if value is None:
        return "required" if field.is_required() else "none"
    return "" if isinstance(value, Table) else f"`{json.dumps(value).replace('{}', '{ }')}`"


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


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
