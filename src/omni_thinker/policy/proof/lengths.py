"""The lengths at which a model starts to compute in another way: windows, chunks, sparse attention, scales."""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

SHORT = 40
"""Tokens of the longest sequence that every model is tried on."""
_BEYOND = 16
"""Tokens past such a length that a trial goes."""
_BY_POSITION = ("window", "chunk", "topk", "top_k", "block_size", "local_attention", "original_max_position")
"""Parts of the names of settings that are lengths of a sequence."""
_NO_LENGTH = ("layers", "pattern")
"""Ends of names that hold one of these parts and aren't lengths."""
_BY_SLOT = ("floor_scale",)
"""The same for what transformers counts by place in the row or the cache, whoever's token lies there."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a trial goes, and so what it holds for: sequences of up to `length` tokens in rows of up to `slots`."""

    length: int
    slots: int

    @property
    def tried(self) -> int:
        """Tokens of the longest sequence of the trial."""
        return max(self.length, self.slots)


class Lengths:
    """The classes of length of one model. Within one, nothing that depends on length changes."""

    def __init__(self, config: PretrainedConfig) -> None:
        text = config.get_text_config()
        settings = _settings(text.to_dict())
        context = getattr(text, "max_position_embeddings", None)
        self._context = context if isinstance(context, int) and context > 1 else None
        lengths = [(key, size) for key, size in settings if not key.endswith(_NO_LENGTH)]
        self._positions = sorted({size for key, size in lengths if any(part in key for part in _BY_POSITION)})
        self._slots = sorted({size for key, size in settings if key in _BY_SLOT})

    def reach(self, length: int, slots: int = 0) -> Reach:
        """The trial that tells about a sequence of `length` tokens in a row, or a cache, of `slots`."""
        return Reach(self._class(self._positions, length), self._class(self._slots, slots))

    def _class(self, changes: list[int], reached: int) -> int:
        passed = changes[: bisect_left(changes, reached)]
        tried = max(SHORT, passed[-1] + _BEYOND) if passed else SHORT
        return tried if self._context is None else min(tried, self._context)


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
