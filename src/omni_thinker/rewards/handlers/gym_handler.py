"""reasoning_gym's generators and scorers. A script for isolation/scoring.py, inside the wall; never imported."""

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_thinker.isolation.inside import guard
    from omni_thinker.rewards.handlers import gym_sets, gym_values
else:
    import guard  # as the sandbox's server has loaded it

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import gym_sets
    import gym_values

    del sys.path[0]

_MOST_SETS = 64
_BATCH_S = 10.0
_BATCH_BYTES = 1 << 20
"""A reply ends after so long, or so much, with the problems that it has by then: at least one."""
_DECOYS = ("", "nan", "0", "no answer")
"""Answers that must not earn full marks, unless one of them is right."""
_NOT_FINITE = frozenset({"nan", "inf", "infinity", "nani", "nanj", "infi", "infj", "i", "j"})
_TOLERANCE = 1e-4
_sets: dict[str, gym_sets.MadeSet] = {}


def prepare(settings: dict[str, Any]) -> None:
    """Make the set {"gym", "config", "level"}, once; `level` may be absent."""
    key = _key(settings)
    if key not in _sets:
        if len(_sets) >= _MOST_SETS:
            _sets.pop(next(iter(_sets)))
        _sets[key] = gym_sets.MadeSet(settings["gym"], settings["config"], settings.get("level"))
    _sets[key].restore()


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """One of

    {"set", "indices"} -> {"drawn": [{"entry", "gold"} or {"fault"}], "seconds": float}: the first of these problems, at
        least one, and the processor time that they took
    {"set", "golds": [{"entry", "gold"}]} -> {"faults": [str | None]}: why a problem can't be used
    {"set", "answer", "entry", "gold"} -> {"score": float, "reason": str | None}
    {"set"} -> {"evaluates": str | None, "size": int}: where its scorer runs text as code, and how many problems it has
    """
    made = _sets[_key(request["set"])]
    if "indices" in request:
        return {"drawn": _draw(made, request["indices"]), "seconds": time.process_time()}
    if "golds" in request:
        rows = ((gym_values.from_json(row["entry"]), row["gold"]) for row in request["golds"])
        return {"faults": [_fault(made, entry, gold) for entry, gold in rows]}
    if "answer" in request:
        value, reason = _score(made, request["answer"], gym_values.from_json(request["entry"]), request.get("gold"))
        return {"score": value, "reason": reason}
    evaluators = (guard.evaluates(part.score_answer) for part in made.parts())
    return {"evaluates": next((where for where in evaluators if where), None), "size": made.size}


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _draw(made: gym_sets.MadeSet, indices: list[int]) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    until, left = time.monotonic() + _BATCH_S, _BATCH_BYTES
    for index in indices:
        try:
            entry, gold = made.draw(index)
            row: dict[str, Any] = {"entry": gym_values.to_json(entry), "gold": gold}
        except Exception as exc:  # some sets can't make every problem
            row = {"fault": _words(exc)}
        left -= len(json.dumps(row))
        if drawn and left < 0:
            break
        drawn.append(row)
        if time.monotonic() > until:
            break
    return drawn


def _fault(made: gym_sets.MadeSet, entry: dict[str, Any], gold: str | None) -> str | None:
    """Why a problem can't be used, or None: its scorer must give the gold 1, and nothing of _DECOYS as much."""
    try:
        value = 1.0 if gold is None else _marks(made, gold, entry)
    except Exception as exc:
        return f"its scorer raises {_words(exc)} on its own answer"
    if value != 1.0:
        return f"its scorer gives its own answer {value:.4g}"
    for decoy in _DECOYS:
        if gold is not None and _same(decoy, gold):
            continue
        try:
            if _marks(made, decoy, entry) >= 1.0:
                return f"its scorer gives {decoy!r} full marks"
        except Exception:  # noqa: S112  (an answer that it can't read earns nothing)
            continue
    return None


def _score(made: gym_sets.MadeSet, answer: str, entry: dict[str, Any], gold: str | None) -> tuple[float, str | None]:
    """The score of an answer, where an empty one gets 0. A scorer that can read the gold but not the answer gives 0.

    Raises what the scorer raises on the gold, and ValueError where an empty answer gets full marks."""
    try:
        value = _marks(made, answer, entry)
    except Exception as exc:
        _marks(made, "" if gold is None else gold, entry)
        return 0.0, f"its scorer can't read it: {_words(exc)}"
    if not 0.0 < value < 1.0:
        return value, None
    try:
        floor = _marks(made, "", entry)
    except Exception:
        floor = 0.0
    return gym_values.without_floor(value, floor), f"{value:.4g} by its scorer, which gives nothing {floor:.4g}"


def _marks(made: gym_sets.MadeSet, answer: str, entry: dict[str, Any]) -> float:
    """What the set's scorer gives, mended where it is known to be wrong. Raises ValueError outside [0, 1]."""
    name, dataset = made.part(entry)
    words = re.findall("[a-z]+", answer.lower())
    if words and _NOT_FINITE.issuperset(words) and not {"i", "j"}.issuperset(words) and answer != entry.get("answer"):
        return 0.0  # no number is near it, and every comparison with it is odd
    if (equal := _INSTEAD.get(name)) is not None:
        return float(equal(answer, str(entry["answer"])))
    value = float(dataset.score_answer(answer, entry))
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise ValueError(f"the score {value} is not in [0, 1]")
    if value == 1.0 and (right := _RIGHT.get(name)) is not None and not right(answer, str(entry.get("answer"))):
        return 0.0
    return value


def _close(answer: str, gold: str) -> bool:
    return abs(float(Fraction(answer.replace(",", ""))) - float(Fraction(gold.replace(",", "")))) <= _TOLERANCE


def _same_integer(answer: str, gold: str) -> bool:
    try:
        return int(answer, 0) == int(gold, 0)
    except ValueError:
        return False


_INSTEAD: Mapping[str, Callable[[str, str], bool]] = {
    "bitwise_arithmetic": _same_integer,  # evaluates the problem's text for every answer, which the guard forbids
    "game_of_life_halting": lambda answer, gold: answer.strip().casefold() == gold.casefold(),  # takes any text
}
"""What decides in place of a scorer that can't be used."""

_RIGHT: Mapping[str, Callable[[str, str], bool]] = {
    "coin_flip": _close  # full marks for the first digits of the answer alone
}
"""What full marks need besides, in sets whose scorer gives them away."""


def _same(one: str, other: str) -> bool:
    if one.casefold() == other.strip().casefold():
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _words(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"[:200]
