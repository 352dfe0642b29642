"""Entries of reasoning_gym as JSON and back, and the floor under its scores. Loaded by gym_handler.py."""

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def without_floor(value: float, floor: float) -> float:
    """A score in [0, 1] moved so that `floor`, what an empty answer gets, becomes 0 and 1 stays 1.

    Raises ValueError where an empty answer gets full marks."""
    if floor >= 1.0:
        raise ValueError("its scorer gives an empty answer full marks")
    return max(0.0, (value - floor) / (1.0 - floor))


def to_json(value: Any) -> Any:
    """A value as JSON from which `from_json` makes it again: tuples, sets, and tables with keys that aren't texts."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return {key: to_json(item) for key, item in value.items()}
        return {"!table": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"!tuple": [to_json(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"!set": sorted((to_json(item) for item in value), key=json.dumps)}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, enum.Enum):
        return to_json(value.value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def from_json(value: Any) -> Any:
    """What `to_json` made, as it was."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        [(mark, items)] = value.items()
        if mark == "!table" and isinstance(items, Sequence):
            return {from_json(key): from_json(item) for key, item in items}
        if mark == "!tuple":
            return tuple(from_json(item) for item in items)
        if mark == "!set":
            return {from_json(item) for item in items}
    return {key: from_json(item) for key, item in value.items()}
