"""From a path such as `meta.setup` or `prompt.0.content` to a value in a row."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

MISSING: Any = object()
_LONGEST_JSON = 1 << 20


def lookup(values: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, or MISSING (null counts as missing).

    Dots descend into tables, and figures into lists; -1 is a list's last item. A name may itself hold a dot. Tables and
    lists that a column holds as JSON text are opened where the path goes on."""
    value: Any = values
    if path in values:
        value = values[path]
    else:
        for name in path.split("."):
            value = _step(opened(value), name)
    return MISSING if value is None else value


def opened(value: Any) -> Any:
    """A table or list that is written as JSON text as what it holds; anything else as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[") or len(value) > _LONGEST_JSON:
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return read if isinstance(read, dict | list) else value


def _step(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name, MISSING)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        try:
            return value[int(name)]
        except (ValueError, IndexError):
            return MISSING
    return MISSING
