"""A judge behind an API: a response against the reference, a group against itself, or an answer by a rubric."""

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from omni_thinker.judging.base import Criterion, Verdict
from omni_thinker.judging.endpoint.causes import NoReply
from omni_thinker.judging.endpoint.client import ChatClient
from omni_thinker.judging.limits import BudgetReached
from omni_thinker.judging.listwise import agreed_points, both_orders
from omni_thinker.judging.prompts import PAIRWISE_SCHEMA, RANKING_SCHEMA, RUBRIC_SCHEMA, load_prompt
from omni_thinker.judging.rubric import agreed_rating, describe
from omni_thinker.judging.tally import Tally, log_ratio
from omni_thinker.judging.verdicts import lead, read_digit, read_points, read_ranking, read_verdict
from omni_thinker.types import Score

_T = TypeVar("_T")
_PAIRWISE = {"text": "pairwise-v1", "logprobs": "pairwise-digit-v1"}
_MARKUP = re.compile(
    r"""
      ^[ ]{0,3}(?:\#{1,6}[ ]+|>[ ]?|[-*+][ ]+|\d{1,4}[.)][ ]+|```.*$|\|?[ ]?:?-{3,}.*$)  # headings, lists, fences
    | (?<![\w*_`~])[*_`~]{1,3}(?=\S) | (?<=\S)[*_`~]{1,3}(?![\w*_`~])           # emphasis, code: at the edges of words
    | \[([^\[\]\n]{0,300})\]\([^()\n]{0,500}\)                                # links
    """,
    re.MULTILINE | re.VERBOSE,
)


