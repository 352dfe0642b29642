"""Constraints on a text that can be counted: the verifiable half of a writing task."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from omni_thinker.rewards.parts import SamplePart
from omni_thinker.types import Problem, Sample, Score

_KEYS = ("include", "avoid", "sentences", "max_words", "min_words")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
# Possessive, and only at the start of a run of marks: linear in what a model may write.
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)]*+(?=\s|$)")
_MOST_LETTERS = 0.8
_LONGEST_RUN = 4
_INCLUDED_SHARE = 2 / 3
_LONGEST_TEXT = 20_000


class Constraints(SamplePart):
    """The share of data["constraints"] that hold, or 0 where the text is no honest prose; 1 means all hold.

    Constraints: include and avoid (lists of words, whole and in any case; `include` counts by the word), sentences
    (exact number), min_words, max_words. Parts carry each share as `constraints.NAME`.

    Honest prose: at least 0.8 of its characters are letters or spaces; sentences begin with a capital or a figure and
    end with punctuation; no word or run of up to four words stands twice in a row; no three words in a row occur
    three times; at most two thirds of the words are those to be included."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        constraints: Mapping[str, Any] = problem.data.get("constraints") or {}
        text = sample.text.strip()[:_LONGEST_TEXT]
        shares = {f"constraints.{name}": share for name, share in _shares(text, constraints).items()}
        fault = prose_fault(text, [str(word) for word in constraints.get("include", ())])
        shares["constraints.prose"] = float(fault is None)
        value = 0.0 if fault else sum(shares.values()) / len(shares)
        missed = [name for name, share in shares.items() if share < 1.0]
        return Score("value", value, shares, fault or (f"missed: {', '.join(missed)}" if missed else None))

    def check(self, problem: Problem) -> str | None:
        constraints = problem.data.get("constraints")
        if not isinstance(constraints, Mapping) or not constraints:
            return "constraints needs data['constraints'], a table"
        unknown = [key for key in constraints if key not in _KEYS]
        if unknown:
            return f"unknown constraint {unknown[0]!r}; known: {', '.join(_KEYS)}"
        for key in ("include", "avoid"):
            words = constraints.get(key, [])
            if not isinstance(words, (list, tuple)) or not all(isinstance(w, str) and w.strip() for w in words):
                return f"constraint {key!r} must be a list of words"
        for key in ("sentences", "max_words", "min_words"):
            if key in constraints and (
                not isinstance(constraints[key], int) or isinstance(constraints[key], bool) or constraints[key] < 1
            ):
                return f"constraint {key!r} must be a whole number above 0"
        if constraints.get("min_words", 1) > constraints.get("max_words", constraints.get("min_words", 1)):
            return "min_words is above max_words"
        include, avoid = ({w.casefold() for w in constraints.get(key, [])} for key in ("include", "avoid"))
        both = include & avoid
        return f"{sorted(both)[0]!r} is to be included and avoided" if both else None

    def wrong_answer(self, problem: Problem) -> str | None:
        constraints: Mapping[str, Any] = problem.data.get("constraints") or {}
        words = [str(word) for word in constraints.get("include", ())] or ["word"]
        return " ".join([words[0], words[0], *words])  # all of the words, none of the writing


def sentences(text: str) -> list[str]:
    """The sentences of a text; the last one may lack its punctuation."""
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    pieces = [text[start:end].strip() for start, end in pairwise(ends)]
    return [piece for piece in pieces if piece]


def prose_fault(text: str, included: list[str]) -> str | None:
    """Why a text is no honest prose, or None."""
    words = _folded(text)
    if not words:
        return "no words"
    if sum(char.isalpha() or char.isspace() for char in text) < _MOST_LETTERS * len(text):
        return "mostly not letters"
    for sentence in sentences(text):
        first = sentence.lstrip("\"'“‘(*_ ")[:1]
        if not (first.isupper() or first.isdigit()):
            return "a sentence begins without a capital"
        if not _END.search(sentence):
            return "a sentence ends without punctuation"
    # A sentence may begin with the word that the one before ended on; within a sentence that is a stammer.
    if _repeats(words, 2) or any(_repeats(_folded(sentence), 1) for sentence in sentences(text)):
        return "repeats itself"
    required = {word.casefold() for word in included}
    if required and sum(word in required for word in words) > _INCLUDED_SHARE * len(words):
        return "little more than the words to include"
    return None


def _folded(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _repeats(words: list[str], shortest: int) -> bool:
    """Whether a run of at least `shortest` words follows itself, or three words in a row come three times."""
    for length in range(shortest, _LONGEST_RUN + 1):
        if any(words[i : i + length] == words[i + length : i + 2 * length] for i in range(len(words) - 2 * length + 1)):
            return True
    counts: dict[tuple[str, ...], int] = {}
    for triple in zip(words, words[1:], words[2:], strict=False):
        counts[triple] = counts.get(triple, 0) + 1
    return max(counts.values(), default=0) >= 3


def _shares(text: str, constraints: Mapping[str, Any]) -> dict[str, float]:
    count = len(_WORD.findall(text))
    shares: dict[str, float] = {}
    if constraints.get("include"):
        shares["include"] = sum(_holds(text, word) for word in constraints["include"]) / len(constraints["include"])
    if constraints.get("avoid"):
        shares["avoid"] = float(not any(_holds(text, word) for word in constraints["avoid"]))
    if "sentences" in constraints:
        shares["sentences"] = float(len(sentences(text)) == constraints["sentences"])
    if "max_words" in constraints:
        shares["max_words"] = float(count <= constraints["max_words"])
    if "min_words" in constraints:
        shares["min_words"] = float(count >= constraints["min_words"])
    return shares


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold()) is not None
