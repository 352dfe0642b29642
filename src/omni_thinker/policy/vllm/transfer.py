"""The way of weights to vLLM: a folder in memory that both sides see, and what is compared after loading."""

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.worker import bits

_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in it is made by tempfile
_COMPARED = 8
"""Tensors whose bits are compared, besides the largest."""


@contextmanager
def passage(chosen: str, least: int) -> Iterator[Path]:
    """A fresh folder that is gone afterwards: in `chosen`, else in memory where `least` bytes are free there.

    Raises UserError where there can be none."""
    where: str | None = chosen or None
    if where is None and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > least:
        where = str(_MEMORY)
    try:
        with tempfile.TemporaryDirectory(prefix="omni-weights-", dir=where) as folder:
            yield Path(folder)
    except OSError as exc:
        raise UserError(f"new weights can't pass through here: {exc}", file=where, key="engine.vllm.folder") from None


def shared_names(folder: Path, engine: Collection[str]) -> dict[str, int]:
    """Tensors of the files that an engine has under the same name, with how many numbers they are: the largest, and
    some evenly spread over the rest."""
    sizes: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            sizes |= {name: prod(tensors.get_slice(name).get_shape()) for name in set(tensors.keys()) & set(engine)}
    largest = sorted(sizes, key=lambda name: (sizes[name], name))[-1:]
    others = sorted(sizes.keys() - set(largest))
    return {name: sizes[name] for name in largest + others[:: max(1, len(others) // _COMPARED)]}


def file_sums(folder: Path, kinds: Mapping[str, str]) -> dict[str, int]:
    """`bits` of tensors in the files, each in the dtype that the engine has it in."""
    sums: dict[str, int] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in set(tensors.keys()) & kinds.keys():
                sums[name] = bits(tensors.get_tensor(name).to(getattr(torch, kinds[name])))
    return sums


def adapter_sum(folder: Path, kind: str, scale: float) -> int:
    """`bits` of an adapter's factors as vLLM holds them: in its own dtype, the second scaled."""
    dtype, total = getattr(torch, kind), 0
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            factor = tensors.get_tensor(name).to(dtype)
            total += bits(factor if "lora_A" in name or scale == 1 else factor * scale)
    return total