class EndpointJudge:
    """Never takes a missing or unreadable verdict for one: it is an error, or an abstention where a budget is spent.

    Where both seats are asked a response wins only if it does in both; verdicts that differ are a tie (margin None,
    reason "depends on the seat")."""

    local = False

    def __init__(self, client: ChatClient, tally: Tally | None = None) -> None:
        """`tally`: where verdicts are counted; None: in one of its own."""
        self.client = client
        spec = client.spec
        self.name = f"endpoint:{spec.model}"
        self.caveat = (
            f"Preferences are those of {spec.model}, a language model. How often it agrees with people on texts like "
            "these is not known here; `omni-thinker judge agree` measures it on pairs of your own."
        )
        self._pairwise = load_prompt(spec.prompt or _PAIRWISE[spec.verdict])
        self._ranking, self._rubric = load_prompt(spec.ranking_prompt), load_prompt(spec.rubric_prompt)
        self._tally = tally or Tally()

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response, all asked for at once. Distinct texts are asked about once."""
        distinct = [text for text in dict.fromkeys(responses) if text != reference]
        verdicts = await asyncio.gather(*(self._verdict(prompt, text, reference) for text in distinct))
        known = dict(zip(distinct, verdicts, strict=True))
        return [known.get(text, Verdict("tie", None, "the reference's own words")) for text in responses]

    async def _verdict(self, prompt: str, response: str, reference: str) -> Verdict:
        verdict = await self._asked(prompt, response, reference)
        steady = verdict.outcome in ("win", "lose") or verdict.margin == 0.0
        self._tally.verdict(verdict, response, reference, steady=steady)
        return verdict

    async def _asked(self, prompt: str, response: str, reference: str) -> Verdict:
        if not response.strip():
            return Verdict("lose" if reference.strip() else "tie", None, "empty text")
        seats = [(response, reference), (reference, response)][: 2 if self.client.spec.both_seats else 1]
        found = await _settled(asyncio.gather(*(self._lead(prompt, *pair) for pair in seats)))
        if isinstance(found, Score):
            return Verdict("abstain" if found.status == "abstain" else "error", None, found.reason)
        # The second seat speaks of the reference.
        ours = [margin if place == 0 else -margin for place, margin in enumerate(found)]
        if min(ours) < 0 < max(ours) or (min(ours) != max(ours) and 0 in ours):
            return Verdict("tie", None, "depends on the seat")
        margin = sum(ours) / len(ours)
        return Verdict("win" if margin > 0 else "lose" if margin < 0 else "tie", margin)

    async def _lead(self, prompt: str, first: str, second: str) -> float:
        """By how much the first answer leads, in [-1, 1]. Raises NoReply where the reply doesn't say."""
        text = self._pairwise.fill(prompt, self._shown([first, second]))
        version, digit = self._pairwise.version, self.client.spec.verdict == "logprobs"
        if digit:
            return await self.client.ask(text, PAIRWISE_SCHEMA, read_digit, prompt_version=version, digit=True)
        return lead(await self.client.ask(text, PAIRWISE_SCHEMA, read_verdict, prompt_version=version))

    async def rank(self, prompt: str, responses: Sequence[str]) -> list[Score]:
        """For each response the share of the others that it beats, asked in two orders; where these differ over a
        pair it is a tie. The same text has the same rank; one text alone has 0.5."""
        said = [text for text in responses if text.strip()]
        distinct = list(dict.fromkeys(said))
        others, empty = len(responses) - 1, len(responses) - len(said)
        if others < 1:
            return [Score.of(0.5)] * len(responses)
        # What says nothing loses to all that says something, and isn't shown.
        points = {text: Score.of(0.5 * (empty - 1) / others) for text in responses if not text.strip()}
        if len(distinct) < 2:
            points |= {text: Score.of((0.5 * (len(said) - 1) + empty) / others) for text in distinct}
            return [points[text] for text in responses]
        orders = both_orders(distinct, prompt)[: 2 if self.client.spec.both_seats else 1]
        rankings = await _settled(asyncio.gather(*(self._ranked(prompt, distinct, order) for order in orders)))
        if isinstance(rankings, Score):
            self._tally.failure()
            return [points.get(text, rankings) for text in responses]
        shares, pairs = agreed_points(rankings, weight=[said.count(text) for text in distinct])
        for i, j, ahead in pairs:
            self._tally.points((ahead + 1) / 2, log_ratio(distinct[i], distinct[j]), steady=ahead != 0)
        points |= {
            text: Score.of((share * (len(said) - 1) + empty) / others)
            for text, share in zip(distinct, shares, strict=True)
        }
        return [points[text] for text in responses]

    async def _ranked(self, prompt: str, texts: Sequence[str], order: Sequence[int]) -> list[int]:
        """Places in `texts`, best first. Raises NoReply where the reply ranks anything else."""
        shown = self._ranking.fill(prompt, self._shown([texts[place] for place in order]))
        read = partial(read_ranking, count=len(texts))
        ranking = await self.client.ask(shown, RANKING_SCHEMA, read, prompt_version=self._ranking.version)
        return [order[number - 1] for number in ranking]

    async def rate(self, prompt: str, responses: Sequence[str], rubric: Sequence[Criterion]) -> list[Score]:
        """For each response its mean points, scaled to [0, 1], with a part for each criterion. Asked with the criteria
        in two orders; points are the mean of the two."""
        distinct = list(dict.fromkeys(responses))
        scores = await asyncio.gather(*(self._rated(prompt, text, rubric) for text in distinct))
        known = dict(zip(distinct, scores, strict=True))
        return [known[text] for text in responses]

    async def _rated(self, prompt: str, response: str, rubric: Sequence[Criterion]) -> Score:
        if not response.strip():
            return Score.of(0.0)
        orders = [list(range(len(rubric))), list(reversed(range(len(rubric))))]
        orders = orders[: 2 if self.client.spec.both_seats and len(rubric) > 1 else 1]
        requests = (self._points(prompt, response, [rubric[place] for place in order]) for order in orders)
        replies = await _settled(asyncio.gather(*requests))
        if isinstance(replies, Score):
            self._tally.failure()
            return replies
        sorted_back = [
            [points[order.index(place)] for place in range(len(rubric))]
            for points, order in zip(replies, orders, strict=True)
        ]
        value, parts, steady = agreed_rating(rubric, sorted_back)
        self._tally.points(value, log_ratio(response, prompt), steady=steady)
        return Score("value", value, parts)

    async def _points(self, prompt: str, response: str, rubric: Sequence[Criterion]) -> tuple[int, ...]:
        text = self._rubric.fill(prompt, self._shown([response]), describe(rubric))
        read = partial(read_points, count=len(rubric))
        return await self.client.ask(text, RUBRIC_SCHEMA, read, prompt_version=self._rubric.version)

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent and the run is to end."""
        return self.client.desk.reached and self.client.spec.budget.when_reached == "stop"

    def metrics(self) -> Mapping[str, float]:
        """Since the start: what verdicts were like, cost, and the share of replies that came from the cache."""
        return self._tally.metrics() | self.client.desk.metrics()

    def state(self) -> dict[str, Any]:
        return {"tally": self._tally.state(), **self.client.desk.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._tally.restore(state["tally"])
        self.client.desk.restore(state)

    def close(self) -> None:
        self.client.close()

    def _shown(self, texts: Sequence[str]) -> list[str]:
        return [strip_markdown(text) for text in texts] if self.client.spec.strip_markdown else list(texts)


async def _settled(replies: Awaitable[_T]) -> _T | Score:
    """The replies, or the score that stands for their failure."""
    try:
        return await replies
    except BudgetReached as exc:
        return Score.abstain(str(exc))
    except NoReply as exc:
        return Score.error(str(exc))


def strip_markdown(text: str) -> str:
    """Without headings, lists, emphasis, code marks and link targets; the words stay."""
    return _MARKUP.sub(lambda match: match[1] or "", text)
