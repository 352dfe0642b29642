"""Reading a final number out of text: exact, in-process, never raising."""

import re
from dataclasses import dataclass
from fractions import Fraction

from omni_thinker.rewards.reading.characters import CURRENCY
from omni_thinker.rewards.reading.glue import denied, glued_after, glued_before
from omni_thinker.rewards.reading.latex import plain
from omni_thinker.rewards.reading.units import without_powers

LONGEST_NUMBER = 400
"""Digits. Longer ones are no number here (Python refuses to convert them)."""
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_EXPONENT = r"(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<![A-Za-z0-9])\.[0-9]+){_EXPONENT}"
_QUOTIENT = rf"(?:{_DIGITS}\s+(?:and\s+)?)?[0-9]{{1,30}}\s?/\s?[0-9]{{1,30}}(?![0-9]|\s?/|[.,][0-9])"
_QUANTITY = rf"(?:{_QUOTIENT}|{_DECIMAL})"
_COIN = f"[{CURRENCY}]"
# A minus belongs to the number unless something stands right before it that it could be subtracted from.
_FIND = re.compile(
    rf"(?=[-+\s{CURRENCY}.0-9])"  # what it can't begin with is passed over at once
    rf"(?:(?<![0-9A-Za-z_.)\]}}])[-+]\s?)?{_COIN}?\s?(?:(?<=[{CURRENCY}\s])-)?(?:(?<![0-9.])|(?<=[A-Za-z]\.)){_QUANTITY}"
)
_ALONE = re.compile(rf"\s*([-+]?)\s*{_COIN}?\s*([-+]?)\s*({_QUANTITY})\s*(?:{_COIN}|\\?%)?\s*\.?\s*")
_PARTS = re.compile(r"(?:([0-9,]+)\s+(?:and\s+)?)?([0-9]+)\s?/\s?([0-9]+)")
_JOINS = {"", "|", "/", "\\", "&", "or", "and", "to", "and/or"}
_DOUBTS = {f"{joint}{doubt}" for joint in ("", "or ") for doubt in ("maybe", "perhaps", "possibly", "alternatively")}
_OPERATORS = {"+", "-", "*", "/", "^", "×", "·", "÷", "\\times", "\\cdot"}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?<![\w\\])[A-Za-z]\s*=(?!=)")
_WORD = re.compile(r"[^\W\d_]{2,}")
_HEDGED = re.compile(r"\b(?:or|maybe|perhaps|possibly|either)\b", re.IGNORECASE)
_BASE_TEN = re.compile(r"(?<=[0-9])\s*_\s*(?:\{\s*10\s*\}|10)(?![0-9])")
# "3 (mod 7)" says that it is 3; "10 mod 7" is still to be worked out.
_MODULUS = re.compile(r"(?:\\pmod\s*(?:\{[^{}]{1,20}\}|[0-9])|\(\s*(?:\\bmod|mod)\s*[0-9]{1,20}\s*\))(?=[\s.,$*]*$)")
_PERCENT = re.compile(r"\s*(?:%|percent\b|per cent\b|pct\b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """A number read from a text, or why there is none.

    text: the number as it stands there. bare: nothing but a unit stands beside it. percent: its unit is a percent."""

    value: Fraction | None
    text: str = ""
    why: str = ""
    bare: bool = False
    percent: bool = False


def to_number(text: str) -> Fraction | None:
    """The value of a text that is one number: 7, -3.50, .5, 1,234, $12, 12., 12%, 3/4, 2 1/2, 1.5e3. Else None."""
    if len(text) > LONGEST_NUMBER:
        return None
    match = _ALONE.fullmatch(text)
    if not match or (match[1] and match[2]):
        return None
    value = _quantity(match[3])
    return -value if value is not None and "-" in (match[1], match[2]) else value


def _quantity(digits: str) -> Fraction | None:
    """The value of a number without a sign; None for 3/0 and for what only looks like a mixed number (2 5/3)."""
    if "/" not in digits:
        return Fraction(digits.replace(",", ""))
    parts = _PARTS.fullmatch(digits)
    if parts is None or not int(parts[3]):
        return None
    part = Fraction(int(parts[2]), int(parts[3]))
    if parts[1] is None:
        return part
    return int(parts[1].replace(",", "")) + part if part < 1 else None


def _value(token: str) -> Fraction | None:
    """The value of a found token. A quotient that is a whole number (36/2) is none: it isn't worked out."""
    value = to_number(token)
    return None if value is not None and value.denominator == 1 and "/" in token else value


def _readable(text: str) -> str:
    text = without_powers(plain(text))
    if "mod" in text:
        text = _MODULUS.sub("", text)
    return _BASE_TEN.sub("", text) if "_" in text else text


def _split(text: str, match: re.Match[str]) -> tuple[str, str, str]:
    """What stands before a found number, the number, and what stands after it."""
    token = match.group().lstrip()
    return text[: match.end() - len(token)], token, text[match.end() :]


def _found(text: str) -> list[re.Match[str]]:
    return [match for match in _FIND.finditer(text) if len(match.group()) <= LONGEST_NUMBER]


def has_words(text: str) -> bool:
    """Whether there is prose (a word of two letters that isn't a connector or a unit's exponent)."""
    return any(word[0].casefold() not in ("or", "and", "to") for word in _WORD.finditer(text))


def leading_number(segment: str, *, whole: bool = False) -> Reading:
    """The number that an announced answer ("the answer is ...") begins with.

    After the last "=" where there is one. "3 million" is 3000000. None where no number is there, where it is denied or
    only a bound ("not 3", "> 3"), where others are offered beside it ("3 or 4", "3, 4", "3 4"), and where it is part of
    an expression ("3 + 4", "3x", "3!", 3 times a root, 10:30). With `whole` (a box, a "####" line) no other number may
    follow."""
    segment = _readable(segment)
    if len(_ASSIGNED.findall(segment)) > 1:
        return Reading(None, why="several answers")  # "x = 3, y = 4"
    segment = segment.rpartition("=")[2]
    alone = segment.replace("$", " ").strip(" *\n")
    if (value := to_number(alone)) is not None:
        if value.denominator == 1 and "/" in alone:
            return Reading(None, alone, "not worked out")
        return Reading(value, alone, bare=True, percent="%" in alone)
    matches = _found(segment)
    if not matches:
        return Reading(None, why="no number")
    before, token, after = _split(segment, matches[0])
    first = _value(token)
    if first is None:
        return Reading(None, token, "not worked out")
    if denied(before):
        return Reading(None, token, "denied, or only a bound")
    if glued_before(before, token) or glued_after(after):
        return Reading(None, token, "part of an expression")
    if len(matches) > 1 and _value(matches[1].group()) != first:
        between = segment[matches[0].end() : matches[1].start()].strip(" $*\t\n,;(").casefold()
        if between in _JOINS | _OPERATORS | _DOUBTS or whole:
            return Reading(None, token, "several numbers")
    if whole and _HEDGED.search(after):
        return Reading(None, token, "several answers")
    bare = len(matches) == 1 and not before.strip(" $*\n") and len(after.split()) <= 3
    return _scaled(first, token, after, bare)


def last_number(text: str) -> Reading:
    """The last number of a text, as is usual for GSM8K.

    Without prose the text must be [expression =] number. A list of different numbers at the end ("1 2 3 4 5",
    "3 or 4") has no last one, and neither has a text that ends in an expression, a time, a date or a ratio."""
    text = _readable(text).strip()
    if not has_words(text):
        return leading_number(text, whole=True)
    matches = _found(text)
    if not matches:
        return Reading(None, why="no number")
    before, token, after = _split(text, matches[-1])
    last = _value(token)
    if last is None:
        return Reading(None, token, "not worked out")
    if glued_before(before, token) or glued_after(after, prose=True):
        return Reading(None, token, "part of an expression")
    if len(matches) > 1:
        between = text[matches[-2].end() : matches[-1].start()].strip(" $*\t\n,;").casefold()
        if between in _JOINS and _value(matches[-2].group()) != last:
            return Reading(None, token, "several numbers")
    return _scaled(last, token, after, bare=False)


def _scaled(value: Fraction, token: str, after: str, bare: bool) -> Reading:
    scale = _SCALE.match(after)
    if scale:
        return Reading(value * _SCALES[scale[1].casefold()], token + scale[0], bare=bare)
    return Reading(value, token, bare=bare, percent=_PERCENT.match(after) is not None)
