"""Wrong options for short-form questions: from a row's own columns, from other rows, or near a number.

Short answers with distractors in the prompt are easier to verify than free ones and harder to guess than letters
(arXiv 2507.14783). Every function returns options that differ from the answer, and from each other, after
normalisation, and the same ones for the same seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from omni_thinker.rewards.numbers import to_number
from omni_thinker.rewards.text import normalise

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?![\d.]*[eE]\d)")
_LONGEST = 25
_TRIES = 200


def from_columns(row: Mapping[str, Any], columns: Sequence[str], answer: str) -> list[str]:
    """The texts of `columns` (such as distractor1, distractor2, ...), empty ones left out."""
    return _distinct((str(row[name]) for name in columns if row.get(name) not in (None, "")), answer)


def from_rows(answers: Sequence[str], answer: str, count: int, seed: int) -> list[str]:
    """Up to `count` >= 0 answers of other rows: of those most alike in length and kind, a random choice."""
    others = _distinct(answers, answer)
    number = _NUMBER.fullmatch(answer.strip()) is not None

    def unlike(text: str) -> tuple[bool, int]:
        return (_NUMBER.fullmatch(text.strip()) is not None) != number, abs(len(text) - len(answer))

    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    rng = random.Random(f"rows/{seed}/{answer}")
    near = sorted(others, key=lambda text: (*unlike(text), text))[: 4 * count]
    return rng.sample(near, min(count, len(near)))


def numeric_neighbours(answer: str, count: int, seed: int) -> list[str]:
    """`count` numbers near the first one in `answer`, written like it: decimals, thousands separators, unit, sign.

    Raises ValueError where there is no number in it.
    """
    found = _NUMBER.search(answer)
    if found is None or len(found.group()) > _LONGEST:
        raise ValueError(f"there is no number with neighbours in {answer[:60]!r}")
    text = found.group()
    decimals = len(text.partition(".")[2])
    value = Decimal(text.replace(",", ""))
    unit = Decimal(1).scaleb(-decimals)
    width = len(text.lstrip("+-").partition(".")[0]) if text.lstrip("+-").startswith("0") else 0
    rng = random.Random(f"numbers/{seed}/{answer}")
    made: list[str] = []
    for attempt in range(_TRIES):
        reach = 1 + attempt // 8
        shares = (Decimal("0.1"), Decimal("0.5"), Decimal(1))
        step = rng.choice([unit * rng.randint(1, 3 * reach), abs(value) * rng.choice(shares), 10 * unit * reach])
        changed = (value + rng.choice([-1, 1]) * max(unit, step)).quantize(unit)
        if value >= 0 > changed:
            continue  # a count is not below zero
        digits = format(abs(changed), f"{',' if ',' in text else ''}.{decimals}f")
        sign = "-" if changed < 0 else "+" if text.startswith("+") else ""
        number = sign + digits.rjust(width + (decimals and decimals + 1), "0")
        made = _distinct([*made, answer[: found.start()] + number + answer[found.end() :]], answer)
        if len(made) == count:
            break
    return made


def shuffled(answer: str, distractors: Sequence[str], seed: int) -> list[str]:
    """The answer among its distractors, in an order that says nothing about which it is."""
    options = [answer, *_distinct(distractors, answer)]
    random.Random(f"order/{seed}/{answer}").shuffle(options)
    return options


def _distinct(texts: Iterable[str], answer: str) -> list[str]:
    seen: set[object] = {_meaning(answer), ""}
    kept = []
    for text in texts:
        plain = _meaning(text)
        if plain not in seen:
            seen.add(plain)
            kept.append(text)
    return kept


def _meaning(text: str) -> object:
    """The value where a text is a number however written, else its normal form."""
    number = to_number(normalise(text).replace("\u2044", "/"), fractions=True)
    return normalise(text) if number is None else number
