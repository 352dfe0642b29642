"""Prompts of judges: files with a version, filled in one pass, and the schemas of their replies."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from omni_thinker.errors import UserError

_SLOT = re.compile(r"\{([a-z_]+)\}")
_SLOTS = ("mark", "prompt", "answers", "criteria")


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
