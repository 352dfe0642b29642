"""Parts that ask a judge: against a reference, within the group, or by a rubric."""

from abc import abstractmethod
from collections.abc import Sequence

from omni_thinker.judging import Judge, Ranker, Rater, Verdict
from omni_thinker.judging.listwise import tournament
from omni_thinker.judging.rubric import read_rubric
from omni_thinker.judging.tally import POINTS
from omni_thinker.rewards.parts import Part, data_text, valued
from omni_thinker.types import Group, Problem, Score


class JudgedPart(Part):
    """Asks about each distinct text once. A judge that fails gives errors, never a value."""

    judged = True

    def __init__(self, judge: Judge, name: str) -> None:
        self._judge, self._name = judge, name
        self.local = judge.local

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        texts = [sample.text for sample in group.samples]
        try:
            return await self._scores(texts, problem)
        except Exception as exc:  # whatever a judge raises says nothing about the response
            return [Score.error(f"{self._name}: {type(exc).__name__}: {exc}"[:300])] * len(texts)

    @abstractmethod
    async def _scores(self, texts: Sequence[str], problem: Problem) -> list[Score]: ...


class Preference(JudgedPart):
    """Against data["reference"]: win 1, tie 0.5, lose 0. The same text is a tie and costs no judgement.

    A missing reference is an error. `check` doesn't ask for one: references may be written later, by the starting
    model."""

    compares = True

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge, "preference")

    async def _scores(self, texts: Sequence[str], problem: Problem) -> list[Score]:
        reference = data_text(problem, "reference")
        if reference is None:
            return [Score.error("preference: the problem has no reference")] * len(texts)
        to_compare = list(dict.fromkeys(text for text in texts if text.split() != reference.split()))
        verdicts = await self._judge.compare(problem.shown, to_compare, reference) if to_compare else []
        known = dict(zip(to_compare, verdicts, strict=True))
        return [_score(known.get(text)) for text in texts]


class Ranking(JudgedPart):
    """Within the group: the share of the other samples that a sample beats, so half on average.

    A judge that ranks is asked for the whole group at once; any other plays a tournament of pairs, `rounds` for each
    sample. It says which samples are better than their siblings, not how good they are: evaluations ask for the
    preference over the reference instead."""

    compares = True

    def __init__(self, judge: Judge, rounds: int | None = None) -> None:
        """`rounds`: always a tournament of so many; None: one where the judge can't rank, of four."""
        super().__init__(judge, "ranking")
        self._rounds = rounds

    async def _scores(self, texts: Sequence[str], problem: Problem) -> list[Score]:
        if self._rounds is None and isinstance(self._judge, Ranker):
            scores = await self._judge.rank(problem.shown, texts)
        else:
            scores = await tournament(self._judge, problem.shown, texts, self._rounds or 4)
        return [_named("ranking", score) for score in scores]


class Tournament(Ranking):
    """`Ranking` by pairs, four rounds, whatever the judge can do."""

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge, rounds=4)


class Rubric(JudgedPart):
    """Mean points by the criteria in data["rubric"], scaled to [0, 1], from judges that can rate."""

    rates = True

    def __init__(self, judge: Rater) -> None:
        super().__init__(judge, "rubric")
        self._rater = judge

    async def _scores(self, texts: Sequence[str], problem: Problem) -> list[Score]:
        rubric = read_rubric(problem.data.get("rubric"))
        return [_named("rubric", score) for score in await self._rater.rate(problem.shown, texts, rubric)]

    def check(self, problem: Problem) -> str | None:
        try:
            read_rubric(problem.data.get("rubric"))
        except ValueError as exc:
            return f"data.rubric: {exc}"
        return None


def _score(verdict: Verdict | None) -> Score:
    if verdict is None:
        return valued(0.5, "same text as the reference")
    if verdict.outcome == "abstain":
        return Score.abstain(f"preference: {verdict.reason or 'no verdict'}")
    if verdict.outcome not in POINTS:
        return Score.error(f"preference: {verdict.reason or 'no verdict'}")
    return valued(POINTS[verdict.outcome], verdict.reason)


def _named(name: str, score: Score) -> Score:
    if score.status == "value":
        return score
    return Score(score.status, reason=f"{name}: {score.reason or 'no verdict'}")
