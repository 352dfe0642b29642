"""Merging of model folders: what must be alike in start and experts, and what the merged folder holds."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from omni_thinker.baselines.adapters import CONFIG, Adapter
from omni_thinker.baselines.merge import Expert, Rounding, Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import INDEX, SINGLE
from omni_thinker.errors import UserError
from omni_thinker.models.companions import copy_companions
from omni_thinker.models.load import settings

_FREE = """_name_or_path architectures dtype torch_dtype transformers_version use_cache initializer_range id2label
label2id bos_token_id eos_token_id pad_token_id pretraining_tp router_aux_loss_coef output_router_logits auto_map
return_dict output_attentions output_hidden_states problem_type chunk_size_feed_forward quantization_config"""
"""Keys of a config that don't change what the weights compute, as those of dropout don't."""


def merge_folders(
    start: Path, experts: Sequence[Path], rule: MergeRule, out: Path, dtype: torch.dtype | None = None
) -> Rounding:
    """Write the folder `out`: the merged weights, in the types of the start or all in `dtype`, and what else lies in
    the start's folder. `experts`: folders of whole models, or of adapters.

    Raises UserError where an expert can't be added up, and OSError where nothing can be written."""
    if settings(start).get("quantization_config"):
        raise UserError("has quantised weights; merge with the model that it was made of", file=start)
    found = [_expert(start, folder) for folder in experts]
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        rounding = merge(start, found, rule, partial, dtype)
        copy_companions(start, partial, but={"README.md"})  # the start's card, which doesn't say what this is
        if not (start / SINGLE).exists():
            shutil.copyfile(start / INDEX, partial / INDEX)
        if dtype is not None:
            _note_dtype(partial / "config.json", str(dtype).removeprefix("torch."))
        partial.chmod(0o777 & ~_umask())
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rounding


def _expert(start: Path, folder: Path) -> Expert:
    is_adapter, is_model = (folder / CONFIG).exists(), (folder / "config.json").exists()
    if is_adapter and is_model and any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise UserError(f"holds a model and an adapter; leave one of them, or {CONFIG} out", file=folder)
    if is_adapter:
        return Adapter(folder, str(start))
    if is_model:
        _check_alike(start, folder)
    return Weights(folder)


def _check_alike(start: Path, expert: Path) -> None:
    """Raises UserError where weights of the two mean different things."""
    ours, theirs = (_flat(settings(folder)) for folder in (start, expert))
    known = set(_FREE.split())
    for key in sorted(ours.keys() | theirs.keys()):
        free = any(part in known or "drop" in part for part in key.split("."))
        if not free and ours.get(key) != theirs.get(key):
            said = f"{key} is {_short(theirs.get(key))}, and {_short(ours.get(key))} in {start}"
            raise UserError(f"{said}: these weights can't be added up", file=expert / "config.json")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def _note_dtype(config: Path, dtype: str) -> None:
    table = json.loads(config.read_text("utf-8"))
    table["dtype"] = dtype
    table.pop("torch_dtype", None)
    config.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
