"""Strict JSON from what a run holds."""

import json
import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omni_thinker.runs.files import write_whole
from omni_thinker.runs.schema.base import dump


def to_json(table: Any, indent: int | None = None) -> str:
    """Strict JSON: what isn't finite becomes null, and lone surrogates stay escaped."""
    try:
        text = json.dumps(plain(table), indent=indent, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain(table), indent=indent)
    return text


def write_json(path: Path, table: Any) -> Path:
    """Write a document of the schema, or a plain table: readers see the old file or the new one, never half of it."""
    write_whole(path, lambda partial: partial.write_text(to_json(table, indent=1) + "\n", "utf-8"))
    return path


def plain(value: Any) -> Any:
    """As JSON holds it: classes of the schema become tables, and what isn't finite becomes null."""
    if is_dataclass(value):
        value = dump(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
