"""What was proved, by checksum: a model that was tried once isn't tried again."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from omni_thinker.models.home import home
from omni_thinker.policy.proof.prove import Paths

_SAMPLED = 16
"""Numbers of each weight that its checksum is made of."""
_ROOMS = ("engine", "sampling", "policy")


def identity(model: PreTrainedModel, options: Sequence[object]) -> str:
    """A checksum of all that a proof depends on: configuration, weights (some numbers of each), versions of the
    libraries and of the code here, dtype and device, and `options`."""
    digest = hashlib.sha256()
    config = {
        key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "name_or_path")
    }
    adapters = [
        vars(adapter) | {"base_model_name_or_path": ""} for adapter in getattr(model, "peft_config", {}).values()
    ]
    about = [
        type(model).__name__,
        config,
        model.config._attn_implementation,
        adapters,
        str(model.device.type),
        *options,
    ]
    versions = [torch.__version__, transformers.__version__, _own_code(), torch.get_num_threads()]
    digest.update(json.dumps([about, versions], default=_plain, sort_keys=True).encode())
    for name, param in model.named_parameters():
        digest.update(f"{name} {tuple(param.shape)} {param.dtype}".encode())
        if "lora_" not in name:  # drawn by a run's seed
            flat = param.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def recall(key: str) -> Paths | None:
    """What was proved under a checksum; None where nothing was, or it can't be read."""
    try:
        row: Any = json.loads(_file(key).read_text("utf-8"))
        return Paths(row["layout"], row["decoder"], bool(row["recompute"]), tuple(map(str, row["notes"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(key: str, paths: Paths) -> None:
    """Write it into the cache folder, where that can be written."""
    file = _file(key)
    scratch = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(asdict(paths)) + "\n", "utf-8")
        scratch.replace(file)
    except OSError:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _file(key: str) -> Path:
    return home() / "proofs" / f"{key}.json"


@cache
def _own_code() -> str:
    """A checksum of the code that a proof is about."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*")):
            if file.suffix in (".py", ".c", ".h"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _plain(value: object) -> object:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
