"""Math answers: an exact reader of numbers, and Math-Verify for everything else."""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from omni_thinker.isolation import IsolationError, WorkerPool, call_pool
from omni_thinker.rewards.extract import Found, find, without_thoughts
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.rewards.reading.latex import plain
from omni_thinker.rewards.reading.letters import find_letter, read_letter
from omni_thinker.rewards.reading.numbers import Reading, has_words, last_number, leading_number, to_number
from omni_thinker.rewards.reading.symbolic import LONGEST_ANSWER, expression, plausible, to_latex, without_unit
from omni_thinker.rewards.reading.values import Value, as_value, read_value, same_value
from omni_thinker.rewards.reading.wholes import Whole, find_whole, read_whole, same_whole
from omni_thinker.types import Problem, Sample, Score

_HANDLER = Path(__file__).parent / "handlers" / "math_handler.py"
_DEADLINE_S = 5.0
_LONGEST_TEXT = 20_000
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z' ]+")
_OFFERS = re.compile(r"(?:\bor\b|\\text\s*\{\s*or\s*\})\s*[-\d$\\]", re.IGNORECASE)
_NAMED = re.compile(r"\s*([A-Za-z])\s*=([^=<>]+)")
_LAYOUT = re.compile(r"\\(?:(?:left|right)(?![A-Za-z])|[,;!: ])|\s")
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Gold:
    """What a gold answer is: the first that isn't None. number: a plain number, which only a number answers."""

    text: str
    number: Value | None = None
    letter: str | None = None
    whole: Whole | None = None
    value: Value | None = None

    @property
    def listed(self) -> bool:
        """Whether it is several values in any order."""
        return "," in self.text and not self.text.lstrip("$ ").startswith(("(", "[", "\\left"))

    @property
    def symbolic(self) -> bool:
        """Whether Math-Verify has to read it."""
        return self.number is None and self.letter is None and self.whole is None and self.value is None


@lru_cache(maxsize=4096)
def _gold(answer: str) -> _Gold:
    found = find(answer)
    marked = found.how == "heading" or (found.how == "boxed" and answer.count("\\boxed") == 1)
    text = (found.text if marked else answer).strip()
    number = _plain_gold(text)
    if number is not None:
        return _Gold(text, number=Value(number))
    if letter := read_letter(text):
        return _Gold(text, letter=letter)
    if whole := read_whole(text):
        return _Gold(text, whole=whole)
    return _Gold(text if found.how == "heading" else answer, value=read_value(text))


