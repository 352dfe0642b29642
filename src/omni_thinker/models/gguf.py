"""GGUF files as folders: weights out of their quantisation into safetensors, which can be trained and saved."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.models.home import MANIFEST, home, publish_folder

_RECIPE = 1
"""Raise it when the conversion changes: what older versions cached is then left alone."""
_PROBE = "What is 12 + 30? The answer is"

Say = Callable[[str], object]


def gguf_folder(gguf: Path, *, say: Say = print) -> Path:
    """The folder in the cache with the model of a GGUF file, made where it is missing.

    Raises UserError for a file that transformers can't read."""
    facts = gguf.stat()
    digest = _checksum(gguf.resolve(), facts.st_size, facts.st_mtime_ns)
    target = home() / "models" / f"gguf-{digest[:16]}-{_RECIPE}"

    def make(folder: Path) -> None:
        say(f"converting {gguf} to safetensors (once) ...")
        convert(gguf, folder)
        manifest = {"name": gguf.stem, "source": f"GGUF file {gguf.name}", "sha256": digest, "recipe": _RECIPE}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")

    return publish_folder(target, make, lambda folder: (folder / MANIFEST).is_file(), force=False)


def convert(gguf: Path, folder: Path, *, mend: Callable[[Any], None] | None = None, probe: str = _PROBE) -> None:
    """Write a GGUF file as a Hugging Face folder, fp32. `mend` changes its tokenizer.

    Raises UserError where it can't be read, and where the folder answers `probe` otherwise than the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from omni_thinker.models.quiet import quiet

    options: Any = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
            source = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options).eval()
        except Exception as exc:
            why = next(iter(str(exc).strip().splitlines()), "") or type(exc).__name__
            raise UserError(f"isn't a GGUF file that transformers reads: {why:.200}", file=gguf) from exc
        if mend is not None:
            mend(tokenizer)
        tokenizer.save_pretrained(folder)
        _savable_copy(source).save_pretrained(folder, max_shard_size="4GB")
        saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        ids = torch.tensor([AutoTokenizer.from_pretrained(folder, local_files_only=True)(probe)["input_ids"]])
        with torch.inference_mode():
            apart = (source(ids).logits - saved(ids).logits).abs().max().item()
    if not apart < 1e-4:
        raise UserError(f"the answers of the converted model differ from its source (logits by {apart:g})", file=gguf)


def _savable_copy(source: Any) -> Any:
    """A model loaded from GGUF refuses save_pretrained, so its weights move to a fresh one."""
    settings = {k: v for k, v in source.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    model = type(source)(type(source.config)(**settings))
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config
    return model


@lru_cache(maxsize=8)
def _checksum(gguf: Path, _size: int, _changed_ns: int) -> str:
    """sha256 of a file, computed again where its size or time has changed."""
    with gguf.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
