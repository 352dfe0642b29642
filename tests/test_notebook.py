"""The notebook of the documentation, cell by cell."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest


def cells(repo: Path) -> list[str]:
    notebook = json.loads((repo / "docs" / "notebooks" / "study.ipynb").read_text("utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_python_without_outputs(repo: Path) -> None:
    notebook = json.loads((repo / "docs" / "notebooks" / "study.ipynb").read_text("utf-8"))
    assert not [cell for cell in notebook["cells"] if cell.get("outputs")], "outputs change with every machine"
    assert all(ast.parse(cell) for cell in cells(repo))


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo / "docs" / "notebooks")
    names: dict[str, Any] = {}
    for cell in cells(repo):
        *before, last = ast.parse(cell).body
        exec(compile(ast.Module(before, []), "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):  # what a notebook shows
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
            shown = getattr(value, "_repr_svg_", None) or getattr(value, "_repr_html_", None)
            assert shown() if shown is not None else str(value)
        else:
            exec(compile(ast.Module([last], []), "<cell>", "exec"), names)
    assert len(names["tables"]["arms"]) == 8, "start, four single-task arms, curriculum, joint, merge"
    assert names["figures"]["learning"].label
