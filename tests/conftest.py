"""What tests share: models, data and settings that make runs repeatable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from judge_server import JudgeServer
from omni_thinker.cli.app import main
from omni_thinker.models.builtin import builtin_folder, builtin_ready
from omni_thinker.models.tiny import make_tiny

REPO = Path(__file__).resolve().parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""One for each of several processes: two that wait for each other's second thread are slower than one."""
if THREADS == 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the commands that tests start
torch.set_num_threads(THREADS)
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer model and its tokenizer. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder)
    return folder


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone, so that nothing is found that other code put there."""
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def builtin_model() -> Path:
    """The built-in model's folder; skips where it isn't in the cache."""
    if not builtin_ready():
        pytest.skip("the built-in model is not in the cache; `make model` puts it there")
    return builtin_folder()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data sets that aren't part of the package: OMNI_THINKER_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("OMNI_THINKER_DATA") or REPO.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set OMNI_THINKER_DATA")
    return folder


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Calls a command that must refuse what it is given, leave all files alone and unpickle nothing; its line."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: object) -> str:
        before = _tree(tmp_path)
        monkeypatch.setattr(sys, "argv", ["omni-thinker", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert end.value.code == 2, err
        assert not out
        lines = [line for line in err.splitlines() if not line.startswith("[00:")]  # of progress
        assert len(lines) == 1, err
        assert lines[0].startswith("omni-thinker: ")
        assert len(lines[0]) < 1000
        assert _tree(tmp_path) == before
        return lines[0]

    yield call
    assert not list(tmp_path.rglob("unpickled"))


def _tree(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
        if path.name != "lock"
    }


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Calls the command in a folder of its own; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omni-thinker", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def serve() -> Iterator[Callable[..., JudgeServer]]:
    """Starts judge servers, and closes them in the end."""
    servers: list[JudgeServer] = []

    def start(*arguments: Any, **options: Any) -> JudgeServer:
        servers.append(JudgeServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
