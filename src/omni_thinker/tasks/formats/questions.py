"""Questions with a short answer, with or without choices."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.tasks.formats.base import Format, Unusable, Values
from omni_thinker.tasks.formats.math import final_answer
from omni_thinker.tasks.formats.programs import pairs_of
from omni_thinker.tasks.paths import opened

_LETTERS = "ABCDEFGHIJ"
_MATH_SOURCE = re.compile(r"math|gsm8k|aime|amc|olympiad|geometry|algebra", re.IGNORECASE)


def _choices(values: Values) -> Values:
    """Choices in columns of their own (A, B, ...) as one list."""
    if "choices" in values:
        return {}
    columns = [values[letter] for letter in _LETTERS if letter in values]
    return {"choices": [value if isinstance(value, str) else str(value) for value in columns]}


def _info(values: Values) -> Values:
    answer = values.get("answer", "")
    info = opened(values.get("info"))
    blank = isinstance(answer, str) and not answer.strip()
    if blank and not (isinstance(info, Mapping) and info):
        raise Unusable("answer", "is empty" if answer else "is missing")
    if blank:
        keys = ", ".join(map(str, list(info)[:8]))
        raise Unusable(
            "answer", f"is empty; where info holds it, set fields.answer = 'info.KEY' (it has {keys:.100}), else name "
            "a reward part of your own (python:MODULE:CLASS)"
        )  # fmt: skip
    return {"answer": final_answer(answer)} if isinstance(answer, str) else {}


def _ground_truth(values: Values) -> Values:
    """One gold, or a list whose first is the gold and whose others are aliases."""
    gold: Any = values.get("answer")
    if isinstance(gold, str) and gold.lstrip().startswith("{"):  # "[0, 1]" is an interval
        gold = opened(gold)
    if isinstance(gold, Mapping):
        if {"inputs", "outputs"} <= set(gold):
            return pairs_of(gold) | {"answer": None}
        if set(gold) != {"target"}:
            keys = ", ".join(map(str, list(gold)[:8]))
            raise Unusable("answer", f"is a table of {keys:.100}; name the gold by fields.answer, or a reward part of "
                           "your own (python:MODULE:CLASS)")  # fmt: skip
        gold = gold["target"]
    if isinstance(gold, Sequence) and not isinstance(gold, str) and gold:
        golds = [str(item) for item in gold]
        return {"answer": golds[0], **({"aliases": golds[1:]} if len(golds) > 1 else {})}
    return {"answer": final_answer(gold)} if isinstance(gold, str) else {}


def _of_source(rows: Sequence[Values]) -> str:
    words = [f"{values.get('ability', '')} {values.get('data_source', '')}" for values in rows]
    return "math" if words and all(_MATH_SOURCE.search(word) for word in words) else ""


CHOICES = Format(
    "choices",
    "a question with `choices` (or `options`, `endings`, or columns A, B, ...) and a letter, place or text as answer",
    {
        "prompt": ("question", "query", "ctx", "problem", "Question"),
        "choices": ("choices", "options", "endings"),
        "answer": ("answer", "answerKey", "label", "Answer", "correct_option", "cop"),
        "context": ("context", "passage", "article", "fact"),
        **{letter: (letter, f"option_{letter.lower()}") for letter in _LETTERS},
    },
    ("prompt", "answer"),
    fits=lambda values: "choices" in values or {"A", "B"} <= set(values),
    take=_choices,
    reward=lambda rows: "short_answer",
    template="{context}\n{prompt}\n{options}",
)
VERL = Format(
    "verl",
    "columns `data_source` and `reward_model.ground_truth`",
    {
        "prompt": ("prompt",),
        "answer": ("reward_model.ground_truth",),
        "data_source": ("data_source",),
        "ability": ("ability",),
    },
    ("prompt", "answer"),
    marks=("answer",),
    take=_ground_truth,
    reward=_of_source,
)
VERIFIERS = Format(
    "verifiers",
    "a `question` with an `answer` (or one in `info`)",
    {
        "prompt": ("question", "Question", "problem", "query", "prompt"),
        "answer": ("answer", "Answer", "final_answer", "ground_truth", "solution", "expected_answer"),
        "info": ("info",),
        "context": ("context", "passage"),
        "native": ("prompt",),
    },
    # Rows with a `prompt` and an `answer` are plain ones.
    fits=lambda values: "info" in values or ("answer" in values and values.get("native") is not values["prompt"]),
    take=_info,
    template="{context}\n{prompt}",
)
