"""What a sampler asks of vLLM, wherever it runs: in processes of its own, or on a server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.streams import Ask, Piece
from omni_thinker.types import SamplingParams

KEY = "engine.sampler"
ADAPTER = "omni-{version}"
"""What the adapter of a version is called: a name or number that was used before would go on serving the old one."""
LEAST_TEMPERATURE = 0.01
"""vLLM draws at this temperature where a lower one is asked for, but 0."""


class EngineGone(UserError):
    """The engine ended, or can't be reached."""

    def __init__(self, why: str, log: object = None) -> None:
        self.why = why
        told = f"; its log is {log}" if log else ""
        super().__init__(f"vLLM is gone: {why}{told}; start it again and go on with --resume", key=KEY)


class Engine(Protocol):
    """Draws tokens for asks, and takes new weights. Its methods raise EngineGone where it has ended."""

    longest: int
    """Most tokens of a prompt and its answer."""

    def begin(self, asks: Sequence[Ask], params: SamplingParams, stop_ids: frozenset[int], adapter: int) -> None:
        """Take asks. `adapter`: the version of the adapter that draws, 0 for none."""

    def poll(self) -> list[Piece]:
        """What was drawn since; waits until there is something."""

    def drop(self, keys: Sequence[str]) -> None:
        """Stop drawing for these asks."""

    def call(self, method: str, *arguments: object) -> list[Any]:
        """What each worker answers to a method of `worker.Weights`."""

    def add_adapter(self, folder: Path, version: int) -> int:
        """Load a LoRA adapter, drop the one before it, and return the number that workers know it by."""

    def forget(self) -> None:
        """Drop keys and values that older weights have computed."""

    def close(self) -> None:
        """End it, where it was started here."""


def draw_options(ask: Ask, params: SamplingParams, stop_ids: frozenset[int]) -> Mapping[str, Any]:
    """How vLLM is to draw, by its own names. The stop tokens are ours alone: it adds none of the model's files."""
    return {
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "max_tokens": ask.max_tokens,
        "seed": ask.seed,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "logprobs": 0,
    }


def check_longest(tokens: int, longest: int) -> None:
    """Raises UserError where an engine has no room for a prompt and its answer."""
    if tokens > longest:
        raise UserError(
            f"a prompt and its answer may have {tokens} tokens, and vLLM has room for {longest}",
            key="engine.vllm.max_model_len",
        )
