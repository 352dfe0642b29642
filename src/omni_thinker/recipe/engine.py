"""The table `[engine]` of a recipe: who trains, and who draws the answers. Imports no torch."""

from typing import Literal

from omni_thinker.recipe.types import Table
from omni_thinker.recipe.vllm import VllmSpec


class EngineSpec(Table):
    """Which engines stand behind the policy `torch`."""

    trainer: Literal["auto", "torch"] = "auto"
    """Who computes gradients and updates. `torch`: this process."""
    sampler: Literal["auto", "torch", "vllm"] = "auto"
    """Who draws answers. `torch`: the decoders of this package, in the trainer's own process. `vllm`: vLLM, which gets
    the weights after every update; docs/engines-vllm.md."""
    vllm: VllmSpec = VllmSpec()
    """How vLLM draws."""
