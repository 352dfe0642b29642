"""Which part of a response is the answer: the one small language that all rewards share.

A reward drops the thoughts first (`without_thoughts`). It then looks for the answer in the places that it allows, in
its own order, and says in the score's reason where it found it (`Found.how`)."""

import re
from dataclasses import dataclass
from typing import Literal

How = Literal["boxed", "heading", "announced", "block", "last", "whole"]
"""boxed: \\boxed{}; heading: a line of ####; announced: after "the answer is"; block: a fenced block; last: the last
number or line; whole: the whole text."""

_CLOSE = re.compile(r"</(?:think|thinking|thought|thoughts|reasoning)>", re.IGNORECASE)
_OPEN = re.compile(r"<(?:think|thinking|thought|thoughts|reasoning)>", re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>\s*final\s*<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b")


@dataclass(frozen=True)
class Found:
    """An answer and the place in the response that it was taken from."""

    text: str
    how: How

    def words(self) -> str:
        """What a score's reason says: at most 80 characters of the answer and its place."""
        shown = " ".join(self.text.split())
        return f"took {shown[:80]!r} ({self.how})"


def without_thoughts(text: str) -> str:
    """The response after its thoughts; "" where the thoughts never end (2501.12948, harmony's channels).

    Prompts may end inside an open block, so a closing tag alone ends the thoughts, too."""
    if "<" not in text:
        return text
    final = list(_FINAL.finditer(text))
    if final:
        return text[final[-1].end() :].partition("<|")[0]
    if _CHANNEL.search(text):
        return ""
    closed = list(_CLOSE.finditer(text))
    if closed:
        text = text[closed[-1].end() :]
    opened = _OPEN.search(text)
    return text if opened is None else text[: opened.start()]
