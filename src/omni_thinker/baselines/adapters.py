"""Merging of single-task LoRA adapters: what they add to the weights, added up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from omni_thinker.errors import UserError

_PREFIX = "base_model.model."


def adapter_arithmetic(start: Path, adapters: Sequence[Path], scale: float, out: Path) -> None:
    """out = start + scale x sum of (alpha / rank) up @ down over `adapters` (arXiv 2106.09685, 2212.04089), in fp32.

    `start` is a safetensors file of whole weights, `adapters` are folders as peft writes them. Raises UserError where
    an adapter is of a kind that isn't a plain sum, or belongs to another model.
    """
    changes = [_changes(folder) for folder in adapters]
    merged = {}
    with safe_open(start, framework="pt") as tensors:
        names = set(tensors.keys())
        for folder, own in zip(adapters, changes, strict=True):
            if unknown := set(own) - names:
                raise UserError(f"adapts {min(unknown)!r}, which {start} doesn't have", file=folder)
        for name in sorted(names):
            weight = tensors.get_tensor(name)
            whole = weight.float()
            for own in changes:
                if name in own:
                    up, down, share = own[name]
                    if (up.shape[0], down.shape[1]) != tuple(whole.shape):
                        raise UserError(f"has another shape than {start} at {name!r}", file=adapters[0].parent)
                    whole = whole + scale * share * (up.float() @ down.float())
            merged[name] = whole.to(weight.dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(merged, out)


def _changes(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Name of the weight -> (up, down, alpha / rank)."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        factors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as exc:
        raise UserError(f"not a LoRA adapter: {exc}", file=folder) from None
    kinds = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
    if any(config.get(kind) for kind in kinds) or config.get("bias", "none") != "none":
        raise UserError("only plain LoRA adapters can be added up", file=folder)
    share = config["lora_alpha"] / config["r"]
    found = {}
    for name, down in factors.items():
        module = name.removesuffix(".lora_A.weight")
        if module != name and module + ".lora_B.weight" in factors:
            found[module.removeprefix(_PREFIX) + ".weight"] = factors[module + ".lora_B.weight"], down, share
        elif not name.endswith(".lora_B.weight"):
            raise UserError(f"{name!r} is no factor of a linear layer: it can't be added up", file=folder)
    return found


def unmergeable(adapted: torch.nn.Module) -> str | None:
    """The first layer with an adapter that is no plain linear one, of a model that peft wrapped."""
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", None)
        if base is not None and (type(base) is not torch.nn.Linear or name.endswith("lm_head")):
            return str(name).removeprefix(_PREFIX)
    return None
