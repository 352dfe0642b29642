"""Math answers: an exact reader of numbers, and Math-Verify for everything else."""

import re
from pathlib import Path
from typing import Any

from omni_thinker.isolation import IsolationError, WorkerPool, call_pool
from omni_thinker.rewards.numbers import last_number, leading_number, plain, to_number
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.types import Problem, Sample, Score

_HANDLER = Path(__file__).parent / "handlers" / "math_handler.py"
_DEADLINE_S = 5.0
_LONGEST_TEXT = 20_000
_BOXES = 20
"""How many unclosed boxes are passed over before giving up."""
_ANSWER_IS = re.compile(r"answer\s+is\b|answer\s*[:=]|^[ \t]*A:", re.IGNORECASE | re.MULTILINE)
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z' ]+")
_OFFERS = re.compile(r"(?:\bor\b|\\text\s*\{\s*or\s*\})\s*[-\d$\\]", re.IGNORECASE)

_LONGEST_ANSWER = 300
_DEEPEST = 20
_HOPELESS = re.compile(
    r"""
      (?<!\d)\d{5,}+[\s)}]*+!                                                         # 99999!
    | ![\s)}]*+![\s)}]*+!                                                             # ((9!)!)!
    | \d[\s)}]*+(?:\^|\*\*)[\s({+-]*+\d++[\s)}]*+(?:\^|\*\*)[\s({+-]*+\d{2}          # 9^9^99
    | (?:\^|\*\*)[\s({+-]*+(?:[6-9]|\d\d++)[\s)}]*+(?:\^|\*\*)[\s({+-]*+[7-9]          # 9^9^9
    | \d[\s)}]*+(?:(?:\^|\*\*)[\s({+-]*+\d++[\s)}]*+){3}                            # 9^9^9^9
    | (?:\^|\*\*)[\s({+-]*+\d{7}                                                     # 9^9999999
    | (?:\\(?:sqrt|frac|left|bar|overline|hat|vec|text|mathrm)\b[\s({\[]*+){12}        # roots of roots of roots
    """,
    re.VERBOSE,
)
"""Expressions that take minutes to evaluate and are nobody's answer."""


def boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} or \\fbox{...} whose braces close."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    for start in reversed(starts[-_BOXES:]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end]
    return None


def announced(text: str) -> str | None:
    """The part that the text calls its answer: the last \\boxed{}, else after the last ####, else after "answer is"."""
    return _announced(text)[0]


def _announced(text: str) -> tuple[str | None, bool]:
    """(the answer, whether it stands where nothing else should: in a box, or on a line of its own after ####)."""
    answer = boxed(text)
    if answer is not None:
        return answer, True
    if "####" in text:
        return _line(text.rpartition("####")[2]), True
    matches = list(_ANSWER_IS.finditer(text))
    return (_line(text[matches[-1].end() :]) if matches else None), False


def _line(text: str) -> str:
    text = text.lstrip(" :*\n")
    return re.split(r"\n|(?<=[^\s0-9])\.\s|(?<=[0-9])\.\s+(?=[A-Z])", text, maxsplit=1)[0]


