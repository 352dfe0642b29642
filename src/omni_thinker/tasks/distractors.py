"""Wrong options for short-form questions, drawn from the answers to other rows.

Short answers with distractors in the prompt are easier to verify than free ones and harder to guess than letters
(arXiv 2507.14783)."""

import random
import re
from collections.abc import Iterable
from heapq import nsmallest

from omni_thinker.rewards.reading.numbers import to_number
from omni_thinker.rewards.text import normalise

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?![\d.]*[eE]\d)")
_POOL_SIZE = 1000
"""Answers that options are drawn from. More would only take longer."""


class OtherAnswers:
    """The answers of a task's rows, to draw options from. Those that mean the same count once."""

    def __init__(self, answers: Iterable[str], seed: int) -> None:
        known = {meaning: text for text in answers if (meaning := _meaning(text)) != ""}
        drawn = random.Random(f"pool/{seed}").sample(sorted(known.items(), key=str), min(_POOL_SIZE, len(known)))
        self._pool = [(meaning, text, _is_number(text)) for meaning, text in drawn]
        self._seed = seed

    def options(self, answer: str, count: int) -> list[str]:
        """`answer` among up to `count` others, in an order that says nothing about which it is.

        The others are a random choice of those most alike in kind (number or not) and length. All differ in meaning,
        and the same seed draws the same."""
        meaning, number = _meaning(answer), _is_number(answer)
        others = (
            (kind != number, abs(len(text) - len(answer)), text)
            for normalised, text, kind in self._pool
            if normalised != meaning
        )
        near = [text for _, _, text in nsmallest(4 * count, others)]
        rng = random.Random(f"rows/{self._seed}/{answer}")
        options = [answer, *rng.sample(near, min(count, len(near)))]
        rng.shuffle(options)
        return options


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip()) is not None


def _meaning(text: str) -> object:
    """The value where a text is a number however written, else its normal form."""
    number = to_number(normalise(text).replace("\u2044", "/"))
    return normalise(text) if number is None else number
