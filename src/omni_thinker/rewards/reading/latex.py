"""LaTeX around numbers, taken off: 12\\text{ cm}^2 is "12 cm", 2\\frac{1}{2} is "2 1/2", 3 \\times 10^3 is "3e3"."""

import re
from fractions import Fraction

from omni_thinker.rewards.reading.characters import SUPERSCRIPTS, fold

VARIABLES = "xyznkabcpqrije"
"""Letters that make an expression of the number that they stand beside; other letters are units (12 m)."""
_MARKUP = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bold|boldsymbol|operatorname|emph|unit)"
    r"\s*\{([^{}]*)\}(\s*\^\s*(?:\{[^{}]*\}|-?[0-9])|[²³])?"
)
_UNIT_SIGNS = re.compile(
    r"\\(?:(mu)(?=\s*(?:\\[,;: ]|~)?\s*(?:\\text|\\mathrm|[A-Za-z]))|(Omega|ohm)|(AA|celsius|angstrom))(?![A-Za-z])"
)
_DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\(?:circ|degree)\s*\})|\\(?:degree|textdegree)(?![A-Za-z])|°")
_SPACES = re.compile(
    r"\\!\s*|\\[,;: ]|\{[,:]\}|\\left(?![a-z])|\\right(?![a-z])|\\\(|\\\)|\\\[|\\\]|~(?=\s*(?:\\[a-z ]|[A-Za-z]))"
)
_SLOT = r"(?:\{\s*([-+]?[0-9]{1,30})\s*\}|\s*([0-9]))"
_FRACTION = re.compile(rf"\\(?:[dtc]?frac|nicefrac|sfrac)\s*{_SLOT}\s*{_SLOT}")
_REPEATING = re.compile(
    r"(?<![\d.])(\d{0,30})\.(\d{0,30})(?:\\(?:overline|bar|dot)\s*(?:\{\s*(\d{1,30})\s*\}|(\d))|\((\d{1,30})\)|"
    r"(\d)\6{2,30}(?:\.\.\.|…|\\[ld]?dots))(?![\d(])"
)
_POWER_OF_TEN = re.compile(
    r"(?<![0-9A-Za-z_.^])(?:([0-9][0-9,]{0,60}(?:\.[0-9]{1,60})?|\.[0-9]{1,60})\s*(?:[×x*·]|\\times(?![a-z])|\\cdot(?![a-z]))\s*)?"
    r"\{?10\}?\s*(?:(?:\^|\*\*)\s*(?:\{\s*([-+]?[0-9]{1,3})\s*\}|\(\s*([-+]?[0-9]{1,3})\s*\)|([-+]?[0-9]{1,3}))"
    r"|([⁻⁺]?[⁰¹²³⁴-⁹]{1,3}))(?!\.?[0-9⁰-⁹]|\^)"
)
_BRACED = re.compile(r"(?<![\w^_}\])])\{([^{}]*)\}")


def plain(text: str) -> str:
    """`text` without the LaTeX that people wrap numbers in; characters folded. Meant for one answer, not for prose."""
    text = fold(text)
    if "." in text and ("\\" in text or "(" in text or ".." in text or "…" in text):
        text = _REPEATING.sub(_repeating, text)
    if "\\" in text or "{" in text or "°" in text:
        text = _MARKUP.sub(_unit, _UNIT_SIGNS.sub(lambda m: "μ" if m[1] else "Ω" if m[2] else "°", text))
        text = _SPACES.sub(_space, text)
        text = _FRACTION.sub(_fraction, text)
        text = _DEGREES.sub("", text)
    if "10" in text:
        text = _POWER_OF_TEN.sub(_power, text)
    if "{" in text:
        text = _BRACED.sub(r"\1", _BRACED.sub(r"\1", text))
    if "\\" in text:
        text = text.replace("\\$", "$").replace("\\%", "%")
    return text.replace("**", "").replace("`", "")


def _space(match: re.Match[str]) -> str:
    return {"{,}": ",", "{:}": ":", "\\ ": " ", "~": " "}.get(match[0], "")


def _unit(match: re.Match[str]) -> str:
    content, power = match[1], match[2] or ""
    name = content.strip()
    if power and name.isalpha() and not (len(name) == 1 and name in VARIABLES):
        power = ""  # of a unit
    return f" {content} {power}"


def _fraction(match: re.Match[str]) -> str:
    top, bottom = int(match[1] or match[2]), int(match[3] or match[4])
    sign = "-" if (top < 0) != (bottom < 0) else ""
    after = match.string[match.end() : match.end() + 1]
    return f" {sign}{abs(top)}/{abs(bottom)}{' ' if after.isdigit() else ''}"


def _repeating(match: re.Match[str]) -> str:
    whole, lead = match[1] or "0", match[2]
    cycle = match[3] or match[4] or match[5] or match[6]
    shift = 10 ** len(lead)
    value = Fraction(int(whole + lead), shift) + Fraction(int(cycle), (10 ** len(cycle) - 1) * shift)
    return str(value)


def _power(match: re.Match[str]) -> str:
    mantissa, *exponents = match.groups()
    exponent = next(part for part in exponents if part)
    return f"{mantissa or 1}e{int(exponent.translate(SUPERSCRIPTS))}"
