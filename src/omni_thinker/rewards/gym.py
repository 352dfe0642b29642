"""Answers to reasoning_gym problems, scored by the data set's own scorer (optional dependency), inside the sandbox."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_thinker.isolation import WalledScorer
from omni_thinker.rewards.parts import data_text
from omni_thinker.rewards.walled import WalledPart
from omni_thinker.types import Problem

GYM = WalledScorer(Path(__file__).parent / "handlers" / "gym_handler.py", ("reasoning_gym",))
"""The package's generators and scorers: gym_handler.py says what may be asked."""

EVALUATES = "evaluates"
"""Key of a problem's data whose true lets the scorer run the answer as code. A recipe's to say, never a row's."""


class ReasoningGym(WalledPart):
    """score_answer of the set data["gym"] with data["gym_config"] and data["gym_level"] on data["entry"], in [0, 1].

    What the set gives to an empty answer is taken off: an empty answer gets 0 and the gold answer 1. An answer that
    the scorer can't read gets 0, with the reason. Where data["evaluates"] is true, which a task sets whose recipe says
    allow_evaluating_scorers, the scorer may run the answer as code."""

    scorer = GYM

    def settings(self, problem: Problem) -> Mapping[str, Any]:
        data = problem.data
        return gym_set(str(data["gym"]), data.get("gym_config") or {}, data.get("gym_level"))

    def request(self, text: str, problem: Problem) -> Mapping[str, Any]:
        return {"set": self.settings(problem), "entry": problem.data["entry"], "answer": text, "gold": problem.answer}

    def evaluates(self, problem: Problem) -> bool:
        return problem.data.get(EVALUATES) is True

    def check(self, problem: Problem) -> str | None:
        if importlib.util.find_spec("reasoning_gym") is None:
            return "reasoning_gym is not installed (pip install reasoning-gym)"
        if not data_text(problem, "gym") or not isinstance(problem.data.get("entry"), Mapping):
            return "reasoning_gym needs data['gym'], a name, and data['entry'], a table"
        if not isinstance(problem.data.get("gym_config") or {}, Mapping):
            return "reasoning_gym needs data['gym_config'] as a table"
        if not isinstance(problem.data.get("gym_level"), int | None):
            return "reasoning_gym needs data['gym_level'] as a whole number"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        return "no answer"

    def decoys(self, problem: Problem) -> tuple[str, ...]:
        return tuple(text for text in ("nan", "0") if not _same(text, problem.answer or ""))


def gym_set(name: str, config: Mapping[str, Any], level: int | None = None) -> dict[str, Any]:
    """A set's name, configuration and difficulty, as requests hold them."""
    return {"gym": name, "config": dict(config), **({} if level is None else {"level": level})}


def _same(one: str, other: str) -> bool:
    try:
        return one.casefold() == other.strip().casefold() or float(one) == float(other)
    except ValueError:
        return False
