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
    """score_answer of the set data["gym"] with data["gym_config"] on data["entry"], in [0, 1].

    Where data["evaluates"] is true, which a task sets whose recipe says allow_evaluating_scorers, the scorer may run
    the answer as code."""

    scorer = GYM

    def settings(self, problem: Problem) -> Mapping[str, Any]:
        return gym_set(str(problem.data["gym"]), problem.data.get("gym_config") or {})

    def request(self, text: str, problem: Problem) -> Mapping[str, Any]:
        return {"set": self.settings(problem), "entry": problem.data["entry"], "answer": text}

    def evaluates(self, problem: Problem) -> bool:
        return problem.data.get(EVALUATES) is True

    def check(self, problem: Problem) -> str | None:
        if importlib.util.find_spec("reasoning_gym") is None:
            return "reasoning_gym is not installed (pip install reasoning-gym)"
        if not data_text(problem, "gym") or not isinstance(problem.data.get("entry"), Mapping):
            return "reasoning_gym needs data['gym'], a name, and data['entry'], a table"
        if not isinstance(problem.data.get("gym_config") or {}, Mapping):
            return "reasoning_gym needs data['gym_config'] as a table"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        return "no answer"


def gym_set(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A set's name and configuration, as requests hold them."""
    return {"gym": name, "config": dict(config)}
