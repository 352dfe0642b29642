"""Single-task LoRA adapters as experts: what they add to the weights."""

import json
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from omni_thinker.baselines.tensors import Shapes
from omni_thinker.errors import UserError

_PREFIX = "base_model.model."
_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base weights as they are: the others move a part of it into the factors."""


class Adapter:
    """An expert that changed weights by (alpha / rank) up @ down (arXiv 2106.09685): a folder as peft writes it.

    Raises UserError where it is of a kind that isn't a plain sum."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._factors = _factors(folder)

    def check(self, start: Path, shapes: Shapes) -> None:
        if unknown := set(self._factors) - set(shapes):
            raise UserError(f"adapts {min(unknown)!r}, which {start} doesn't have", file=self.path)
        for name, (up, down, _) in self._factors.items():
            fits = up.dim() == down.dim() == 2 and up.shape[1] == down.shape[0]
            if not fits or [up.shape[0], down.shape[1]] != list(shapes[name]):
                raise UserError(f"has another shape than {start} at {name!r}", file=self.path)

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        if name not in self._factors:
            return None
        up, down, share = self._factors[name]
        return share * (up.float() @ down.float())


def _factors(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """Name of the weight -> (up, down, alpha / rank)."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        factors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, RecursionError, SafetensorError) as exc:
        raise UserError(f"not a LoRA adapter: {exc}", file=folder) from None
    if not isinstance(config, dict) or config.get("peft_type", "LORA") != "LORA":
        raise UserError("is an adapter of another kind, not LoRA", file=folder)
    kinds = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
    odd = any(config.get(kind) for kind in kinds) or config.get("bias", "none") != "none"
    if odd or config.get("init_lora_weights", True) not in _INITS:
        raise UserError("only plain LoRA adapters can be added up", file=folder)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise UserError("its r must be a rank and its lora_alpha a number", file=folder / "adapter_config.json")
    share = alpha / rank
    updates = {}
    for name, down in factors.items():
        module = name.removesuffix(".lora_A.weight")
        if module != name and module + ".lora_B.weight" in factors:
            updates[module.removeprefix(_PREFIX) + ".weight"] = factors[module + ".lora_B.weight"], down, share
        elif not name.endswith(".lora_B.weight"):
            raise UserError(f"{name!r} isn't a factor of a linear layer, so it can't be added up", file=folder)
    if 2 * len(updates) != len(factors) or not updates:
        raise UserError("has no factors, or a factor without its other half", file=folder)
    return updates


def unmergeable(adapted: torch.nn.Module) -> str | None:
    """The first layer with an adapter that is no plain linear one, of a model that peft wrapped."""
    for name, module in adapted.named_modules():
        base = getattr(module, "base_layer", None)
        if base is not None and (type(base) is not torch.nn.Linear or name.endswith("lm_head")):
            return str(name).removeprefix(_PREFIX)
    return None
