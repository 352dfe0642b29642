"""The letter of an option, in the ways that people answer with one: C, (C), C., **C**, option C, C: the third."""

import re

from omni_thinker.rewards.reading.latex import plain

_GOLD = re.compile(r"[\s$*]*\(?([A-J])[).]?[\s$*.]*")
_BESIDE = r"[\s*_$\"'(\[{]*"
_NAMED = r"(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:option|choice|letter|alternative|answer)s?\s*(?:is\b|:)?)?"
_LEADING = re.compile(
    rf"{_BESIDE}{_NAMED}{_BESIDE}([A-Ja-j])(?![\w^'’²³])([\s*_\"'$)\]}}.:,;-]*)(.*)", re.DOTALL | re.IGNORECASE
)
_OPTION = re.compile(
    r"\b(?:option|choice|letter|alternative)s?\s*(?:is\b)?[\s:*_$\"'(\[]*([A-J])(?![\w^'’])|\(([A-J])\)"
)
_ENDING = re.compile(r"(?:\b(?:choose|pick|select|is|be)|[:：→])\s*[*_(\[\"']*([A-J])[*_)\]\"'.!\s]*$")
_OTHER = re.compile(
    r"\(?\s*(?:or\b|and\b|/|&)?\s*[(*]*[A-J](?![\w'’])[)*.\s]*(?:$|or\b|and\b|,|/)|(?:or|and|/|&)\s*\(?[A-J](?![\w'’])"
)
_EXPRESSION = re.compile(r"[-+=^*/(\[]")
_LONGEST = 400
"""Characters of an answer that are read."""
_REASON = re.compile(r"because|since|as|is|which|for|\W|$", re.IGNORECASE)


def read_letter(text: str) -> str | None:
    """The letter (A to J) of a gold that is one letter, in whatever brackets or markup. Else None."""
    match = _GOLD.fullmatch(plain(text))
    return match[1] if match else None


def find_letter(segment: str, *, marked: bool) -> str | None:
    """The letter that an answer is or begins with, in upper case; None where there is none, or several.

    marked: whether the text calls the segment its answer. Of other texts the last line is read."""
    text = plain(segment).replace("$", " ")
    if not marked:
        text = text.strip().rpartition("\n")[2]
    text = text.strip()[:_LONGEST] if marked else text[-_LONGEST:]
    match = _LEADING.fullmatch(text.strip())
    labelled = bool(match and re.search(r"[).:]", match[2])) and "\n" not in segment.strip()
    if match and (marked or labelled or not match[3]) and (letter := _alone(match[1], match[2], match[3])):
        return letter
    named = {first or second for first, second in _OPTION.findall(text)}
    if not named and (ending := _ENDING.search(text)):
        return ending[1]
    return named.pop() if len(named) == 1 else None


def _alone(letter: str, between: str, rest: str) -> str | None:
    """The letter, where what follows it names no other and doesn't make a word or an expression of it."""
    if letter.islower() and rest:
        return None  # "a cat"
    if _OTHER.match(rest) or (not between.strip() and _EXPRESSION.match(rest)):
        return None  # "A or B", "C + 1"
    if letter == "A" and not between.strip() and not _REASON.match(rest):
        return None  # "A cat"
    return letter.upper()
