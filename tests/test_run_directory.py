"""docs/run-directory.md has a table of every class of the schema. `python tests/test_run_directory.py` writes them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from omni_thinker.runs.schema import atlas, base, logs, plan, result, transfer

MARK = re.compile(r"<!-- keys of (\w+) -->\n(?:\n?\|[^\n]*\n)*")


def _classes() -> dict[str, Any]:
    """Every class of the schema that is written as a table."""
    modules: tuple[ModuleType, ...] = (base, logs, plan, result, transfer, atlas)
    members = {name: kind for module in modules for name, kind in inspect.getmembers(module, inspect.isclass)}
    return {name: kind for name, kind in members.items() if hasattr(kind, "__pydantic_fields__")}


def table_of(kind: Any) -> str:
    """Its keys and what their docstrings say, as Markdown."""
    rows = []
    for key in kind.__pydantic_fields__:
        said = [line.__pydantic_fields__[key].description for line in kind.__mro__ if key in _fields(line)]
        meaning = next((text for text in said if text), None)
        assert meaning, f"{kind.__name__}.{key} has no docstring"
        rows.append(f"| `{key}` | {' '.join(meaning.split())} |\n")
    return "\n| key | meaning |\n| --- | --- |\n" + "".join(rows)


def _fields(kind: Any) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(kind, "__pydantic_fields__", {})
    return fields


def with_tables(text: str) -> str:
    classes = _classes()
    return MARK.sub(lambda mark: f"<!-- keys of {mark[1]} -->\n{table_of(classes[mark[1]])}", text)


def test_run_directory_page_lists_every_key_of_the_schema(repo: Path) -> None:
    page = (repo / "docs" / "run-directory.md").read_text("utf-8")
    classes = _classes()
    marked = [classes[name] for name in MARK.findall(page)]
    documented = {parent.__name__ for kind in marked for parent in kind.__mro__}
    assert set(classes) <= documented
    assert page == with_tables(page), "run python tests/test_run_directory.py"


@pytest.mark.parametrize("name", _classes())
def test_every_key_of_the_schema_is_explained_in_a_sentence(name: str) -> None:
    for row in table_of(_classes()[name]).splitlines()[3:]:
        meaning = row.split("|")[2].strip()
        assert meaning.endswith(".")
        assert ";" not in meaning


if __name__ == "__main__":
    file = Path(__file__).parents[1] / "docs" / "run-directory.md"
    file.write_text(with_tables(file.read_text("utf-8")), "utf-8")
