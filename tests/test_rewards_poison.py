"""Texts made to break verifiers: each costs its deadline at most, gains nothing, and harms no other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.isolation import shutdown, use_workers
from omni_thinker.rewards.constraints import Constraints, sentences
from omni_thinker.rewards.extract import announced, boxed
from omni_thinker.rewards.gates import Format
from omni_thinker.rewards.math import Math
from omni_thinker.rewards.parts import Part
from omni_thinker.rewards.programs.solution import find_solution
from omni_thinker.rewards.reading.numbers import last_number, leading_number
from omni_thinker.rewards.text import Exact, ShortAnswer, normalise
from omni_thinker.rewards.validate import group_of
from omni_thinker.types import Problem, Score

DEADLINE_S = 5.0

POISON = {
    "empty": "", "white space": " \n\t " * 100, "many spaces": " " * 50_000, "NUL": "\0" * 100, "NUL in a number": "4\0002",
    "lone surrogate": "\ud800", "surrogate in a box": "\\boxed{\udfff}", "marks from right to left": "\u202e24\u202c \u200f",
    "letters": "a" * 50_000, "digits": "9" * 50_000, "digits in a box": "\\boxed{" + "9" * 50_000 + "}",
    "parentheses": "(" * 20_000, "closed parentheses": "(" * 5_000 + "1" + ")" * 5_000, "brackets": "[" * 20_000,
    "braces": "{" * 20_000 + "}" * 20_000, "boxes": "\\boxed{" * 3_000, "closed boxes": "\\boxed{" * 800 + "1" + "}" * 800,
    "hashes": "####" * 5_000, "announcements": "the answer is " * 5_000, "equals": "=" * 50_000, "minus": "-" * 50_000 + "1",
    "commas": "1," * 25_000, "points": "1." * 25_000, "slashes": "1/" * 500, "dollars": "$" * 1_000,
    "backslashes": "\\" * 50_000, "tower": "1**1**1**1", "LaTeX tower": "$1^{1^{1^{1}}}$", "boxed tower": "\\boxed{1^{1^{11}}}",
    "tower of ones": "1" + "^1" * 500, "factorial": "$10000!$", "factorials": "$((3!)!)!$",
    "fractions": "\\frac{1}{" * 30 + "1" + "}" * 30, "roots": "$" + "\\sqrt{" * 30 + "2" + "}" * 30 + "$",
    "matrix": "$\\begin{pmatrix}" + (" & ".join("1" * 9) + "\\\\") * 9 + "\\end{pmatrix}$",
    "sum": "$\\sum_{i=1}^{10} i$", "integral": "$\\int_0^{1} x dx$", "polynomial": "$(x+y+1)^{3}$", "set": "\\{" + ",".join(map(str, range(40))) + "\\}",
    "division by zero": "1/0", "nan": "nan", "infinity": "$\\infty$", "exponent": "1e999999999", "small": "1e-999999999",
    "left": "\\left(" * 3_000, "text": "\\text{" * 3_000, "unbalanced": "$$\\[\\(\\begin{cases}" * 500,
    "combining marks": "e" + "\u0301" * 20_000, "joiners": "\u200d" * 20_000, "figures of another script": "\u0664\u0663",
    "wide figures": "\uff14\uff13", "emoji": "\U0001f600" * 10_000, "ligature": "\ufdfa" * 2_000, "lists": "1 2 3 4 5 6 7 8 9 " * 100,
    "regular expression": "a" * 40 + "!", "literal": "[" * 1_500 + "]" * 1_500, "big literal": "1" + "0" * 1_990,
    "code": "```python\n" * 5_000, "dots": "." * 50_000, "quotes": "\"'" * 20_000,
}  # fmt: skip
GOLDS = {"integer": "42", "LaTeX": "\\frac{\\sqrt{3}}{2}", "tuple": "(1, 2)", "set": "\\{1, 2, 3\\}"}


@pytest.fixture(autouse=True, scope="module")
def _closed() -> Iterator[None]:
    yield
    shutdown()


def score(part: Part, problem: Problem, texts: Sequence[str]) -> list[Score]:
    return asyncio.run(part.score(group_of(texts), problem))


@pytest.mark.parametrize("kind", GOLDS)
def test_math_of_poison_texts_ends_in_its_deadline_and_never_scores_1(kind: str) -> None:
    problem = Problem("p", "math", "", GOLDS[kind])
    score(Math(), problem, ["$\\sqrt{5}$"])  # starts the worker
    for name, text in POISON.items():
        begin = time.monotonic()
        [found] = score(Math(), problem, [text])
        assert time.monotonic() - begin < DEADLINE_S + 1.0, name
        assert found.value != 1.0, name
    assert [s.value for s in score(Math(), problem, [f"\\boxed{{{GOLDS[kind]}}}"])] == [1.0], "the pool lives"


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (ShortAnswer(), Problem("p", "qa", "", "Paris", {"choices": ["Paris", "Rome"], "letters_ok": True})),
        (Exact(), Problem("p", "qa", "", "[1, 2]")),
        (Constraints(), Problem("p", "w", "", None, {"constraints": {"include": ["sea"], "max_words": 9}})),
        (Format(), Problem("p", "w", "", None, {"format": "(a+)+b"})),
    ],
)
def test_text_parts_of_poison_texts_never_score_1(part: Part, problem: Problem) -> None:
    begin = time.monotonic()
    found = score(part, problem, list(POISON.values()))
    assert all(s.value != 1.0 for s in found)
    assert time.monotonic() - begin < 20.0


@given(st.text(max_size=300) | st.text(alphabet="0123456789.,-+/$%\\{}()[]#=eE boxedfrac\n", max_size=300))
@settings(max_examples=300, deadline=None)
def test_extraction_never_raises(text: str) -> None:
    for extract in (boxed, announced, last_number, leading_number, find_solution, normalise, sentences):
        extract(text)
    assert last_number(text) == last_number(text)


def _mix() -> tuple[list[tuple[Problem, str]], list[int]]:
    """10,000 good items and 1,000 poisoned ones, and where the good ones are."""
    rng = random.Random(7)
    latex = ["\\frac{1}{2}", "\\sqrt{2}", "(1, 2)", "\\{1, 2\\}", "x^2+1"]
    items: list[tuple[Problem, str, bool]] = []
    for i in range(10_000):
        gold = latex[i % 5] if i % 25 == 0 else str(i)
        items.append((Problem(f"g{i}", "math", "", gold), f"\\boxed{{{gold if i % 3 else '7'}}}", True))
    poison = list(POISON.values())
    for i in range(1_000):
        items.append((Problem(f"p{i}", "math", "", "42" if i % 4 else latex[i % 5]), poison[i % len(poison)], False))
    rng.shuffle(items)
    return [(problem, text) for problem, text, _ in items], [n for n, item in enumerate(items) if item[2]]


def _scored(pairs: Sequence[tuple[Problem, str]]) -> list[Score]:
    async def everything() -> list[Score]:
        limit = asyncio.Semaphore(64)

        async def one(problem: Problem, text: str) -> Score:
            async with limit:
                return (await Math().score(group_of([text]), problem))[0]

        return list(await asyncio.gather(*(one(*pair) for pair in pairs)))

    return asyncio.run(everything())


@pytest.mark.timeout(400)
def test_poison_texts_change_no_score_of_other_items() -> None:
    pairs, good = _mix()
    alone = _scored([pairs[place] for place in good])
    mixed = _scored(pairs)
    assert [mixed[place] for place in good] == alone
    assert {s.status for s in alone} == {"value"}
    assert 0.6 < sum(s.value or 0 for s in alone) / len(alone) < 0.7
    assert not any(mixed[n].value == 1.0 for n in set(range(len(pairs))) - set(good))


def test_math_scores_are_the_same_in_any_order_batch_and_workers() -> None:
    pairs = [*_mix()[0][:60], (Problem("x", "math", "", "\\frac{1}{2}"), "$0.5$")]
    whole = _scored(pairs)
    assert _scored(pairs[::-1]) == whole[::-1]
    assert [_scored([pair])[0] for pair in pairs] == whole
    try:
        for workers in (1, 3):
            shutdown()
            use_workers(workers)
            assert _scored(pairs) == whole
    finally:
        shutdown()
        use_workers(None)
