"""Prompts of judges: files with a version, filled in one pass, and what is read out of a reply."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from omni_thinker.errors import UserError

_SLOT = re.compile(r"\{([a-z_]+)\}")
_SLOTS = ("mark", "prompt", "answers", "criteria")
_OBJECT = re.compile(r"\{[^{}]*\}")
_MOST_POINTS = 10


def _schema(name: str, key: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema for servers that hold a reply to a JSON schema; the reason comes first, so that the verdict follows from
    it."""
    properties = {"reason": {"type": "string"}, key: dict(value)}
    table = {"type": "object", "properties": properties, "required": ["reason", key], "additionalProperties": False}
    return {"name": name, "strict": True, "schema": table}


_NUMBERS = {"type": "array", "items": {"type": "integer"}}
PAIRWISE_SCHEMA = _schema("verdict", "better", {"type": "integer", "enum": [0, 1, 2]})
RANKING_SCHEMA = _schema("ranking", "ranking", _NUMBERS)
RUBRIC_SCHEMA = _schema("scores", "scores", _NUMBERS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template. `version` names the file and its content, so that an edited file is another prompt to a cache."""

    version: str
    text: str

    def fill(self, prompt: str, answers: Sequence[str], criteria: str = "") -> str:
        """The text for the judge. Slots are filled in one pass: what an answer writes in braces stays as it is.

        The marks around the answers hold a number that follows from all texts, so none of them can contain it."""
        mark = hashlib.sha256("\0".join([prompt, *answers]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        blocks = [f"[{mark} answer {n}]\n{answer}\n[{mark} end of answer {n}]" for n, answer in enumerate(answers, 1)]
        slots = {"mark": mark, "prompt": prompt, "answers": "\n\n".join(blocks), "criteria": criteria}
        return _SLOT.sub(lambda match: slots[match[1]], self.text)


def load_prompt(name: str) -> Prompt:
    """A prompt of the package. Raises UserError for one that doesn't exist or has an unknown slot."""
    file = files("omni_thinker.judging").joinpath("prompts", f"{name}.txt")
    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError):
        raise UserError(f"no prompt {name!r}; there are {', '.join(known_prompts())}", key="judge.endpoint") from None
    if unknown := set(_SLOT.findall(text)) - set(_SLOTS):
        raise UserError(f"the prompt {name!r} has an unknown slot {min(unknown)!r}", key="judge.endpoint")
    return Prompt(f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)


def known_prompts() -> tuple[str, ...]:
    """Names of the package's prompts."""
    folder = files("omni_thinker.judging").joinpath("prompts")
    return tuple(sorted(file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt")))


def read_verdict(reply: str) -> int | None:
    """1 or 2 for the better answer, 0 for neither, None where the reply holds no verdict.

    Only the end of the reply counts: its last line, or the whole of it where it is one JSON object. A judge may quote
    what an answer says of itself; it decides on the last line."""
    value = _read(reply, "better")
    if isinstance(value, str) and value.strip() in ("0", "1", "2"):
        return int(value)
    return int(value) if _is_integer(value) and 0 <= value <= 2 else None


def read_ranking(reply: str, count: int) -> tuple[int, ...] | None:
    """The answers' numbers, 1 to `count`, best first; None where the reply doesn't name each of them once."""
    value = _read(reply, "ranking")
    if not isinstance(value, list) or not all(map(_is_integer, value)):
        return None
    return tuple(value) if sorted(value) == list(range(1, count + 1)) else None


def read_points(reply: str, count: int) -> tuple[int, ...] | None:
    """Points from 1 to 10 for each of `count` criteria, in order; None where the reply holds anything else."""
    value = _read(reply, "scores")
    if not isinstance(value, list) or len(value) != count:
        return None
    return tuple(value) if all(_is_integer(v) and 1 <= v <= _MOST_POINTS for v in value) else None


def _read(reply: str, key: str) -> Any:
    text = reply.strip().removesuffix("```").rstrip()
    for candidate in (text.removeprefix("```json").removeprefix("```").strip(), _last_object(text)):
        try:
            table = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(table, dict) and key in table:
            return table[key]
    return None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _last_object(text: str) -> str:
    line = text.rpartition("\n")[2].strip().strip("`*").strip()
    objects = _OBJECT.findall(line)
    return objects[-1] if objects and line.endswith(objects[-1]) else ""
