"""The table `[engine]` of a recipe: who trains, and who draws the answers. Imports no torch."""

from typing import Literal

from omni_thinker.recipe.fsdp import FsdpSpec
from omni_thinker.recipe.types import Table


class EngineSpec(Table):
    """Which engines stand behind the policy `torch`."""

    trainer: Literal["auto", "torch", "fsdp"] = "auto"
    """Who computes gradients and updates. `torch`: this process. `fsdp`: several processes, each with a share of the
    weights. `auto`: `fsdp` where torchrun started several, else `torch`."""
    sampler: Literal["auto", "torch"] = "auto"
    """Who draws answers. `torch`: the decoders of this package, in the trainer's own process."""
    fsdp: FsdpSpec = FsdpSpec()
    """Settings of the trainer `fsdp`."""
