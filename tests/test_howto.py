"""The pages of docs/how-to do what they say: each example, taken from its page, runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = ("task", "turns", "reward", "scheduler", "policy")


def blocks(page: Path) -> tuple[str, str, str]:
    """The name of the page's file, its code, and its recipe."""
    text = page.read_text("utf-8")
    name = re.search(r"^`(\w+\.py)`:$", text, re.M)
    code, recipe = (re.findall(rf"```{kind}\n(.*?)```", text, re.S) for kind in ("python", "toml"))
    assert name is not None
    assert (len(code), len(recipe)) == (1, 1)
    return name[1], code[0], recipe[0]


def command(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "omni_thinker", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_example_of_a_how_to_page_runs_as_printed(repo: Path, tmp_path: Path, page: str) -> None:
    name, code, recipe = blocks(repo / "docs" / "how-to" / f"{page}.md")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 25, "each page's example is under 25 lines"
    (tmp_path / name).write_text(code, "utf-8")
    (tmp_path / "mine.toml").write_text(recipe, "utf-8")
    command(tmp_path, "study", "mine.toml", "--dry-run")
    if page == "reward":
        rows = [{"id": 1, "response": "no digits"}, {"id": 2, "response": "12"}]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        command(tmp_path, "score", "--reward", "python:my_reward:NoDigits", "--in", "rows.jsonl", "--out", "out.jsonl")
        scores = [json.loads(line)["value"] for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
        assert scores == [1.0, pytest.approx(0.8)]
    if page == "task":
        assert "backwards" in command(tmp_path, "tasks", "show", "mine.toml:reversed", "--count", "2")
        command(tmp_path, "tasks", "validate", "mine.toml")
    if page in ("scheduler", "policy"):
        result = json.loads(command(tmp_path, "study", "mine.toml", "--out", "run", "--json").splitlines()[-1])
        assert set(result["arms"]) >= {"start", "joint"}
    if page == "policy":
        assert (tmp_path / "lengths.txt").read_text("utf-8").splitlines()


def test_index_of_the_how_to_pages_lists_every_page(repo: Path) -> None:
    index = (repo / "docs" / "how-to" / "README.md").read_text("utf-8")
    assert {path.stem for path in (repo / "docs" / "how-to").glob("*.md")} == {"README", *PAGES}
    assert all(f"({page}.md)" in index for page in PAGES)
