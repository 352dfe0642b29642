"""Parts that shape how an answer is given, not what it says. In a sum they want a small weight."""

import re

from omni_thinker.rewards.parts import Part, SamplePart, valued
from omni_thinker.types import Group, Problem, Sample, Score

_RUN = 3
_WORD = re.compile(r"\w+")


def _length(sample: Sample) -> int:
    """Tokens of the answer, or words where a text came without them (scored from a file)."""
    return sample.answer_length if sample.tokens else len(sample.text.split())


class Brevity(Part):
    """1 for the shortest sample of a group, 0 for the longest, linear between (length reward of arXiv 2501.12599).

    All 1 where all are of one length. A sample that ended within its thoughts gave no answer, so it gets 0."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        lengths = [_length(sample) for sample in group.samples if sample.answered]
        shortest, spread = min(lengths, default=0), max(lengths, default=0) - min(lengths, default=0)
        return [
            valued(1.0 - (_length(sample) - shortest) / spread if spread else 1.0) if sample.answered else _unanswered()
            for sample in group.samples
        ]


class NotOverlong(SamplePart):
    """1 up to data["length_limit"] minus data["length_buffer"], then linear down to 0 at the limit, and 0 above it.

    The soft overlong punishment of DAPO (arXiv 2503.14476), as a value in [0, 1]. Both in tokens; the buffer is a fifth
    of the limit where it isn't given."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        if not sample.answered:
            return _unanswered()
        limit = int(problem.data["length_limit"])
        buffer = int(problem.data.get("length_buffer", max(1, limit // 5)))
        return valued(min(1.0, max(0.0, (limit - _length(sample)) / buffer)))

    def check(self, problem: Problem) -> str | None:
        limit, buffer = problem.data.get("length_limit"), problem.data.get("length_buffer", 1)
        if not _whole(limit) or not _whole(buffer) or buffer > limit:
            return "not_overlong needs data['length_limit'], and a data['length_buffer'] of at most that (tokens)"
        return None


class NotRepetitive(SamplePart):
    """The share of runs of three words that are there for the first time; 1 for texts of fewer than three words.

    A "word" of more than thirty signs counts as its signs, so that scripts without spaces have runs, too."""

    async def score_sample(self, sample: Sample, problem: Problem) -> Score:
        units = [
            unit for word in _WORD.findall(sample.text.casefold()) for unit in (word if len(word) > 30 else [word])
        ]
        runs = [tuple(units[i : i + _RUN]) for i in range(len(units) - _RUN + 1)]
        return valued(len(set(runs)) / len(runs) if runs else 1.0)


def _unanswered() -> Score:
    return valued(0.0, "ended within its thoughts")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
