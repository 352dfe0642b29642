"""The table `[engine]` of a recipe: who trains, and who draws the answers. Imports no torch."""

from typing import Literal

from omni_thinker.recipe.engines.fsdp import FsdpSpec
from omni_thinker.recipe.engines.tinker import PREFIX, TinkerSpec
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.recipe.models import ModelSpec
from omni_thinker.recipe.types import Table


class EngineSpec(Table):
    """Which engines stand behind the policy `torch`."""

    trainer: Literal["auto", "torch", "fsdp", "tinker"] = "auto"
    """Who computes gradients and updates. `torch`: this process. `fsdp`: several processes, each with a share of the
    weights. `tinker`: a training service, which samples too. `auto`: the service for models called `tinker:NAME`,
    `fsdp` where torchrun started several processes, else `torch` (docs/engines.md)."""
    sampler: Literal["auto", "torch", "vllm"] = "auto"
    """Who draws answers. `torch`: the decoders of this package, in the trainer's own processes. `vllm`: vLLM, which
    gets the weights of now before it draws. `auto`: the service where it trains, else `torch`."""
    fsdp: FsdpSpec = FsdpSpec()
    """Settings of the trainer `fsdp`."""
    tinker: TinkerSpec = TinkerSpec()
    """The training service."""
    vllm: VllmSpec = VllmSpec()
    """How vLLM draws."""


def is_remote(model: ModelSpec, engine: EngineSpec) -> bool:
    """Whether a model is trained and sampled by a training service."""
    return engine.trainer == "tinker" or (engine.trainer == "auto" and model.name.startswith(PREFIX))
