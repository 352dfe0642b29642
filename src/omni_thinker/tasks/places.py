"""Answers that are places of choices: whether they are counted from 0 or from 1."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.types import TaskName, content_hash


@dataclass(frozen=True, slots=True)
class Place:
    """A whole-number answer to a row with choices, and where the row is."""

    number: int
    choices: Sequence[str]
    where: str


def place_of(raw: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    """The number where an answer may be the place of a choice. A label isn't one, nor is a text that is a choice."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    if isinstance(raw, str):
        figures = raw.strip()
        if not (figures.isascii() and figures.isdecimal() and len(figures) < 4):
            return None
        if any(content_hash(text) == content_hash(figures) for text in texts):
            return None
        raw = int(figures)
    return raw if isinstance(raw, int) and str(raw) not in labels else None


def decide_base(name: TaskName, places: Iterable[Place]) -> tuple[int | None, str]:
    """Where the places are counted from, and the row that says so; (None, "") where answers are no places.

    A 0 says 0, place n of n choices says 1. Answers that all are texts of their choices, and couldn't all be places,
    are texts. Raises UserError, naming the key to set, where rows contradict each other or leave it open."""
    zero = top = outside = ""
    texts, count = 0, 0
    for place in places:
        count += 1
        texts += str(place.number) in {text.strip() for text in place.choices}
        if place.number == 0:
            zero = zero or place.where
        elif place.number == len(place.choices):
            top = top or place.where
        elif not 0 < place.number < len(place.choices):
            outside = outside or place.where
    if not count or (texts == count and (outside or (zero and top))):
        return None, ""
    key = f"tasks.{name}.options.answer_index_base"
    if zero and top:
        raise UserError(f"{zero} has the answer 0, and {top} the number of its choices; set it to 0 or 1", key=key)
    if texts == count or not (zero or top):
        said = "numbers that may be choices or their places" if texts == count else "places of choices"
        raise UserError(f"answers are {said}, and no row says whether from 0 or 1; set it to 0 or 1", key=key)
    return (0, f"{zero} has 0") if zero else (1, f"{top} has the last of its choices")
