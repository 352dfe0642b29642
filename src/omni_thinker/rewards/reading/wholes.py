"""Answers that are compared as wholes, as they are written: times and ratios, dates, numbers in a base."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from omni_thinker.rewards.reading.latex import plain

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_PART = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_COLONS = re.compile(
    rf"(?<![0-9A-Za-z_:.])({_PART}(?:\s?:\s?{_PART}){{1,9}})(?![0-9]|:|\.[0-9])\s*(?:([ap])\.?\s?m\b\.?)?",
    re.IGNORECASE,
)
_RATIO = re.compile(rf"\s*({_PART})\s*(?:/|to)\s*({_PART})\s*\.?\s*")
_ISO = re.compile(r"(?<![0-9A-Za-z_/.-])([0-9]{4})([-/.])([0-9]{1,2})\2([0-9]{1,2})(?![0-9A-Za-z_/-])")
_YEAR_LAST = re.compile(r"(?<![0-9A-Za-z_/.-])([0-9]{1,2})([-/.])([0-9]{1,2})\2([0-9]{4})(?![0-9A-Za-z_/-])")
_MONTH_DAY = re.compile(rf"\b{_MONTH}\s+([0-9]{{1,2}})(?:st|[nr]d|th)?\b(?:,?\s+([0-9]{{4}})\b)?", re.IGNORECASE)
_DAY_MONTH = re.compile(
    rf"\b([0-9]{{1,2}})(?:st|[nr]d|th)?\s+(?:of\s+)?{_MONTH}(?![a-z])(?:,?\s+([0-9]{{4}})\b)?", re.IGNORECASE
)
_NAMES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "twelve": 12,
    "sixteen": 16,
}
_BASE = rf"(?:[0-9]{{1,2}}|{'|'.join(_NAMES)})"
_BASED = re.compile(
    rf"(?<![\w.\\^])(-?)\(?([0-9A-F][0-9A-F ]{{0,60}}(?:\.[0-9A-F]+)?)\)?\s*"
    rf"(?:_\s*(?:\{{\s*(?:base\s*)?({_BASE})\s*\}}|([0-9]{{1,2}}))|\(?\s*(?:in\s+)?base[\s-]*({_BASE})\b\s*\)?)(?![0-9])"
)
_DIGITS = re.compile(r"\s*(-?)\s*([0-9A-Fa-f][0-9A-Fa-f, ]*(?:\.[0-9A-Fa-f]+)?)\s*\.?\s*")
_HALF_DAY = 12


@dataclass(frozen=True, slots=True)
class Whole:
    """Numbers that mean something together. half: "a" or "p" of a time of day."""

    kind: Literal["colons", "date", "based"]
    parts: tuple[object, ...]
    half: str = ""

    def equals(self, other: "Whole") -> bool:
        """Whether both are written alike; "3:30 pm" is 15:30, and a time without am or pm is either."""
        if self.kind != other.kind:
            return False
        if self.half and other.half:
            return _by_day(self) == _by_day(other)
        return self.parts == other.parts or _by_day(self) == _by_day(other)


def _by_day(time: Whole) -> tuple[object, ...]:
    hour, *rest = time.parts
    if not isinstance(hour, Fraction) or not time.half:
        return time.parts
    return (hour % _HALF_DAY + (_HALF_DAY if time.half == "p" else 0), *rest)


def read_whole(text: str) -> Whole | None:
    """The value of a gold that is a time, ratio or date, or a number in a base, and nothing else. Else None."""
    text = plain(text).replace("$", "").strip().rstrip(".")
    for pattern, make in _MAKERS:
        match = pattern.fullmatch(text)
        if match and (whole := make(match)):
            return whole
    return None


def find_whole(segment: str, kind: str, *, last: bool = False) -> Whole | str:
    """The first (or last) whole of a kind in an answer, or why there is none: no such whole, or several."""
    text = plain(segment).replace("$", "")
    if kind == "based":
        digits = _DIGITS.fullmatch(text.rpartition("=")[2])
        if digits:
            return Whole("based", (digits[1], re.sub("[, ]", "", digits[2]).upper(), None))
    if kind == "colons" and (ratio := _RATIO.fullmatch(text)):
        return Whole("colons", (Fraction(ratio[1]), Fraction(ratio[2])))
    found = [
        (match.start(), whole)
        for pattern, make in _MAKERS
        for match in pattern.finditer(text)
        if (whole := make(match)) and whole.kind == kind
    ]
    if not found:
        return f"no {_CALLED[kind]}"
    found.sort(key=lambda pair: pair[0])
    if not last and any(not found[0][1].equals(other) for _, other in found[1:]):
        return "several answers"
    return found[-1 if last else 0][1]


def same_whole(gold: Whole, answer: Whole) -> bool:
    """Whether an answer is the gold. A number without a base is read in the gold's."""
    if gold.kind == "based" == answer.kind and answer.parts[2] is None:
        return gold.parts[:2] == answer.parts[:2]
    return gold.equals(answer)


def _colons(match: re.Match[str]) -> Whole:
    parts = tuple(Fraction(part) for part in re.split(r"\s?:\s?", match[1]))
    return Whole("colons", parts, (match[2] or "").lower())


def _date(year: str | None, month: str, day: str) -> Whole | None:
    number = _MONTHS.index(month[:3].lower()) + 1 if month[:1].isalpha() else int(month)
    return Whole("date", (int(year or 0), number, int(day))) if 1 <= number <= 12 and 1 <= int(day) <= 31 else None


def _year_last(match: re.Match[str]) -> Whole | None:
    # 3/15/2024 and 15/3/2024 are one day; 3/4/2024 is read as March 4.
    return _date(match[4], match[1], match[3]) or _date(match[4], match[3], match[1])


def _based(match: re.Match[str]) -> Whole:
    base = match[3] or match[4] or match[5]
    number = _NAMES.get(base) or int(base)
    return Whole("based", (match[1], match[2].replace(" ", "").upper(), number))


_MAKERS = (
    (_COLONS, _colons),
    (_ISO, lambda match: _date(match[1], match[3], match[4])),
    (_YEAR_LAST, _year_last),
    (_MONTH_DAY, lambda match: _date(match[3], match[1], match[2])),
    (_DAY_MONTH, lambda match: _date(match[3], match[2], match[1])),
    (_BASED, _based),
)
_CALLED = {"colons": "time or ratio", "date": "date", "based": "number in a base"}
