"""Whether a script printed what a test expects. Loaded by the tests' side of the sandbox: standard library alone."""

import math
import re

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_SHOWN = 40


def difference(given: str, wanted: str, tolerance: float) -> str | None:
    """The first difference in words, or None. White space at the ends and between words, and blank lines, don't count.

    tolerance: how far numbers may be apart, absolutely or relative to the wanted one, where either has a decimal point
    or an exponent; 0 compares their texts."""
    lines, wanted_lines = _words(given), _words(wanted)
    for number, (line, wanted_line) in enumerate(zip(lines, wanted_lines, strict=False), 1):
        same_length = len(line) == len(wanted_line)
        if not same_length or not all(_same(*pair, tolerance) for pair in zip(line, wanted_line, strict=True)):
            return f"line {number} is {_short(line)}, not {_short(wanted_line)}"
    if len(lines) != len(wanted_lines):
        return f"{len(lines)} lines of output, not {len(wanted_lines)}"
    return None


def _words(text: str) -> list[list[str]]:
    return [words for line in re.split(r"\r\n|\r|\n", text) if (words := line.split())]


def _same(word: str, wanted: str, tolerance: float) -> bool:
    if word == wanted:
        return True
    if not tolerance or not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(wanted)):
        return False
    if not set(".eE") & set(word + wanted):
        return False
    number, target = float(word), float(wanted)
    return math.isfinite(number) and math.isfinite(target) and abs(number - target) <= tolerance * max(1.0, abs(target))


def _short(words: list[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
