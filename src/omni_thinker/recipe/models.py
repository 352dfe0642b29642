"""The tables `[model]` and `[model.lora]` of a recipe. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from omni_thinker.recipe.types import Positive, Table


class LoraSpec(Table):
    """Train low-rank factors instead of all weights (arXiv 2106.09685)."""

    rank: Annotated[int, Field(gt=0, le=4096, strict=True)] = 16
    alpha: Positive = 32
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class ModelSpec(Table):
    """`name`: `builtin`, `tiny` (random, for tests), a Hugging Face folder, a GGUF file, or a hub name."""

    name: str = "builtin"
    policy: Annotated[str, Field(pattern=r"^(torch|python:.+)$")] = "torch"
    """Who trains it: ours, or `python:MODULE:CLASS` with the methods of `omni_thinker.protocol.Policy`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where torch finds one."""
    system: str = ""
    lora: LoraSpec | None = None
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them (arXiv 1604.06174): a third more
    work for a fraction of the memory."""
