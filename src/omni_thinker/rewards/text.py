"""Short answers and literals: equality after normalisation."""

import ast
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.types import Problem, Sample, Score

_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "—": "-"})
_EDGES = " \t\n.,;:!?\"'`*_()[]{}"
_ARTICLES = ("a", "an", "the")
_LEAD = re.compile(r"(?:the )?(?:(?:correct|final|right) )?answer(?: is|:)\s*:?\s*", re.IGNORECASE)
_LABEL = re.compile(r"\(?([a-z])\s*[).:]\s+(.*)", re.DOTALL)
_LONGEST_LITERAL = 2000
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {
    word: 10 * value
    for value, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2)
}
_LONGEST_RUN = 20
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}


def normalise(text: str) -> str:
    """NFKC, no case, no articles, no punctuation at the edges of words, numbers in figures, single spaces.

    Signs inside and before words stay: "C++", "-5", "1.5" and "it's" keep their meaning. "Twenty-one" is 21 and "two
    hundred and five" 205; "1,000" is 1000."""
    raw = unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold().split()
    # An "A)" is the letter of an option, not an article.
    words = [bare for word in raw if (bare := word.strip(_EDGES)) and word not in _ARTICLES]
    return " ".join(_in_figures(words)) or " ".join(bare for word in raw if (bare := word.strip(_EDGES)))


def _in_figures(words: Sequence[str]) -> list[str]:
    """Runs of number words as one number each; "one two" are two numbers, "forty two" is one."""
    done: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        pieces = word.split("-")
        number = all(piece in _UNITS or piece in _TENS or piece in _SCALES for piece in pieces)
        if number and (not run or _continues(run[-1], pieces[0])):
            run += pieces
            continue
        joined = bool(run) and word == "and" and run[-1] in _SCALES
        if joined:
            run.append("and")
            continue
        done += _figures(run)
        run = pieces if number else []
        if not number and word:
            done.append(word.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", word) else word)
    return done


def _continues(before: str, word: str) -> bool:
    if word in _SCALES:
        return before not in _SCALES or before == "hundred"
    if before == "and":
        return True
    return before in _SCALES or (before in _TENS and word in _UNITS and 0 < _UNITS[word] < 10)


def _figures(run: Sequence[str]) -> list[str]:
    trailing = list(run[-1:]) if run and run[-1] == "and" else []
    words = run[:-1] if trailing else run
    if not words or len(words) > _LONGEST_RUN:  # no number that anybody would spell
        return [*words, *trailing]
    total, current = 0, 0
    for word in words:
        if word == "hundred":
            current = max(1, current) * 100
        elif word in _SCALES:
            total, current = total + max(1, current) * _SCALES[word], 0
        elif word != "and":
            current += _UNITS.get(word, 0) + _TENS.get(word, 0)
    return [str(total + current), *trailing]


class ShortAnswer(SamplePart):
    """1 where the whole response, normalised, equals problem.answer or one of data["aliases"].

    "The answer is" may stand before it. Several options are wrong, and so is the letter of an option, unless
    data["letters_ok"]: then "B", "(B)" and "B) text" count, too, the letter being the gold's place in data["choices"].
    """

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        lead = _LEAD.match(sample.text.strip())
        text = sample.text.strip()[lead.end() if lead else 0 :]
        given = normalise(text)
        right = {normalise(gold) for gold in (problem.answer, *_strings(problem, "aliases"))} - {""}
        if given in right:
            return valued(1.0)
        if problem.data.get("letters_ok") and self._by_letter(text, right, problem):
            return valued(1.0)
        return valued(0.0, "not the gold answer" if given else "empty")

    def _by_letter(self, text: str, right: set[str], problem: Problem) -> bool:
        choices = [normalise(choice) for choice in _strings(problem, "choices")]
        letters = {chr(ord("a") + place) for place, choice in enumerate(choices) if choice in right}
        label = _LABEL.fullmatch(text.strip().casefold())
        if label:
            return label[1] in letters and normalise(label[2]) in right
        return text.strip(_EDGES).casefold() in letters

    def check(self, problem: Problem) -> str | None:
        if problem.answer is None or not normalise(problem.answer):
            return "short_answer needs an answer with words in it"
        choices = [normalise(choice) for choice in _strings(problem, "choices")]
        if choices and normalise(problem.answer) not in choices:
            return f"the answer {problem.answer!r} is not among the choices"
        if choices.count(normalise(problem.answer)) > 1:
            return "two choices are the right answer but for case, articles or punctuation"
        return None

    def wrong_answer(self, problem: Problem) -> str | None:
        gold = normalise(problem.answer or "")
        right = {gold, *(normalise(alias) for alias in _strings(problem, "aliases"))}
        others = [choice for choice in _strings(problem, "choices") if normalise(choice) not in right]
        return others[0] if others else f"not {gold}"


class Exact(SamplePart):
    """1 where the response equals problem.answer.

    A gold that is a Python literal is compared as a value, types included (1 is neither True nor 1.0; 'a' is "a").
    Any other gold is compared as text: NFKC, white space collapsed, case kept. Back-ticks around it don't count."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        gold, given = _bare(problem.answer), _bare(sample.text)
        parsed, value = _literal(gold)
        if parsed:
            also, other = _literal(given)
            return valued(float(also and bool(_typed(value) == _typed(other))), None if also else "no literal")
        return valued(float(_spaced(gold) == _spaced(given)))

    def check(self, problem: Problem) -> str | None:
        return None if problem.answer is not None and problem.answer.strip() else "exact needs an answer"

    def wrong_answer(self, problem: Problem) -> str | None:
        return f"not {problem.answer}"


def _strings(problem: Problem, key: str) -> Sequence[str]:
    value = problem.data.get(key)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def _bare(text: str) -> str:
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2][:-3]
    return text.strip().strip("`").strip()


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _literal(text: str) -> tuple[bool, Any]:
    # Short texts only: the parser's stack grows with the nesting of what a model wrote.
    if len(text) > _LONGEST_LITERAL:
        return False, None
    try:
        return True, ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False, None


def _typed(value: Any) -> Any:
    """Something that is equal where value and type are, at every depth (True is no 1, and 0.0 no -0.0)."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(_typed, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(_typed, value))
    if isinstance(value, dict):
        return dict, frozenset((_typed(key), _typed(item)) for key, item in value.items())
    return type(value), repr(value) if isinstance(value, (float, complex)) else value