class Math(SamplePart):
    """1 where the final answer equals problem.answer.

    The thoughts are dropped. The final answer is, first that applies:
      1. the content of the last \\boxed{...};
      2. the line after the last "####" that isn't the heading of a part;
      3. the line after the last "answer is", "answer:" or "A:", or after a heading "Answer";
      4. a text without words, which must be [expression =] number and nothing else;
      5. the last number of the text, as is usual for GSM8K.

    A gold that is a plain number (7, -3.5, 1,234, $12) asks for a number, and is compared exactly, in-process. A sum
    that isn't carried out ("17 + 1") and several different numbers ("3 or 4", "1 2 3") are wrong, and so is a number
    that is part of something else (3x, 10:30, 2^10). A unit or a percent sign after the number is ignored.

    Letters of options (A to J), times, ratios, dates and numbers in a base are compared in-process, as they are
    written. Golds that are numbers in LaTeX (fractions, powers, mixed numbers, with units) are, too.

    Any other gold (roots, sets, ...) is compared by Math-Verify in a killable process, and so is an answer to a number
    in LaTeX that can't be read in-process. Answers that offer a choice ("$a$ or $b$") are wrong unless the gold offers
    one, and so are answers that nobody could work out (towers of powers, hundreds of nested roots), or that are over
    300 characters long. No reply in time is an error.

    The reason of a score says what was taken as the answer, from where, and why it lost."""

    answer_only = True
    votes = True

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        text = without_thoughts(sample.text)[-_LONGEST_TEXT:]
        gold = _gold(problem.answer)
        found = find(text)
        if not found.text.strip():
            return valued(0.0, "empty" if not text.strip() else f"{found.words()}: empty")
        if gold.number is not None:
            return _by_number(found, gold.number)
        if found.text.strip() == gold.text and plausible(gold.text):
            return valued(1.0, found.words())
        if gold.letter is not None:
            return _by_letter(found, gold.letter)
        if gold.whole is not None:
            return _by_whole(found, gold.whole)
        return _by_value(found, gold.value) or await self._verified(text, found, gold)

    async def _verified(self, text: str, found: Found, gold: _Gold) -> Score:
        last_line = found.text.strip().rpartition("\n")[2]
        if _OFFERS.search(last_line) and not gold.listed and "or" not in gold.text:
            return valued(0.0, f"{found.words()}: offers several answers")
        texts = _attempts(text, found, gold.listed)
        if plausible(gold.text):
            if found.how in ("boxed", "heading") and len(found.text) > max(LONGEST_ANSWER, 2 * len(gold.text)):
                return valued(0.0, f"{found.words()}: not a plausible answer form")
            # The working may be what it likes, but isn't worked out.
            boxed = [f"\\boxed{{{found.text}}}"] if found.how == "boxed" else []
            texts = [one for one in [*texts, *boxed] if plausible(one)] if not plausible(text) else texts
            if not texts:
                return valued(0.0, f"{found.words()}: not a plausible answer form")
        latex = gold.text if "\\" in gold.text or "$" in gold.text else to_latex(gold.text)
        if "=" not in found.text and (values := _values_of_names(gold.text)):
            # Math-Verify would take "4, 3" for "x = 3, y = 4".
            given = expression(found.text, marked=found.how != "whole", listed=True) or found.text
            given = given.replace("\\left", "").replace("\\right", "").strip()
            latex, texts = values, [f"\\boxed{{{given if given.startswith('(') else f'({given})'}}}"]
        try:
            reply = await _pool().call({"gold": latex, "texts": texts}, _DEADLINE_S)
        except IsolationError as exc:
            return Score.error(f"math: {exc}")
        if not isinstance(reply.get("equal"), bool):
            return Score.error(f"math: {reply.get('error', 'no verdict')}")
        return valued(1.0, found.words()) if reply["equal"] else _lost(found, f"isn't {_shown(gold.text)}")

    def answer_of(self, sample: Sample, problem: Problem) -> Hashable | None:
        """A number's exact value, a letter, a time or date, else the expression as normalised LaTeX: wrong answers that
        only Math-Verify would find equal are told apart."""
        gold, found = _gold(problem.answer or ""), find(without_thoughts(sample.text)[-_LONGEST_TEXT:])
        if gold.number is not None:
            return _read(found)[1].value
        if gold.letter is not None:
            return find_letter(found.text, marked=found.how != "whole")
        if gold.whole is not None:
            answer = find_whole(found.text, gold.whole.kind, last=found.how == "whole")
            return None if isinstance(answer, str) else (answer.parts, answer.half)
        if (value := read_value(found.text)) is not None:
            return value.number
        latex = expression(found.text, marked=found.how != "whole", listed=gold.listed) or to_latex(found.text)
        return _LAYOUT.sub("", latex).replace("dfrac", "frac").replace("tfrac", "frac") or None

    def check(self, problem: Problem) -> str | None:
        if problem.answer is None or not problem.answer.strip():
            return "math needs an answer"
        gold = _gold(problem.answer)
        if not gold.symbolic:
            return None
        if _WORDS.fullmatch(problem.answer.strip()):
            # Math-Verify would read a product of letters, and accept them in any order.
            return f"the answer {problem.answer[:60]!r} is made of words: use short_answer"
        try:
            reply = _pool().call_sync({"gold": gold.text}, _DEADLINE_S)
        except IsolationError as exc:
            return f"the answer {problem.answer[:60]!r} can't be checked: {exc}"
        return None if reply.get("parses") else f"the answer {problem.answer[:60]!r} isn't a mathematical expression"

    def wrong_answer(self, problem: Problem) -> str | None:
        gold = _gold(problem.answer or "")
        if gold.letter is not None:
            return "B" if gold.letter == "A" else "A"
        return "918273645" if gold.number is None else str(int(gold.number.number) + 1)


