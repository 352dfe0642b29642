"""Which part of a response is the answer: the one small language that all rewards share.

A reward drops the thoughts first (`without_thoughts`). It then looks for the answer in the places that it allows, in
its own order, and says in the score's reason where it found it (`Found.how`)."""

import re
from dataclasses import dataclass
from typing import Literal

from omni_thinker.thoughts import split_thoughts

How = Literal["boxed", "heading", "announced", "block", "last", "whole"]
"""boxed: \\boxed{}; heading: a line of ####; announced: after "the answer is"; block: a fenced block; last: the last
number or line; whole: the whole text."""

_BOXES = 20
"""How many unclosed boxes, and marks of headings, are passed over before giving up."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\boxed\s*([^\s{}$a-zA-Z][^\s$]*)")
_BETWEEN_BOXES = re.compile(
    r"[ ,;$&]*(?:\\q?quad|\\ )?[ ,;$&]*"
    r"|(?:[\s,;$&]|\\[()\[\]])*(?:and|or|\\text\s*\{\s*(?:and|or)\s*\})(?:[\s,;$&]|\\[()\[\]])*"
)
_BRACES = re.compile(r"[{}]")
_WIDEST_GAP = 40
"""Characters between boxes of one list."""
_ANNOUNCED = re.compile(
    r"answers?\s+(?:to\b[^.\n]{0,60}?\s)?(?:is|are|would\s+be|should\s+be|must\s+be|equals)\b"
    r"|answers?[*_)\]\"' \t]{0,4}[:=：]|^[ \t]*A:|^[ \t>#*_]*(?:the\s+)?(?:final\s+)?answers?[ \t*_]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(r"\n|。|(?<=[^\s0-9])\.\s|(?<=[0-9])\.\s+(?=[A-Z])")
# "#### Step 1", "#### 2. Compute": the heading of a part, no answer.
_TITLE = re.compile(r"[\s:*_#]*(?:\d{1,2}[.)]\s+[^\W\d_]|(?!sqrt|pi\b|infinity)[^\W\d_]{2,})")
_PARTS = re.compile(r"[\s:*_#]*(?:step|part|case|section|chapter|question|problem|example|phase)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """An answer and the place in the response that it was taken from."""

    text: str
    how: How

    def words(self) -> str:
        """What a score's reason says: at most 80 characters of the answer and its place."""
        shown = " ".join(self.text.split())
        quoted = repr(shown[:80]).replace("\\\\", "\\")  # LaTeX as it was written
        return f"took {quoted} ({self.how})"


def without_thoughts(text: str) -> str:
    """The response after its thoughts; "" where the thoughts never end (2501.12948, harmony's channels)."""
    return split_thoughts(text)[0]


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} or \\fbox{...} whose braces close; else what follows a \\boxed without.

    Boxes side by side ("\\boxed{1}, \\boxed{2}") are one list."""
    return _boxed(text)[0]


def _boxed(text: str) -> tuple[str | None, int]:
    """(the content of the last box, where it ends)."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None, 0
    contents: list[str] = []
    before = end = 0  # where the box to the right begins, and where the last one ends
    for match in reversed([*_BOX.finditer(text)][-_BOXES:]):
        close = _closing(text, match.end())
        if close is None:
            continue
        content = text[match.end() : close]
        if not contents:
            end = close + 1
        elif before - close > _WIDEST_GAP or not _BETWEEN_BOXES.fullmatch(text, close + 1, before):
            break
        if content not in contents:
            contents.insert(0, content)
        before = match.start()
    if contents:
        return ", ".join(contents), end
    bare = _BARE_BOX.findall(text[-200:])
    return (str(bare[-1]).rstrip(".,"), len(text)) if bare else (None, 0)


def _closing(text: str, start: int) -> int | None:
    """Where the brace that is open at `start` closes."""
    depth = 1
    for brace in _BRACES.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    return None


def headed(text: str) -> str | None:
    """The line after the last "####" that isn't the heading of a part: one that begins like an answer, or ends the
    text."""
    if "####" not in text:
        return None
    end = len(text)
    for _ in range(_BOXES):
        start = text.rfind("####", 0, end)
        if start < 0:
            return None
        rest = text[start + 4 :]
        if not _TITLE.match(rest):
            return sentence(rest)
        if end == len(text) and "\n" not in rest.strip() and not _PARTS.match(rest):
            return sentence(rest)
        end = start
    return None


def announced(text: str) -> str | None:
    """The line after the last "answer is", "answer:", "A:", or a heading "Answer"."""
    last = _last_announcement(text)
    return None if last is None else sentence(text[last.end() :])


def _last_announcement(text: str) -> re.Match[str] | None:
    if "swer" not in text and "SWER" not in text and "A:" not in text and "a:" not in text:
        return None
    last = None
    for last in _ANNOUNCED.finditer(text):  # noqa: B007
        pass
    return last


def _final(text: str) -> str | None:
    """What is announced as the final answer, where that is more than words."""
    last = _last_announcement(text)
    if last is None or not text[: last.start()].rstrip().casefold().endswith("final"):
        return None
    answer = sentence(text[last.end() :])
    return answer if re.search(r"\d|\\", answer) else None


def sentence(text: str) -> str:
    """The first sentence or line of a text, without the marks before it."""
    return _SENTENCE.split(text.lstrip(" :：*_\n\t"), maxsplit=1)[0]


def find(text: str) -> Found:
    """The answer in a text without thoughts: in <answer> tags if there are any; there boxed, after "####", announced,
    or else the whole. A "final answer" that is announced after the last box comes before it."""
    if "</answer>" in text:
        before = text.rpartition("</answer>")[0]
        text = before.rpartition("<answer>")[2]
    answer, end = _boxed(text)
    if answer is not None:
        later = _final(text[end:]) if "inal" in text[end:] else None
        return Found(answer, "boxed") if later is None else Found(later, "announced")
    answer = headed(text)
    if answer is not None:
        return Found(answer, "heading")
    answer = announced(text)
    return Found(text, "whole") if answer is None else Found(answer, "announced")
