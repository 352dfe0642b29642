"""Math-Verify in a worker process. A script for isolation/calls.py, never imported.

Its alarms are off: they would need the main thread, and the parent keeps the deadline anyway."""

import logging
from typing import Any

from math_verify import parse, verify
from sympy import Basic, MatrixBase, Rational, UnevaluatedExpr

for _name in ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

MAY_RUN = frozenset({"Integer", "Float", "Rational", "Add", "Mul", "Pow"})
"""SymPy's own parser hands numbers and their sums to `eval`; nothing else that comes of a text may run."""
MAY_RUN_IN = frozenset({"/sympy/polys/monomials.py:_build", "/sympy/parsing/sympy_parser.py:parse_expr"})
"""SymPy writes functions on monomials, from their number of variables alone, and imports itself for its parser."""

_CLOSE = 1e-5
_NOISE = 1e-20
"""What is left of an expression that is 0, of 30 digits."""


def _parsed(text: str) -> list[Any]:
    # To Math-Verify \varnothing is the name of a variable.
    parsed: list[Any] = parse(text.replace(r"\varnothing", r"\emptyset"), parsing_timeout=None)
    return parsed


def _parsed_gold(text: str) -> list[Any]:
    # A gold without LaTeX marks is one expression; marked as such it isn't mistaken for a number with words around.
    wrapped = text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"${text}$"
    return _parsed(wrapped) or _parsed(text)


def _far(gold: Any, answer: Any) -> bool:
    """Whether two things differ by their size alone, so that Math-Verify needn't be asked.

    It would take very small ones as equal, for it compares with an absolute tolerance, and it may never end where a
    logarithm is compared with a large number."""
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        pairs = zip(gold.flat(), answer.flat(), strict=False)
        return any(_far(first, second) for first, second in pairs)
    if not isinstance(gold, Basic) or not isinstance(answer, Basic):
        return False
    if gold.is_number and answer.is_number:
        return _apart(gold, answer)
    if gold.is_Relational or answer.is_Relational or not gold.args or len(gold.args) != len(answer.args):
        return False
    if gold.is_Atom or getattr(gold, "is_Add", False) or getattr(gold, "is_Mul", False):
        return _apart_at_a_point(gold, answer)
    if {type(gold).__name__, type(answer).__name__} <= {"Tuple", "FiniteSet", "Interval"}:
        return any(_far(first, second) for first, second in zip(_ordered(gold), _ordered(answer), strict=True))
    return False


def _ordered(group: Any) -> list[Any]:
    """The elements of a set by value; those of a tuple as they are."""
    if type(group).__name__ != "FiniteSet" or not all(item.is_number and item.is_real for item in group.args):
        return list(group.args)
    return sorted(group.args, key=lambda item: float(item.evalf(30)))


def _apart(gold: Any, answer: Any) -> bool:
    """Whether two numbers differ by more than a share of the larger."""
    if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):
        return False  # a percent may be its hundredth
    first, second = (complex(value.doit().evalf(30)) for value in (gold, answer))
    sizes = [abs(value) for value in (first, second)]
    if min(sizes) < _NOISE and not (gold.is_Rational and answer.is_Rational):
        return not _tiny(gold, answer)
    return abs(first - second) > _CLOSE * max(sizes)


def _tiny(gold: Any, answer: Any) -> bool:
    """Whether the exact ratio of two very small numbers is 1, or both are 0."""
    difference, size = (gold - answer).evalf(30), gold.evalf(30)
    return abs(difference) <= _CLOSE * abs(size) or bool((gold - answer).equals(0))


def _apart_at_a_point(gold: Any, answer: Any) -> bool:
    """Whether two expressions differ by more than a share of the larger where their variables are some numbers."""
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {name: Rational(7 + 4 * place, 5) for place, name in enumerate(names)}
    first, second = gold.subs(point), answer.subs(point)
    return bool(first.is_number and second.is_number and _apart(first, second))


def _same(gold: Any, answer: Any) -> bool:
    try:
        far = _far(gold, answer)
    except (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError):
        far = False  # nothing that has a size
    return not far and bool(verify(gold, answer, timeout_seconds=None))


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """{"gold", "texts"} -> {"equal": whether one of the texts is the gold}; {"gold"} alone -> {"parses": bool}."""
    gold = _parsed_gold(request["gold"])
    if "texts" not in request:
        # A text that nothing could be made of comes back as it is.
        return {"parses": any(not isinstance(value, str) for value in gold)}
    if not gold:
        return {"error": "the gold answer can't be parsed"}
    for text in request["texts"]:
        if any(_same(one, other) for one in gold for other in _parsed(text)):
            return {"equal": True}
    return {"equal": False}