def _by_number(found: Found, gold: Value) -> Score:
    """The score for a gold that is a plain number."""
    digits = found.text.strip()
    if found.how != "whole" and _INTEGER.fullmatch(digits):
        # What almost all answers are, at no cost.
        right = int(digits) == gold.number
        return valued(float(right), found.words() if right else f"{found.words()}: isn't {gold.number}")
    found, reading = _read(found)
    if reading.value is None:
        return _lost(found, reading.why)
    if reading.value == gold.number or (reading.percent and reading.value / 100 == gold.number):
        return valued(1.0, found.words())
    return _lost(found, f"isn't {_shown(str(gold.number))}")


def _read(found: Found) -> tuple[Found, Reading]:
    """The number that an answer is, and where it was found."""
    if found.how != "whole":
        return found, leading_number(found.text, whole=found.how in ("boxed", "heading"))
    reading = last_number(found.text)
    if reading.text and has_words(found.text):
        return Found(reading.text, "last"), reading
    return found, reading


def _by_letter(found: Found, gold: str) -> Score:
    letter = find_letter(found.text, marked=found.how != "whole")
    if letter is None:
        return _lost(found, "no letter, or several")
    return valued(1.0, found.words()) if letter == gold else _lost(found, f"isn't {gold}")


def _by_whole(found: Found, gold: Whole) -> Score:
    answer = find_whole(found.text, gold.kind, last=found.how == "whole")
    if isinstance(answer, str):
        return _lost(found, answer)
    return valued(1.0, found.words()) if same_whole(gold, answer) else _lost(found, "not as the gold is written")


def _by_value(found: Found, gold: Value | None) -> Score | None:
    """The score for a gold that is a number in LaTeX; None where the answer has to be read by Math-Verify."""
    if gold is None:
        return None
    place = found
    answer = read_value(found.text)
    if answer is None:
        place, reading = _read(found)
        answer = as_value(reading)
    if answer is None:
        return None
    if same_value(gold, answer):
        return valued(1.0, place.words())
    # A number elsewhere in a text without marks may be of its working.
    return None if found.how == "whole" and place.how == "last" else _lost(place, f"isn't {_shown(str(gold.number))}")


def _values_of_names(gold: str) -> str | None:
    """The tuple (3, 4) of a gold "x = 3, y = 4", whose names differ; None for any other."""
    pairs = [_NAMED.fullmatch(part) for part in gold.strip(" $").split(",")]
    named = [(pair[1], pair[2]) for pair in pairs if pair]
    if len(named) < max(2, len(pairs)) or len(dict(named)) < len(named):
        return None
    return f"({', '.join(value for _, value in named)})"


def _attempts(text: str, found: Found, listed: bool) -> list[str]:
    """The texts that Math-Verify may find the answer in: first what was written, then the answer alone."""
    if found.how == "boxed":
        latex = to_latex(without_unit(found.text)) if len(found.text) <= LONGEST_ANSWER else found.text.strip()
        return [text] if latex == found.text.strip() else [text, f"\\boxed{{{latex}}}"]
    if found.how == "whole":
        tail = expression(found.text, marked=False, listed=listed)
        texts = [text]
    else:
        tail = expression(found.text, marked=True, listed=listed)
        texts = [found.text if found.how == "heading" or tail else text]
    if "\\" in texts[0] and "$" not in texts[0]:
        texts.append(f"${texts[0].strip()}$")  # bare LaTeX has no marks that Math-Verify could find
    # Between dollar signs Math-Verify finds it by itself.
    return texts if tail is None or "$" in found.text else [*texts, f"\\boxed{{{tail}}}"]


def _lost(found: Found, why: str) -> Score:
    return valued(0.0, f"{found.words()}: {why}")


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _plain_gold(text: str) -> Fraction | None:
    """The gold as a Fraction where it is written as a plain number; a/b and LaTeX (but for \\$) are not."""
    text = text.strip().replace("\\$", "$")
    if "/" in text or "\\" in text or text.endswith(("$", "%")):
        return None
    return to_number(plain(text))


def _pool() -> WorkerPool:
    return call_pool(_HANDLER, ("math_verify",))
