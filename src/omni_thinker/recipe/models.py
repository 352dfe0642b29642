"""The tables `[model]` and `[model.lora]` of a recipe. Imports no torch."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from omni_thinker.recipe.types import Positive, Table


class LoraSpec(Table):
    """Train low-rank factors instead of all weights (arXiv 2106.09685)."""

    rank: Annotated[int, Field(gt=0, le=4096, strict=True)] = 16
    """Rank of the factors."""
    alpha: Positive = 32
    """The factors' product is scaled by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the layers that get factors."""


def _written(value: Any) -> Any:
    return value.isoformat() if type(value) is date else value  # TOML has dates


def _checked(text: str) -> str:
    if text and date.fromisoformat(text).isoformat() != text:
        raise ValueError("a date is YYYY-MM-DD")
    return text


class ModelSpec(Table):
    """The model that is trained."""

    name: str = "builtin"
    """`builtin`, `tiny` (random, for tests), a Hugging Face folder, a GGUF file, or a hub name; `tinker:NAME` for a
    model of a training service."""
    policy: Annotated[str, Field(pattern=r"^(torch|python:.+)$")] = "torch"
    """Who trains it: ours, or `python:MODULE:CLASS` with the methods of `omni_thinker.protocol.Policy`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights that compute."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU where torch finds one."""
    system: str = ""
    """Words above every chat; empty for none. `tasks.NAME.system` and a row's own come first."""
    chat_template: str = ""
    """A Jinja file in place of the model's own template. What is exported has it."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables of the template, such as `enable_thinking`, `reasoning_effort`, `date_string` or `tools`."""
    date: Annotated[str, AfterValidator(_checked), BeforeValidator(_written)] = ""
    """The date that a template prints as today's (YYYY-MM-DD). Empty: the day that the run begins, which is kept."""
    lora: LoraSpec | None = None
    """Train adapters in place of all weights; none: all weights."""
    activation_checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them (arXiv 1604.06174): a third more
    work for a fraction of the memory."""
