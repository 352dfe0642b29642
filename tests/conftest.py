"""What tests share: models, data and settings that make runs repeatable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from omni_thinker.models.builtin import builtin_folder, builtin_ready
from omni_thinker.models.tiny import make_tiny

REPO = Path(__file__).resolve().parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(2)
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