class Math(SamplePart):
    """1 where the final answer equals problem.answer.

    A gold that is a plain number (7, -3.5, 1,234, $12) asks for a number, and is compared exactly, in-process.
    The final answer is, first that applies:
      1. the content of the last \\boxed{...};
      2. the line after the last "####";
      3. the line after the last "answer is", "answer:" or "A:" (of these, the first number after the last "=");
      4. a text without words must be [expression =] number and nothing else;
      5. the last number of the text, as is usual for GSM8K.
    A sum that isn't carried out ("17 + 1") and several different numbers ("3 or 4", "1 2 3") are wrong. A fraction
    answers a gold that is no whole number. A unit or a percent sign after the number is ignored.

    Any other gold (fractions, LaTeX, sets, ...) is compared by Math-Verify in a killable process: with the line
    after the last "####" where there is one, else with the whole text, by Math-Verify's own extraction (boxed first).
    Answers that offer a choice ("$a$ or $b$") are wrong unless the gold offers one, and so are answers that
    nobody could work out (9^9^9^9, 99999!, hundreds of nested roots), or that are over 300 characters long, where the
    gold is of another kind. No reply in time is an error."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        text = sample.text[-_LONGEST_TEXT:]
        gold = _plain_gold(problem.answer)
        if gold is not None:
            segment, whole = _announced(text)
            fractions = gold.denominator != 1
            read = last_number(text, fractions) if segment is None else leading_number(segment, fractions, whole=whole)
            return valued(1.0) if read == gold else valued(0.0, "no final number" if read is None else "wrong number")
        return await self._verified(text, problem.answer)

    async def _verified(self, text: str, gold: str) -> Score:
        marked = "####" in text
        text = _line(text.rpartition("####")[2]) if marked else text
        last_line = (announced(text) or text).strip().rpartition("\n")[2]
        if not text.strip():
            return valued(0.0, "empty")
        if _OFFERS.search(last_line) and "or" not in gold:
            return valued(0.0, "offers several answers")
        if _plausible(gold):
            answer = boxed(text) or (text if marked else None)
            if answer is not None and len(answer) > max(_LONGEST_ANSWER, 2 * len(gold)):
                return valued(0.0, "not a plausible answer form")
            if not _plausible(text):
                if answer is None or not _plausible(answer):
                    return valued(0.0, "not a plausible answer form")
                text = f"\\boxed{{{answer}}}"  # the working may be what it likes, but isn't worked out
        try:
            # Bare LaTeX has no marks that Math-Verify could find; a bare expression reads the same within them.
            reply = await _pool().call({"gold": gold, "text": text}, _DEADLINE_S)
            if not reply.get("equal") and "\\" in text and "$" not in text and "\\boxed" not in text:
                reply = await _pool().call({"gold": gold, "text": f"${text.strip()}$"}, _DEADLINE_S)
        except IsolationError as exc:
            return Score.error(f"math: {exc}")
        if not isinstance(reply.get("equal"), bool):
            return Score.error(f"math: {reply.get('error', 'no verdict')}")
        return valued(1.0) if reply["equal"] else valued(0.0, "not equal to the gold")

    def check(self, problem: Problem) -> str | None:
        if problem.answer is None or not problem.answer.strip():
            return "math needs an answer"
        if _plain_gold(problem.answer) is not None:
            return None
        if _WORDS.fullmatch(problem.answer.strip()):
            # Math-Verify would read a product of letters, and accept them in any order.
            return f"the answer {problem.answer[:60]!r} is made of words: use short_answer"
        try:
            reply = _pool().call_sync({"gold": problem.answer}, _DEADLINE_S)
        except IsolationError as exc:
            return f"the answer {problem.answer[:60]!r} can't be checked: {exc}"
        return None if reply.get("parses") else f"the answer {problem.answer[:60]!r} isn't a mathematical expression"

    def wrong_answer(self, problem: Problem) -> str | None:
        gold = _plain_gold(problem.answer or "")
        return "918273645" if gold is None else str(int(gold) + 1)


def _plausible(text: str) -> bool:
    """Whether working it out may come to an end."""
    depth = 0
    for sign in re.findall(r"[({})]", text):
        depth = depth + 1 if sign in "({" else max(0, depth - 1)
        if depth > _DEEPEST:
            return False
    return _HOPELESS.search(text) is None


def _plain_gold(answer: str) -> Any:
    """The gold as a Fraction where it is written as a plain number; a/b and LaTeX are not."""
    text = answer.strip()
    if "/" in text or "\\" in text or text.endswith(("$", "%")):
        return None
    return to_number(plain(text))


def _pool() -> WorkerPool:
    return call_pool(_HANDLER, ("math_verify",))
