"""Texts and Python literals that must be exact."""

import ast
import unicodedata
from collections.abc import Hashable
from typing import Any

from omni_thinker.rewards.extract import Found, without_thoughts
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.types import Problem, Sample, Score

_LONGEST_LITERAL = 2000


class Exact(SamplePart):
    """1 where the response, after its thoughts, equals problem.answer.

    A gold that is a Python literal is compared as a value, types included (1 is neither True nor 1.0; 'a' is "a").
    Any other gold is compared as text: NFKC, white space collapsed, case kept. Back-ticks around it don't count."""

    votes = True

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        gold, found = _bare(problem.answer), _taken(sample.text)
        parsed, value = _literal(gold)
        if not parsed:
            return _scored(found, None if _spaced(gold) == _spaced(found.text) else "not the gold text")
        also, other = _literal(found.text)
        if not also:
            return _scored(found, "no literal")
        return _scored(found, None if bool(_typed(value) == _typed(other)) else "not the gold value")

    def answer_of(self, sample: Sample, problem: Problem) -> Hashable | None:
        """The value of a literal where the gold is one, else the text."""
        text = _taken(sample.text).text
        if not text:
            return None
        (literal, _), (also, value) = _literal(_bare(problem.answer or "")), _literal(text)
        return (True, _typed(value)) if literal and also else (False, _spaced(text))

    def check(self, problem: Problem) -> str | None:
        return None if problem.answer is not None and problem.answer.strip() else "exact needs an answer"

    def wrong_answer(self, problem: Problem) -> str | None:
        return f"not {problem.answer}"


def _scored(found: Found, lost: str | None) -> Score:
    return valued(float(lost is None), found.words() if lost is None else f"{found.words()}: {lost}")


def _taken(text: str) -> Found:
    text = without_thoughts(text)
    bare = _bare(text)
    return Found(bare, "whole" if bare == text.strip() else "block")


def _bare(text: str) -> str:
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2][:-3]
    return text.strip().strip("`").strip()


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _literal(text: str) -> tuple[bool, Any]:
    # Short texts only: the parser's stack grows with the nesting of what a model wrote.
    if len(text) > _LONGEST_LITERAL:
        return False, None
    try:
        return True, ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False, None


def _typed(value: Any) -> Any:
    """Something that is equal where value and type are, at every depth (True is no 1, and 0.0 no -0.0)."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_typed, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_typed, value))
    if isinstance(value, dict):
        return dict, frozenset((_typed(key), _typed(item)) for key, item in value.items())
    return type(value), repr(value) if isinstance(value, (float, complex)) else value
