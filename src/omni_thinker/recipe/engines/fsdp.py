"""The table `[engine.fsdp]` of a recipe. Imports no torch."""

from typing import Annotated

from pydantic import Field

from omni_thinker.recipe.types import Count, Seconds, Table


class FsdpSpec(Table):
    """One model shared out among processes by torch's FSDP2 (arXiv 2304.11277), with `engine.trainer = "fsdp"`."""

    ranks: Annotated[int, Field(ge=0, le=4096, strict=True)] = 0
    """Processes that share the model. 0: those that torchrun started, else one for each GPU of this machine, and
    one where there is none."""
    row_tokens: Count = 0
    """Most tokens that a process runs forward and back at a time. 0: 2048 on a CPU, 16384 on a GPU."""
    timeout_s: Seconds = 600.0
    """Seconds without a sign from a process after which the run ends."""
