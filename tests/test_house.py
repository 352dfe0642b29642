"""Rules of the house that no linter checks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from omni_thinker import __version__
from omni_thinker.recipe import load_recipe

MAX_LINES, MAX_FUNCTION_LINES, MAX_MODULES = 450, 60, 15
COMMAND = Path(sys.executable).with_name("omni-thinker")


def test_no_source_file_is_too_long(repo: Path) -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (repo / "src").rglob("*.py")}
    assert lengths
    assert not {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_no_function_is_too_long(repo: Path) -> None:
    long = {
        f"{path}:{node.name}"
        for path in (repo / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert not long


def test_no_folder_has_too_many_modules(repo: Path) -> None:
    rooms = Counter(path.parent for path in (repo / "src").rglob("*.py") if path.name != "__init__.py")
    assert not {str(room): count for room, count in rooms.items() if count > MAX_MODULES}


def test_every_module_begins_with_a_docstring(repo: Path) -> None:
    silent = [p for p in (repo / "src").rglob("*.py") if not p.read_text("utf-8").lstrip().startswith(('"""', 'r"""'))]
    assert not silent


def test_every_recipe_parses(repo: Path) -> None:
    recipes = sorted((repo / "recipes").rglob("*.toml"))
    assert recipes
    for path in recipes:
        assert load_recipe(path).tasks


def test_every_pin_is_exact_and_torch_is_pinned(repo: Path) -> None:
    lines = (repo / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and " " not in line for line in pins)
    assert any(line.startswith("torch==") for line in pins)
    # The CUDA packages are gigabytes that a machine without a GPU has no use for.
    assert not any(line.startswith(("nvidia", "triton")) for line in pins)


APART = {"verifiers", "trackio", "wandb", "mlflow", "lm-eval"}
"""Extras that ask for other versions than our tests' own; the Makefile pins them in environments by themselves."""


def test_every_dependency_is_pinned(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {_plain(need) for group in groups for need in group} - {"omni-thinker"} - APART
    pinned = {_plain(line) for line in (repo / "constraints.txt").read_text("utf-8").splitlines() if "==" in line}
    assert wanted <= pinned
    makefile = (repo / "Makefile").read_text("utf-8")
    assert all(f" {name}==" in makefile for name in APART)


def _plain(requirement: str) -> str:
    name = requirement
    for mark in "=<>![;~ ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("arguments", [["--help"], ["study", "--help"], ["model", "--help"]])
def test_help_of_commands_does_not_import_torch(arguments: list[str]) -> None:
    if not COMMAND.exists():
        pytest.skip("the package is not installed in this environment")
    code = (
        "import sys\nfrom omni_thinker.cli.app import main\n"
        f"sys.argv = ['omni-thinker', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stdout.rstrip().endswith("False"), "--help should not import torch"


def test_installed_command_prints_help() -> None:
    if not COMMAND.exists():
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "study" in done.stdout


def test_version_is_numbers_and_dots() -> None:
    assert all(part.isdigit() for part in __version__.split("."))


def test_every_row_of_the_security_page_names_existing_tests(repo: Path) -> None:
    known = set(re.findall(r"def (test_\w+)", "\n".join(path.read_text("utf-8") for path in repo.glob("tests/*.py"))))
    page = (repo / "docs" / "security.md").read_text("utf-8")
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and "---" not in line and "| guard |" not in line
    ]
    assert len(rows) >= 20
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, f"no test: {row}"
        assert named <= known, f"no such test: {named - known}"


def test_source_uses_no_shell_and_no_pickle(repo: Path) -> None:
    sources = {path: path.read_text("utf-8") for path in (repo / "src").rglob("*.py")}
    unsafe = (
        r"shell=True|os\.system\(|\bimport pickle|torch\.load\(|trust_remote_code\W+True|allow_pickle=True|yaml\.load"
    )
    assert not [str(path) for path, text in sources.items() if re.search(unsafe, text)]
