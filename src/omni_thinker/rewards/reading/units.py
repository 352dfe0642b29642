"""Units beside a number: their powers are no numbers of their own."""

import re

_NAME = r"(?:[munkcdμ]?m|in|ft|yd|mi|s|sec|min|hr|kg|[A-Za-z]{3,})"
_POWER = re.compile(rf"(?<![A-Za-z\\])({_NAME})(?:\s*\^\s*(?:\{{\s*-?[0-9]\s*\}}|\(\s*-?[0-9]\s*\)|-?[0-9])|[²³])")


def without_powers(text: str) -> str:
    """`text` without the powers of units: "12 m^2" and "12 m²" are "12 m". Those of variables (12 x^2) stay."""
    return _POWER.sub(r"\1", text) if "^" in text or "²" in text or "³" in text else text
