"""Prompts of judges: files with a version, filled in one pass, and what is read out of a reply."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_SLOT = re.compile(r"\{(mark|prompt|first|second)\}")
_OBJECT = re.compile(r"\{[^{}]*\}")
PAIRWISE_SCHEMA: Mapping[str, Any] = {
    "name": "verdict",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "better": {"type": "integer", "enum": [0, 1, 2]}},
        "required": ["reason", "better"],
        "additionalProperties": False,
    },
}
"""For servers that hold a reply to a JSON schema; the reason comes first, so that the verdict follows from it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template. `version` names the file and its content, so that an edited file is another prompt to a cache."""

    version: str
    text: str

    def fill(self, prompt: str, first: str, second: str) -> str:
        """The text for the judge. Slots are filled in one pass: what an answer writes in braces stays as it is.

        The marks around the answers hold a number that follows from all three texts, so none of them can contain it.
        """
        mark = hashlib.sha256("\0".join([prompt, first, second]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        slots = {"mark": mark, "prompt": prompt, "first": first, "second": second}
        return _SLOT.sub(lambda match: slots[match[1]], self.text)


def load_prompt(name: str = "pairwise-v1") -> Prompt:
    """A prompt of the package."""
    text = files("omni_thinker.judging").joinpath("prompts", f"{name}.txt").read_text("utf-8")
    return Prompt(f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)


def read_verdict(reply: str) -> int | None:
    """1 or 2 for the better answer, 0 for neither, None where the reply holds no verdict.

    Only the end of the reply counts: its last line, or the whole of it where it is one JSON object. A judge may quote
    what an answer says of itself; it decides on the last line.
    """
    text = reply.strip().removesuffix("```").rstrip()
    for candidate in (text.removeprefix("```json").removeprefix("```").strip(), _last_object(text)):
        try:
            table = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        value = table.get("better") if isinstance(table, dict) else None
        if isinstance(value, str) and value.strip() in ("0", "1", "2"):
            value = int(value)
        if value in (0, 1, 2) and not isinstance(value, (bool, float)):
            return int(value)
    return None


def _last_object(text: str) -> str:
    line = text.rpartition("\n")[2].strip().strip("`*").strip()
    found = _OBJECT.findall(line)
    return found[-1] if found and line.endswith(found[-1]) else ""
