"""Short answers: equality after normalisation."""

import re
from collections.abc import Hashable, Sequence
from functools import lru_cache

from omni_thinker.rewards.extract import Found, without_thoughts
from omni_thinker.rewards.parts import SamplePart, valued
from omni_thinker.rewards.text.normal import normalise, plain, with_articles
from omni_thinker.types import Problem, Sample, Score

_LEAD = re.compile(
    r"""[\s*_\#>]*
        (?: (?:(?:so|thus|hence|therefore),?\s+)? (?:(?:the|my)\s+)? (?:(?:correct|final|right)\s+)? answer\b
            [*_]* (?: \s*(?:is\b|[:=]) | [ ]*(?=\n) )
          | (?:答案|答え|回答) (?: [是为為は]:? | : ) )
        [\s*_:]*""",
    re.IGNORECASE | re.VERBOSE,
)
_WRAPPED = re.compile(r"\$*\\boxed\{([^{}]*)\}\$*\.?|<answer>(.*)</answer>", re.DOTALL)
_LATEX = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mbox)\s*\{([^{}]*)\}")
_ENDS = re.compile(r"(?:<\|[a-z_]{2,20}\|>|</s>|<eos>|<end_of_turn>)\s*$")
_BLOCK = re.compile(r"(?:#{1,6}\s+|>\s+|[-+•]\s+(?![\d.$]))+")
"""A heading, a quote or an item of a list; "- 5" may be a number."""
_MARKS = re.compile(r"[*_`]")
_LABEL = re.compile(r"(?:option\s+)?[(\[]?([a-z])(?:\s*[)\]]\s*[.:]?\s*|\s*[.:]\s+)(.+)", re.DOTALL)
_SHOWN = 40
_LETTER = re.compile(r"(?:option\s+)?[(\[\"']*([a-z])[)\].:!\"']*")


class ShortAnswer(SamplePart):
    """1 where the whole response, normalised, equals problem.answer or one of data["aliases"].

    Thoughts before it don't count, and "the answer is", a box or markup may be around it. Several options are wrong,
    and so is the letter of an option, unless data["letters_ok"]: then "B", "(B)" and "B) text" count, too, the letter
    being the gold's place in data["choices"]."""

    votes = True

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if problem.answer is None:
            return Score.error("no gold answer")
        after = without_thoughts(sample.text).strip()
        if not after:
            empty = sample.answered and not sample.text.strip()
            return valued(0.0, "empty" if empty else "no answer after the thoughts")
        found = _taken(after)
        right = _forms(problem.answer).union(*map(_forms, _strings(problem, "aliases")))
        if _right(found.text, right) or (found.text != after and _right(after, right)):
            return valued(1.0, found.words())
        if problem.data.get("letters_ok") and self._by_letter(found.text, right, problem):
            return valued(1.0, f"{found.words()}, an option's letter")
        return valued(0.0, f"{found.words()}: {self._fault(found.text, right, problem)}")

    def answer_of(self, sample: Sample, problem: Problem) -> Hashable | None:
        """The normal form of the answer; of the letter of an option, where that counts, the option's."""
        text = _taken(without_thoughts(sample.text).strip()).text
        if problem.data.get("letters_ok"):
            bare = _MARKS.sub("", text).strip().casefold()
            letter = _LABEL.fullmatch(bare) or _LETTER.fullmatch(bare)
            choices = _strings(problem, "choices")
            if letter and (place := ord(letter[1]) - ord("a")) < len(choices):
                return normalise(choices[place])
        return normalise(text) or None

    def _by_letter(self, text: str, right: frozenset[str], problem: Problem) -> bool:
        by_letter, by_text = _labelled(text, right, problem)
        return by_letter is True and by_text is not False

    def _fault(self, text: str, right: frozenset[str], problem: Problem) -> str:
        """Why an answer is wrong."""
        if not normalise(text):
            return "empty"
        fault = f"not the gold answer {' '.join((problem.answer or '').split())[:_SHOWN]!r}"
        by_letter, by_text = _labelled(text, right, problem)
        if by_letter is None or not (by_letter or by_text):
            return fault
        if by_text is not None and by_letter != by_text:
            return f"{fault}: its letter and its text disagree"
        return f"{fault}: letters count only where the row has letters_ok"

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


def _taken(text: str) -> Found:
    """The answer in a response without thoughts: what the lead announces or a box holds, else the whole."""
    text = plain(text)
    if "<" in text:
        text = _ENDS.sub("", text).strip()
    if "\\" in text:
        text = _LATEX.sub(r"\1", text)
    lead = _LEAD.match(text)
    rest = text[lead.end() if lead else 0 :]
    rest = rest[block.end() :] if (block := _BLOCK.match(rest)) else rest
    wrapped = _WRAPPED.fullmatch(rest.strip(" \n*_")) if "\\" in rest or "<" in rest else None
    if wrapped:
        boxed, tagged = wrapped.groups()
        return Found(tagged, "block") if boxed is None else Found(boxed, "boxed")
    if lead and lead[0].count("**") % 2 and rest.count("**") % 2:  # "**Answer: Paris**." was opened in the lead
        rest = "".join(rest.rsplit("**", 1))
    return Found(rest, "announced" if lead else "whole")


def _labelled(text: str, right: frozenset[str], problem: Problem) -> tuple[bool | None, bool | None]:
    """Whether the letter of an option is the gold's, and whether the text behind it is; None where there is none."""
    letters = {
        chr(ord("a") + place)
        for place, choice in enumerate(_strings(problem, "choices"))
        if not right.isdisjoint(_forms(choice))
    }
    text = _MARKS.sub("", text).strip().casefold()
    if letters and (label := _LABEL.fullmatch(text)):
        return label[1] in letters, _right(label[2], right)
    letter = _LETTER.fullmatch(text)
    return (letter[1] in letters if letter and letters else None), None


def _right(text: str, right: frozenset[str]) -> bool:
    return normalise(text) in right or with_articles(text) in right


@lru_cache(maxsize=8192)
def _forms(gold: str) -> frozenset[str]:
    """Normal forms of a gold answer, without and with its articles."""
    return frozenset(form for form in (normalise(gold), with_articles(gold)) if form)


def _strings(problem: Problem, key: str) -> Sequence[str]:
    value = problem.data.get(key)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []
