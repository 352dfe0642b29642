"""Math problems whose gold is inside a worked solution, or beside one."""

import re
from collections.abc import Sequence

from omni_thinker.rewards.extract import boxed
from omni_thinker.tasks.formats.base import Format, Unusable, Values, always
from omni_thinker.tasks.turns import is_turns

QUESTION = ("question", "problem", "prompt", "query", "instruction", "Question", "Problem")
_MARK = "####"
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s$]+)")
_LATEX = re.compile(r"\\[A-Za-z]+|\$")


def _text(values: Values, field: str) -> str:
    value = values.get(field)
    return value if isinstance(value, str) else ""


def after_mark(text: str) -> str | None:
    """What follows the last ####, on its line; None where there is none."""
    lines = text.rpartition(_MARK)[2].strip().splitlines() if _MARK in text else []
    return lines[0].strip() if lines else None


def last_box(text: str) -> str | None:
    """What the last \\boxed{} holds, also without braces; None where there is none."""
    bare = _BARE_BOX.findall(text)
    return boxed(text) or (bare[-1].rstrip(".") if bare else None)


def final_answer(text: str) -> str:
    """The gold of a worked solution: after ####, else in the last box, else the whole text."""
    return after_mark(text) or last_box(text) or text.strip()


def _marked(values: Values) -> Values:
    answer = after_mark(_text(values, "answer"))
    if answer is None:
        raise Unusable("answer", f"has no line that begins with {_MARK}, which the gold follows")
    return {"answer": answer}


def _boxed(values: Values) -> Values:
    answer = last_box(_text(values, "answer"))
    if answer is None:
        raise Unusable("answer", "has no \\boxed{}, which the gold is in")
    return {"answer": answer}


def _final(values: Values) -> Values:
    return {"answer": final_answer(values["answer"])} if isinstance(values.get("answer"), str) else {}


def _speaks_math(rows: Sequence[Values]) -> str:
    texts = [_text(values, "answer") for values in rows]
    return "math" if any(_LATEX.search(text) or _MARK in text for text in texts) else ""


GSM8K = Format(
    "gsm8k",
    "an answer with a line of `####`",
    {"prompt": QUESTION, "answer": ("answer", "solution", "response", "output")},
    ("prompt", "answer"),
    fits=lambda values: not is_turns(values["prompt"]) and after_mark(_text(values, "answer")) is not None,
    take=_marked,
    reward=always("math"),
)
MATH_500 = Format(
    "math500",
    "a short `answer` (or `final_answer`) beside a `solution`",
    {
        "prompt": QUESTION,
        "answer": ("answer", "final_answer", "Answer", "expected_answer"),
        "solution": ("solution", "Solution", "r1_solution_1", "generated_solution"),
        "id": ("unique_id", "id", "ID"),
    },
    ("prompt", "answer", "solution"),
    fits=lambda values: not is_turns(values["prompt"]) and isinstance(values["answer"], str | int | float),
    take=_final,
    reward=always("math"),
)
MATH = Format(
    "math",
    "a worked solution with `\\boxed{}`",
    {"prompt": QUESTION, "answer": ("solution", "answer", "response", "output", "Solution")},
    ("prompt", "answer"),
    fits=lambda values: not is_turns(values["prompt"]) and last_box(_text(values, "answer")) is not None,
    take=_boxed,
    reward=always("math"),
)
TRL = Format(
    "trl",
    "a `prompt` of messages beside a `solution`, `answer` or `ground_truth`",
    {"prompt": ("prompt", "messages"), "answer": ("solution", "answer", "ground_truth")},
    ("prompt", "answer"),
    fits=lambda values: is_turns(values["prompt"]),
    take=_final,
    reward=_speaks_math,
)
