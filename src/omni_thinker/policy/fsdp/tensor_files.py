"""safetensors files written and read a tensor at a time, so that no process holds a whole model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
FILE_BYTES = 5 * 10**9
"""Most bytes of tensors in one file of a Hugging Face folder, unless one tensor is larger."""
Tensors = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Form:
    """What a tensor is, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(path: Path, forms: Mapping[str, Form], tensors: Tensors) -> None:
    """One file. `tensors` come in the order of `forms`, and each is let go of before the next one is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        _write(stream, forms, tensors)


def write_model(folder: Path, forms: Mapping[str, Form], tensors: Tensors, *, file_bytes: int = FILE_BYTES) -> None:
    """The weights of a Hugging Face folder: one file, or several and their index."""
    parts = _parts(forms, file_bytes)
    names = ["model.safetensors"]
    if len(parts) > 1:
        names = [f"model-{n + 1:05d}-of-{len(parts):05d}.safetensors" for n in range(len(parts))]
        (folder / "model.safetensors").unlink(missing_ok=True)
        index = {
            "metadata": {"total_size": sum(form.bytes for form in forms.values())},
            "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    for name, part in zip(names, parts, strict=True):
        write_tensors(folder / name, part, islice(tensors, len(part)))


def _parts(forms: Mapping[str, Form], file_bytes: int) -> list[dict[str, Form]]:
    parts: list[dict[str, Form]] = [{}]
    size = 0
    for name, form in forms.items():
        if parts[-1] and size + form.bytes > file_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = form
        size += form.bytes
    return parts


def _write(stream: BinaryIO, forms: Mapping[str, Form], tensors: Tensors) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, form in forms.items():
        header[name] = {
            "dtype": _NAMES[form.dtype], "shape": list(form.shape), "data_offsets": [at, at + form.bytes]
        }  # fmt: skip
        at += form.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in forms:
        found, tensor = next(tensors)
        if found != name or Form(tensor.dtype, tuple(tensor.shape)) != forms[name]:
            raise ValueError(f"{found!r} is {tensor.dtype} {tuple(tensor.shape)} where {name!r} was to come")
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tofile(stream)
