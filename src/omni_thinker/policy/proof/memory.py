"""What was proved, by checksum: a model that was tried once isn't tried again."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from omni_thinker.models.home import home
from omni_thinker.policy.proof.prove import Paths

_SAMPLED = 16
"""Numbers of each weight that are part of its checksum as they are, besides the sum of all."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_ROOMS = ("engine", "sampling", "policy")


def identity(model: PreTrainedModel, options: Sequence[object]) -> str:
    """A checksum of all that a proof depends on: configuration, weights and buffers, versions of the libraries and of
    the code here, dtype and device, and `options`."""
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
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if "lora_" not in name:  # drawn by a run's seed
            flat = tensor.detach().reshape(-1)
            digest.update(flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED].float().cpu().numpy().tobytes())
            digest.update(f"{_sum(flat)}".encode())
    return digest.hexdigest()[:32]


def _sum(flat: torch.Tensor) -> int:
    """Of the bits of all numbers, read as integers: a small change isn't rounded away, and one to NaN neither."""
    eights = flat.nbytes % 8 == 0 and flat.storage_offset() * flat.itemsize % 8 == 0
    kind = torch.int64 if eights else _BITS.get(flat.itemsize)
    return 0 if kind is None else int(flat.view(kind).sum(dtype=torch.int64))


def recall(key: str) -> Paths | None:
    """What was proved under a checksum; None where nothing was, or it can't be read."""
    try:
        row: Any = json.loads(_file(key).read_text("utf-8"))
        return Paths(row["layout"], row["decoder"], bool(row["recompute"]), tuple(map(str, row["notes"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
