"""Answers to reasoning_gym problems, scored by the data set's own scorer (optional dependency)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from omni_thinker.isolation import IsolationError, call_pool
from omni_thinker.rewards.parts import SamplePart, data_text, valued
from omni_thinker.types import Problem, Sample, Score

_HANDLER = Path(__file__).parent / "handlers" / "gym_handler.py"
_DEADLINE_S = 10.0
_LONGEST = 20_000


class ReasoningGym(SamplePart):
    """score_answer of the data set data["gym"] on data["entry"], in [0, 1], in a killable process.

    An exception of the scorer, a value outside [0, 1] and a missed deadline are errors.
    """

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        request = {"gym": problem.data["gym"], "entry": problem.data["entry"], "answer": sample.text.strip()[:_LONGEST]}
        try:
            reply = await call_pool(_HANDLER).call(request, _DEADLINE_S)
        except IsolationError as exc:
            return Score.error(f"reasoning_gym: {exc}")
        value = reply.get("score")
        if not isinstance(value, float) or not 0.0 <= value <= 1.0:
            return Score.error(f"reasoning_gym: {reply.get('error', f'score {value!r} is not in [0, 1]')}")
        return valued(value)

    def check(self, problem: Problem) -> str | None:
        if importlib.util.find_spec("reasoning_gym") is None:
            return "reasoning_gym is not installed (pip install reasoning-gym)"
        if not data_text(problem, "gym") or not isinstance(problem.data.get("entry"), Mapping):
            return "reasoning_gym needs data['gym'], a name, and data['entry'], a table"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        return "no answer"
