"""The wheel: what is in it, and that it works by itself, without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from omni_thinker.packaged import SCHEMA, packaged

if find_spec("hatchling") is None:
    pytest.skip("needs hatchling, which the extra dev has", allow_module_level=True)
PYTHONS = [sys.executable, *filter(None, os.environ.get("OMNI_THINKER_PYTHONS", "").split(os.pathsep))]
"""Interpreters to install the wheel for; others than this one are asked for, since each draws its own torch."""


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=repo, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    [path] = out.glob("omni_thinker-*.whl")
    return path


def test_wheel_has_the_modules_sources_in_c_and_recipes(wheel: Path, repo: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = repo / "src"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {str(path.relative_to(source)) for path in files} <= inside
    assert {f"omni_thinker/recipes/{name}.toml" for name in packaged()} <= inside
    assert f"omni_thinker/recipes/{SCHEMA}" in inside
    others = {name for name in inside if not name.startswith(("omni_thinker/", "omni_thinker-"))}
    assert not others, "tests, data and caches stay out"


def test_unpacked_wheel_checks_a_packaged_recipe_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "here").mkdir()

    def command(*arguments: str) -> str:
        code = "import omni_thinker.cli.app as app; print(app.__file__); app.main()"
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=tmp_path / "here", env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        place, _, said = done.stdout.partition("\n")
        assert Path(place).is_relative_to(tmp_path / "site")
        return said

    assert "quickstart" in command("recipe", "list")
    assert command("recipe", "show", "quickstart").startswith("#:schema")
    assert "test: math 8, coding 8, qa 8, writing 8" in command("study", "tiny", "--dry-run")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.extras
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).name)
def test_installed_wheel_runs_packaged_recipes_in_a_fresh_environment(
    python: str, wheel: Path, repo: Path, tmp_path: Path
) -> None:
    """Only pip and the wheel. torch goes first, since any other way draws gigabytes for GPUs."""
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    run = tmp_path / "venv" / "bin"
    pins = (repo / "constraints.txt").read_text("utf-8").splitlines()
    [torch] = [pin for pin in pins if pin.startswith("torch==")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for wanted in (torch, str(wheel)):
        command = [str(run / "python"), "-m", "pip", "--disable-pip-version-check", "-q", "install", wanted]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    small = ["--set", "study.steps=4", "--set", "warmup.steps=2", "--set", "evaluation.test_problems=4"]
    small += ["--set", "evaluation.validation_problems=4", "--set", "study.bootstrap=50"]
    small += ["--set", 'study.arms=["start","joint","curriculum"]']
    for recipe in ("tiny", *(["quickstart"] if python == sys.executable else [])):
        done = subprocess.run(
            [str(run / "omni-thinker"), "study", recipe, "--out", recipe, *small],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / recipe / "report.html").exists()
