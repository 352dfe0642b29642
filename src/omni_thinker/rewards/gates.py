"""Gates on form: finished, format."""

import re
from pathlib import Path

from omni_thinker.isolation import IsolationError, call_pool
from omni_thinker.rewards.parts import SamplePart, data_text, valued
from omni_thinker.thoughts import names_thoughts
from omni_thinker.types import Problem, Sample, Score

_HANDLER = Path(__file__).parent / "handlers" / "regex_handler.py"
_DEADLINE_S = 2.0
_LONGEST_TEXT = 20_000


class Finished(SamplePart):
    """1 where the model stopped by itself, 0 where it ran into the token limit or ended within its thoughts."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if not sample.answered:
            return valued(0.0, "ended within its thoughts")
        return valued(1.0) if sample.stop == "stop" else valued(0.0, "ran into the token limit")


class Format(SamplePart):
    """1 where the text isn't blank and, with data["format"], the whole stripped text matches that regex.

    A regex that names a mark of thoughts is matched against the response with its thoughts. `.` matches newlines. The
    match runs in a killable process; one that takes over 2 s is an error."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        text = sample.text.strip()
        if not text:
            return valued(0.0, "empty")
        pattern = data_text(problem, "format")
        if pattern is None:
            return valued(1.0)
        if names_thoughts(pattern):
            text = sample.response.strip()
        if len(text) > _LONGEST_TEXT:
            return valued(0.0, "longer than a format is matched against")
        try:
            reply = await call_pool(_HANDLER).call({"pattern": pattern, "text": text}, _DEADLINE_S)
        except IsolationError as exc:
            return Score.error(f"format: {exc}")
        if not isinstance(reply.get("matches"), bool):
            return Score.error(f"format: {reply.get('error', 'no verdict')}")
        return valued(1.0) if reply["matches"] else valued(0.0, "not in the asked format")

    def check(self, problem: Problem) -> str | None:
        pattern = problem.data.get("format")
        if pattern is None:
            return None
        if not isinstance(pattern, str):
            return "data['format'] must be a regular expression"
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError, MemoryError) as exc:
            return f"data['format'] isn't a regular expression: {exc}"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        return " "
