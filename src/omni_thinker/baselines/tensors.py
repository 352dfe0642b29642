"""The tensors of a model, read one at a time, from one safetensors file or from a folder of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from omni_thinker.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

Shapes = Mapping[str, Sequence[int]]


class Tensors:
    """Knows names and shapes, and opens a file anew for each tensor: what an open file has shown stays mapped, and
    counts as memory of this process.

    Raises UserError where the path holds no readable safetensors, or an index names files elsewhere."""

    def __init__(self, path: Path) -> None:
        """`path`: a file, or a folder as Hugging Face's libraries write it, in one piece or in shards."""
        self.path = path
        self.files = _files(path)
        self._at: dict[str, Path] = {}
        shapes: dict[str, list[int]] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - no mapping
                        if name in self._at:
                            raise UserError(f"{name!r} is in {self._at[name].name} too", file=file)
                        self._at[name] = file
                        shapes[name] = list(tensors.get_slice(name).get_shape())
            except (SafetensorError, OSError) as exc:
                raise UserError(f"isn't a safetensors file: {exc}", file=file) from None
        self.shapes: Shapes = shapes

    def names(self, file: Path) -> list[str]:
        """The names of the tensors in one of `files`."""
        return sorted(name for name, home in self._at.items() if home == file)

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._at[name], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if (path / SINGLE).exists():  # read first by transformers too: an index beside it is of an older save
        return [path / SINGLE]
    if not index.exists():
        raise UserError(f"has neither {SINGLE} nor {INDEX}", file=path)
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        safe = all(name == Path(name).name and name.endswith(".safetensors") for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise UserError(f"isn't an index of shards: {exc}", file=index) from None
    if not names or not safe:
        raise UserError("names no shards, or names files outside its folder", file=index)
    return [path / name for name in sorted(names)]
