"""English number words as figures: "two hundred and five" is 205, "3 million" is 3000000."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_ROUND = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = {word: 10 * value for value, word in enumerate(_ROUND, 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_RANKS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_CARDINALS = {
    **dict(zip(_RANKS.split(), _SMALL.split()[1:], strict=True)),
    **{f"{word[:-1]}ieth": word for word in _TENS},
    **{f"{word}th": word for word in ("hundred", *_SCALES)},
}
"""Of each ordinal."""
_HALVES = {"half": Fraction(1, 2), "quarter": Fraction(1, 4)}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4} | {
    f"{rank}{plural}": value for value, rank in enumerate(_RANKS.split(), 1) if 3 <= value <= 10 for plural in ("", "s")
}
"""What is divided by in "two thirds"."""
_MINUS = ("minus", "negative")
_PRONOUN = ("no", "any", "some", "every", "each", "this", "that", "which")
"""Before a "one" that counts nothing."""
_LIMIT = 10**15
_FIGURE = re.compile(r"([-+]?)([$€£¥₹]?)(\d{1,3}(?:,\d{3}){1,12}|\d{1,40})(\.\d{1,40})?")
_GROUPED = re.compile(r"[-+]?[$€£¥₹]?\d{1,3}(?:,\d{3})+(?:\.\d+)?%?")
_HINTS = frozenset((*_UNITS, *_TENS, *_SCALES, *_CARDINALS, "hundred", "half", "%", "percent", "cent", *_MINUS))


@dataclass(frozen=True, slots=True)
class _Number:
    """A number that is being read: `total` of the scales that are done, `current` below the next one."""

    total: Fraction = Fraction(0)
    current: Fraction = Fraction(0)
    last: str = ""
    limit: int = _LIMIT
    ending: str = ""

    def then(self, word: str, *, apart: bool = False) -> "_Number | None":
        """The number with one more word, None where that belongs to another number. `apart`: a comma is between."""
        if word in _CARDINALS:
            longer = self.then(_CARDINALS[word], apart=apart)
            return longer and replace(longer, last="rank", ending=word[-2:])
        fresh = self.last in ("", "and", "hundred", "scale")
        if word == "hundred":
            if self.last in ("", "unit", "teen", "tens", "figure") and self.current < 100:
                return replace(self, current=max(Fraction(1), self.current) * 100, last="hundred")
            return None
        if word in _SCALES:
            if self.last in ("and", "scale", "rank") or _SCALES[word] >= self.limit:
                return None
            done = self.total + (self.current if self.last else 1) * _SCALES[word]
            return _Number(done, Fraction(0), "scale", _SCALES[word])
        value = _UNITS.get(word, _TENS.get(word))
        if value is None or (value == 0 and self.last):
            return None
        kind = "unit" if value < 10 else "teen" if value < 20 else "tens"
        if fresh or (self.last == "tens" and kind == "unit" and not apart):
            return replace(self, current=self.current + value, last=kind)
        year = self.last in ("teen", "tens") and not self.total and 10 <= self.current <= 20
        if year and kind != "unit" and not apart:  # nineteen eighty-four
            return replace(self, current=self.current * 100 + value, last=kind)
        return None

    def text(self) -> str:
        return _decimal(self.total + self.current) + self.ending


def in_figures(words: Sequence[str], stops: Collection[int] = ()) -> list[str]:
    """The words with each spelled number as one figure. "One two" are two numbers and "forty two" is one.

    `words`: in lower case, without punctuation at their edges. `stops`: places of those that a comma followed.
    Ordinals keep their ending (21st), fractions are 2/3, and "percent" is a %. "No one" is no number."""
    done: list[str] = []
    at = 0
    hinted = not _HINTS.isdisjoint(piece for word in words for piece in word.split("-"))
    while at < len(words):
        figure, after = _read(words, at, stops, done) if hinted else ("", at)
        if not figure:
            figure, after = _plain(words[at]), at + 1
        if hinted and figure[-1].isdecimal() and (cents := _percent(words, after)):
            figure, after = figure + "%", after + cents
        done.append(figure)
        at = after
    return done


def _plain(word: str) -> str:
    return word.replace(",", "") if "," in word and _GROUPED.fullmatch(word) else word


def _percent(words: Sequence[str], at: int) -> int:
    """How many words say "percent" here."""
    if words[at : at + 1] in (["%"], ["percent"]):
        return 1
    return 2 if list(words[at : at + 2]) == ["per", "cent"] else 0


def _read(words: Sequence[str], at: int, stops: Collection[int], done: Sequence[str]) -> tuple[str, int]:
    """The figure of the number that begins at `at`, and where it ends; "" where none does."""
    if words[at] in _MINUS and not (done and done[-1][-1].isdecimal()):
        figure, after = _unsigned(words, at + 1, stops)
        if not figure and at + 1 < len(words) and _FIGURE.fullmatch(words[at + 1]):
            figure, after = _plain(words[at + 1]), at + 2
        return (f"-{figure}", after) if figure[:1].isdecimal() else ("", at)
    if done and done[-1] in _PRONOUN and words[at] == "one":
        figure, after = _unsigned(words, at, stops)
        return (figure, after) if after > at + 1 else ("", at)
    return _unsigned(words, at, stops)


def _unsigned(words: Sequence[str], at: int, stops: Collection[int]) -> tuple[str, int]:
    if at >= len(words):
        return "", at
    first, _, part = words[at].partition("-")
    if first in _UNITS and part in _PARTS:  # two-thirds
        return f"{_UNITS[first]}/{_PARTS[part]}", at + 1
    prefix, number, after = _begun(words, at)
    begun = after
    while after < len(words):
        longer, step = _longer(number, words, after, apart=after > at and after - 1 in stops)
        if longer is None:
            break
        number, after = longer, after + step
    if after == at or (after == begun and prefix is not None):
        return "", at
    if number.last == "unit" and after < len(words) and words[after] in _PARTS and after == at + 1:
        return f"{number.text()}/{_PARTS[words[after]]}", after + 1
    return (prefix or "") + number.text(), after


def _begun(words: Sequence[str], at: int) -> tuple[str | None, _Number, int]:
    """(sign and currency, number, end) of the figure or the half that a number may begin with; None: with neither."""
    figure = _FIGURE.fullmatch(words[at])
    if figure:
        value = Fraction(figure[3].replace(",", "") + (figure[4] or ""))
        return figure[1] + figure[2], _Number(current=value, last="figure"), at + 1
    if words[at] == "half":
        return "", _Number(current=_HALVES["half"], last="figure"), at + 1 + (words[at + 1 : at + 2] == ["a"])
    return None, _Number(), at


def _longer(number: _Number, words: Sequence[str], at: int, *, apart: bool) -> tuple[_Number | None, int]:
    """The number with what stands at `at`, and how many words that is."""
    word = words[at]
    counts = number.last in ("unit", "teen", "tens", "hundred", "scale")
    if word == "and" and counts:
        after = at + 1 + (words[at + 1 : at + 2] == ["a"])
        if after < len(words) and words[after] in _HALVES and number.last not in ("hundred", "scale"):
            more = replace(number, current=number.current + _HALVES[words[after]], last="figure")
            return more, after + 1 - at
        if number.last in ("hundred", "scale") and at + 1 < len(words):
            more_or_none = _hyphened(replace(number, last="and"), words[at + 1], apart=False)
            return more_or_none, 2
        return None, 0
    if word == "point" and counts:
        digits = ""
        while at + 1 + len(digits) < len(words) and _UNITS.get(words[at + 1 + len(digits)], 10) < 10:
            digits += str(_UNITS[words[at + 1 + len(digits)]])
        if not digits or len(digits) > 40:
            return None, 0
        more = replace(number, current=number.current + Fraction(f"0.{digits}"), last="figure")
        return more, 1 + len(digits)
    return _hyphened(number, word, apart=apart), 1


def _hyphened(number: _Number, word: str, *, apart: bool) -> _Number | None:
    found: _Number | None = number
    for piece in word.split("-"):
        if found is None or found.last == "rank":
            return None
        found, apart = found.then(piece, apart=apart), False
    return found


def _decimal(value: Fraction) -> str:
    """Exact; the denominator is a product of twos and fives."""
    places = 0
    while value.denominator > 1:
        value, places = value * 10, places + 1
    digits = str(value.numerator).rjust(places + 1, "0")
    return digits if not places else f"{digits[:-places]}.{digits[-places:]}"
