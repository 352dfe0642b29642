"""Math-Verify in a worker process. A script for isolation/calls.py, never imported.

Its alarms are off: they would need the main thread, and the parent keeps the deadline anyway."""

import logging
from typing import Any

from math_verify import parse, verify

for _name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

MAY_RUN = frozenset({"Integer", "Float", "Rational", "Add", "Mul", "Pow"})
"""SymPy's own parser hands numbers and their sums to `eval`; nothing else that comes of a text may run."""
MAY_RUN_IN = frozenset({"/sympy/polys/monomials.py:_build", "/sympy/parsing/sympy_parser.py:parse_expr"})
"""SymPy writes functions on monomials, from their number of variables alone, and imports itself for its parser."""


def _parsed(text: str) -> list[Any]:
    parsed: list[Any] = parse(text, parsing_timeout=None)
    return parsed


def _parsed_gold(text: str) -> list[Any]:
    # A gold without LaTeX marks is one expression; marked as such it isn't mistaken for a number with words around.
    wrapped = text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"${text}$"
    return _parsed(wrapped) or _parsed(text)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """{"gold", "text"} -> {"equal": bool}; {"gold"} alone -> {"parses": bool}."""
    gold = _parsed_gold(request["gold"])
    if "text" not in request:
        # A text that nothing could be made of comes back as it is.
        return {"parses": any(not isinstance(value, str) for value in gold)}
    if not gold:
        return {"error": "the gold answer can't be parsed"}
    return {"equal": bool(verify(gold, _parsed(request["text"]), timeout_seconds=None))}
