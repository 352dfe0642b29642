"""The table `[engine.tinker]` of a recipe: a training service with the Tinker API. Imports no torch."""

from typing import Literal

from omni_thinker.recipe.types import Seconds, Table

PREFIX = "tinker:"
"""What a model's name begins with whose weights lie at a training service."""


class TinkerSpec(Table):
    """A training service with the Tinker API: LoRA, trained and sampled there. The key is the environment's
    TINKER_API_KEY."""

    url: str = ""
    """Address of the service, such as http://127.0.0.1:8123. Empty: TINKER_BASE_URL, else the hosted service."""
    allow_http: bool = False
    """Ask a service on another machine without encryption."""
    tokenizer: str = ""
    """Folder or hub name of the tokenizer, chat template and config.json. Empty: those of the model's name."""
    server: Literal["auto", "hosted", "skyrl"] = "auto"
    """Whose service it is: the two forget moments, and retry, in different ways. `auto`: the service is asked."""
    loss_scale: Literal["auto", "sum", "mean"] = "auto"
    """What the service divides a loss by: nothing, or tokens of each sequence and then sequences. `auto`: measured
    before step 0 where the service reports norms of gradients, else `sum`."""
    patience_s: Seconds = 900.0
    """Longest wait for an answer of the service. After that the run ends, and can be resumed."""


def served_name(name: str) -> str:
    """A model's name as the service knows it."""
    return name.removeprefix(PREFIX)
