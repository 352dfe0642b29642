"""Numbers and texts as a report shows them."""

import math

from omni_thinker.report.figures.svg import signed as _signed

LONGEST_TEXT = 3000
# Control characters are shown, not sent: some end a document early, others break an HTML reader.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if value is not None and math.isfinite(value) else "–"


def signed(value: float | None, digits: int = 3) -> str:
    return _signed(value, digits) if value is not None and math.isfinite(value) else "–"


def points(value: float | None) -> str:
    """A share or difference in [-1, 1] in points, without a sign."""
    return number(None if value is None else 100 * value, 1)


def share(value: float | None) -> str:
    """A share as a percentage, short: a non-zero one never reads 0."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{100 * value:.1f}%"


def duration(seconds: float) -> str:
    """`28 min 20 s`; a dash where unknown."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, left = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else "–"


def shown_text(text: str) -> str:
    """A model's text as it can be shown: controls made visible, cut where very long."""
    shown = text[:LONGEST_TEXT]
    left = len(text) - len(shown)
    return visible(shown) + (f" … [{left} more characters]" if left else "")


def visible(text: str) -> str:
    return text.translate(_CONTROLS)
