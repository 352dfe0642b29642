"""Exact values of golds and answers that are numbers however written: fractions, powers, products, units."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from omni_thinker.rewards.reading.latex import VARIABLES, plain
from omni_thinker.rewards.reading.numbers import Reading, leading_number, to_number
from omni_thinker.rewards.reading.units import without_powers

_LONGEST = 200
_LARGEST_EXPONENT = 2000
_BITS = 20_000
_ENOUGH_DIGITS = 6
"""Significant digits of a decimal that may stand for a fraction."""
_FRAC = "frac"
_VARIABLE = re.compile(rf"\s*(?:[{VARIABLES}]|[B-HJ-Z])(?![A-Za-z])")
_TOKEN = re.compile(
    r"\s*(?:([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)|(\\[dtc]?frac)|(\\times|\\cdot|[×·*])|([-+/^(){}]))"
)


@dataclass(frozen=True, slots=True)
class Value:
    """A number. decimal: it is written in decimals, maybe rounded. percent: its unit is a percent."""

    number: Fraction
    decimal: bool = False
    percent: bool = False


def read_value(text: str) -> Value | None:
    """The value of a text that is one number and at most a unit, or a product of numbers and powers. Else None."""
    if len(text) > _LONGEST or "=" in text:
        return None
    text = without_powers(plain(text)).replace("$", " ").strip(" *\n")
    reading = leading_number(text, whole=True)
    if reading.value is not None:
        unit = text.partition(reading.text)[2]
        return as_value(reading) if reading.bare and not _VARIABLE.match(unit) else None
    number = to_number(text)
    if number is None:
        number = _Product(text.rstrip(".")).value()
    return None if number is None else Value(number)


def as_value(reading: Reading) -> Value | None:
    """The value of what was read."""
    if reading.value is None:
        return None
    return Value(reading.value, "." in reading.text.strip("."), reading.percent)


def same_value(gold: Value, answer: Value) -> bool:
    """Whether two values are equal. A decimal of six digits or more may be a fraction, rounded; a percent its share."""
    if _same(gold, answer):
        return True
    if gold.percent == answer.percent:
        return False
    hundredth = Fraction(1, 100)
    first = Value(gold.number * hundredth, gold.decimal) if gold.percent else gold
    second = Value(answer.number * hundredth, answer.decimal) if answer.percent else answer
    return _same(first, second)


def _same(first: Value, second: Value) -> bool:
    if first.number == second.number:
        return True
    if first.decimal == second.decimal:
        return False
    rounded, exact = (first.number, second.number) if first.decimal else (second.number, first.number)
    if not exact:
        return False
    # The digits of the decimal, and half a unit (a whole one where it was cut) of its last place.
    digits = Decimal(rounded.numerator) / Decimal(rounded.denominator)
    _, figures, exponent = digits.normalize().as_tuple()
    if len(figures) < _ENOUGH_DIGITS or not isinstance(exponent, int):
        return False
    return abs(rounded - exact) < Fraction(10) ** exponent


class _Product:
    """A reader of products of integers, decimals, fractions and powers: \\frac{1}{2^{90}}, 6.63 · 10^{-34}."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._place = 0

    def value(self) -> Fraction | None:
        try:
            value = self._product()
        except (ValueError, ZeroDivisionError, RecursionError):
            return None
        return value if self._place == len(self._tokens) else None

    def _next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def _take(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(token)
        self._place += 1

    def _product(self) -> Fraction:
        value = self._power()
        while (sign := self._next()) in ("*", "/"):
            self._place += 1
            other = self._power()
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def _power(self) -> Fraction:
        if self._next() == "-":
            self._place += 1
            return -self._power()
        base = self._atom()
        if self._next() != "^":
            return base
        self._place += 1
        exponent = self._group() if self._next() in ("{", "(") else self._signed()
        if exponent.denominator != 1 or abs(exponent) > _LARGEST_EXPONENT or _bits(base) * abs(exponent) > _BITS:
            raise ValueError(exponent)
        return Fraction(base ** int(exponent))

    def _signed(self) -> Fraction:
        if self._next() == "-":
            self._place += 1
            return -self._atom()
        return self._atom()

    def _atom(self) -> Fraction:
        token = self._next()
        if token == _FRAC:
            self._place += 1
            return _bounded(self._group() / self._group())
        if token in ("(", "{"):
            return self._group()
        self._place += 1
        return _bounded(Fraction(token))

    def _group(self) -> Fraction:
        close = {"(": ")", "{": "}"}.get(self._next())
        if close is None:
            return self._atom()
        self._place += 1
        value = self._product()
        self._take(close)
        return value


def _tokens(text: str) -> list[str]:
    """The tokens of a product; one that no number can be read from where the text is something else."""
    tokens, place = [], 0
    while place < len(text.rstrip()):
        match = _TOKEN.match(text, place)
        if not match:
            return ["?"]
        number, frac, times, sign = match.groups()
        tokens.append(number or (frac and _FRAC) or (times and "*") or sign)
        place = match.end()
    return tokens


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _BITS:
        raise ValueError("too long")
    return value
