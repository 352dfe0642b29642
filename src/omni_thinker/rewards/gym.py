"""Answers to reasoning_gym problems, scored by the data set's own scorer (optional dependency), inside the sandbox."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, TextEvaluated, WalledScorer, launch
from omni_thinker.rewards.parts import SamplePart, data_text, valued
from omni_thinker.types import Problem, Sample, Score

GYM = WalledScorer(Path(__file__).parent / "handlers" / "gym_handler.py", ("reasoning_gym",))
"""The package's generators and scorers: gym_handler.py says what may be asked."""
_DEADLINE_S = 10.0
_LONGEST = 20_000


class ReasoningGym(SamplePart):
    """score_answer of the set data["gym"] with data["gym_config"] on data["entry"], in [0, 1].

    Each answer is scored in a fresh process of the sandbox. An exception of the scorer, a value outside [0, 1], a
    missed deadline, and an attempt to run the answer as code are errors. The last is allowed where
    data["evaluates"] is true, which a task sets whose recipe says allow_evaluating_scorers.

    Raises UserError where there is no sandbox.
    """

    def __init__(self) -> None:
        try:
            launch()
        except IsolationError as exc:
            raise UserError(str(exc), key="reward") from None

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        chosen = gym_set(str(problem.data["gym"]), problem.data.get("gym_config") or {})
        request = {"set": chosen, "entry": problem.data["entry"], "answer": sample.text.strip()[:_LONGEST]}
        allowed = problem.data.get("evaluates") is True
        try:
            reply = await GYM.call(request, _DEADLINE_S, settings=chosen, evaluates=allowed)
        except TextEvaluated:
            why = "its scorer tried to run the answer as code; allow_evaluating_scorers = true in the task accepts that"
            return Score.error(f"reasoning_gym: {why}")
        except IsolationError as exc:
            return Score.error(f"reasoning_gym: {exc}")
        value = reply.get("score")
        if not isinstance(value, float) or not 0.0 <= value <= 1.0:
            return Score.error(f"reasoning_gym: score {value!r} is not in [0, 1]"[:300])
        return valued(value)

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
    """What requests call a set: its name and its configuration."""
    return {"gym": name, "config": dict(config)}
