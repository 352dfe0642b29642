"""Reading a final number out of text: exact, in-process, never raising."""

import re
from fractions import Fraction

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3}(?![0-9]))?|\.[0-9]+"
# A minus belongs to the number unless something stands before it that it could be subtracted from.
_SIGNED = rf"(?:(?<![\w.)\]}}])[-+]\s?)?[$€£]?\s?(?:(?<=[$€£\s])-)?(?<![0-9.])(?:{NUMBER})"
_FIND = re.compile(_SIGNED)
_ALONE = re.compile(rf"\s*([-+]?)\s*[$€£]?\s*([-+]?)({NUMBER})\s*(?:[$€£%]|\\%)?\s*\.?\s*")
_FRACTION = re.compile(r"\s*([-+]?)\s*([0-9]{1,30})\s*/\s*([0-9]{1,30})\s*\.?\s*")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*\{\s*(-?[0-9]{1,30})\s*\}\s*\{\s*(-?[0-9]{1,30})\s*\}")
_JOINS = {"", ",", ";", "|", "/", "\\", "&", "or", "and", "to", ", or", ", and", ",or", ",and", "and/or"}
_OPERATORS = {"+", "-", "*", "/", "^", "×", "·", "÷", "\\times", "\\cdot"}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?<![\w\\])[A-Za-z]\s*=(?!=)")
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\bno|[<>≤≥≠±~^_]|\\(?:neq?|[lg]eq?|[lg]t|pm|mp|sim|approx))\s*\$?\s*$", re.IGNORECASE
)
# What makes a number part of something else: an operator, a bracket, a power, a variable, a function of LaTeX.
_PART = re.compile(
    r"""\s*(?:
        [-+*/^!<>≤≥≠±~_:×÷·(\[²³¹⁰-⁹½¼¾](?![-\s]*$)
      | [!²³¹⁰-⁹]
      | \\(?!circ|degree|%|text|mathrm|,|;|\ |\)|\]|quad\s*$)
      | \.\.
    )
    | [xyznkabcpqrije](?![A-Za-z])""",
    re.VERBOSE,
)
_QUOTIENT = re.compile(r"\s*/\s*\D")
_HEDGED = re.compile(r"\b(?:or|maybe|perhaps|possibly|either)\b", re.IGNORECASE)
_MARKUP = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
_SPACES = re.compile(r"\\[,!;: ]|\{,\}|\\left|\\right|\\\(|\\\)|\\\[|\\\]")
LONGEST_NUMBER = 400
"""Digits. Longer ones are no number here (Python refuses to convert them)."""


def plain(text: str) -> str:
    """`text` without the LaTeX that people wrap numbers in."""
    text = _MARKUP.sub(r" \1 ", text)
    text = _SPACES.sub(lambda match: "," if match.group() == "{,}" else " " if match.group() == "\\ " else "", text)
    text = _DEGREES.sub("", text)
    text = _LATEX_FRACTION.sub(r" \1/\2 ", text)
    return text.replace("\\$", "$").replace("\\%", "%").replace("−", "-").replace("**", "").replace("`", "")


def to_number(text: str, fractions: bool = False) -> Fraction | None:
    """The value of a text that is one number: 7, -3.50, 1,234, $12, 12., 12%; 3/4 with `fractions`. Else None."""
    if len(text) > LONGEST_NUMBER:
        return None
    text = text.strip()
    match = _ALONE.fullmatch(text)
    if match:
        outer, inner, digits = match.groups()
        if outer and inner:
            return None
        value = Fraction(digits.replace(",", ""))
        return -value if "-" in (outer, inner) else value
    match = _FRACTION.fullmatch(text) if fractions else None
    if match and int(match[3]):
        value = Fraction(int(match[2]), int(match[3]))
        return -value if match[1] == "-" else value
    return None


def _value(token: str) -> Fraction | None:
    """The value of a found token."""
    return to_number(re.sub(r"\s", "", token))


def _found(text: str) -> list[re.Match[str]]:
    return [match for match in _FIND.finditer(text) if len(match.group()) <= LONGEST_NUMBER]


def has_words(text: str) -> bool:
    """Whether there is prose (a word of two letters that isn't a connector or a unit's exponent)."""
    return any(word.casefold() not in ("or", "and", "to") for word in re.findall(r"[^\W\d_]{2,}", text))


def leading_number(segment: str, fractions: bool = False, *, whole: bool = False) -> Fraction | None:
    """The number that an announced answer ("the answer is ...") begins with.

    After the last "=" where there is one. "3 million" is 3000000. None where no number is there, where it is denied or
    only a bound ("not 3", "> 3"), where others are offered beside it ("3 or 4", "3, 4", "3 4"), and where it is part of
    an expression ("3 + 4", "3x", "3!", 3 times a root). With `whole` (a box, a "####" line) no other number may follow.
    """
    segment = plain(segment)
    if len(_ASSIGNED.findall(segment)) > 1:
        return None  # "x = 3, y = 4" is several answers
    segment = segment.rpartition("=")[2]
    alone = to_number(segment.replace("$", " ").strip(" .*\n"), fractions)
    if alone is not None:
        return alone
    matches = _found(segment)
    if not matches:
        return None
    first, before, after = _value(matches[0].group()), segment[: matches[0].start()], segment[matches[0].end() :]
    if first is None or _DENIED.search(before) or _PART.match(after) or (fractions and _QUOTIENT.match(after)):
        return None
    if len(matches) > 1:
        between = segment[matches[0].end() : matches[1].start()]
        other = _value(matches[1].group()) != first
        if other and (between.strip().casefold() in _JOINS | _OPERATORS or whole):
            return None
    if whole and _HEDGED.search(after):
        return None
    scale = _SCALE.match(after)
    return first * _SCALES[scale[1].casefold()] if scale else first


def last_number(text: str, fractions: bool = False) -> Fraction | None:
    """The last number of a text, as is usual for GSM8K.

    Without prose the text must be [expression =] number. A list of different numbers at the end ("1 2 3 4 5",
    "3 or 4") has no last one."""
    text = plain(text).strip()
    if not has_words(text):
        return to_number(text.rpartition("=")[2].replace("$", " ").strip(), fractions)
    matches = _found(text)
    if not matches:
        return None
    last = _value(matches[-1].group())
    if len(matches) > 1:
        between = text[matches[-2].end() : matches[-1].start()]
        if between.strip().casefold() in _JOINS and _value(matches[-2].group()) != last:
            return None
    return last
