"""The lengths at which a model starts to compute in another way: windows, chunks, sparse attention, scales."""

from bisect import bisect_left
from typing import Any

from transformers import PretrainedConfig

SHORT = 40
"""Tokens of the longest sequence that every model is tried on."""
_BEYOND = 16
"""Tokens past such a length that a trial goes."""
_LENGTHS = (
    "window", "chunk", "topk", "top_k", "block_size", "local_attention", "original_max_position", "floor_scale"
)  # fmt: skip
"""Parts of the names of settings that are lengths of a sequence."""
_NO_LENGTHS = ("layers", "pattern")
"""Ends of names that hold one of these parts and aren't."""


class Lengths:
    """The classes of length of one model. Within one, nothing that depends on length changes."""

    def __init__(self, config: PretrainedConfig) -> None:
        text = config.get_text_config()
        found = [(key, size) for key, size in _settings(text.to_dict()) if not key.endswith(_NO_LENGTHS)]
        self._changes = sorted({size for key, size in found if any(part in key for part in _LENGTHS)})
        context = getattr(text, "max_position_embeddings", None)
        self._context = context if isinstance(context, int) and context > 1 else None

    def tried(self, length: int) -> int:
        """Tokens of the longest sequence of the trial that tells about sequences of `length` tokens."""
        passed = self._changes[: bisect_left(self._changes, length)]
        tried = max(SHORT, passed[-1] + _BEYOND) if passed else SHORT
        return tried if self._context is None else min(tried, self._context)


def counts_slots(config: PretrainedConfig) -> bool:
    """Whether the model scales by the place of a token in its row or cache, whoever's tokens lie before it (Llama 4):
    then groups can't share a row, and how far into one that shows isn't tried."""
    return getattr(config.get_text_config(), "floor_scale", None) is not None


def _settings(section: dict[str, Any]) -> list[tuple[str, int]]:
    """Whole numbers of a configuration, of sections in it too, with the lists that hold them."""
    found: list[tuple[str, int]] = []
    for key, value in section.items():
        if isinstance(value, dict):
            found += _settings(value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and 1 < number < 2**31:
                found.append((key, int(number)))
    return found
