"""A judge behind an API: each response against the reference, in both seats."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Mapping, Sequence

from omni_thinker.judging.base import Verdict
from omni_thinker.judging.client import ChatClient, NoReply
from omni_thinker.judging.limits import BudgetReached
from omni_thinker.judging.prompts import PAIRWISE_SCHEMA, load_prompt, read_verdict

_MARKUP = re.compile(
    r"""
      ^\s{0,3}(?:\#{1,6}\s+|>\s?|[-*+]\s+|\d+[.)]\s+|```.*$|\|?\s*:?-{3,}.*$)   # headings, quotes, lists, fences, rules
    | [*_`~]{1,3}                                                              # emphasis, code
    | \[([^\]]*)\]\([^)]*\)                                                   # links
    """,
    re.MULTILINE | re.VERBOSE,
)


class EndpointJudge:
    """Asks whether a response or the reference answers better; never takes a missing or unreadable verdict for one.

    Where both seats are asked a response wins only if it does in both; verdicts that differ are a tie (margin None,
    reason "depends on the seat").
    """

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        spec = client.spec
        self.name = f"endpoint:{spec.model}"
        self.caveat = (
            f"Preferences are those of {spec.model}, a language model. How often it agrees with people on texts like "
            "these is not known here; `omni-thinker judge agree` measures it on pairs of your own."
        )
        self._prompt = load_prompt(spec.prompt)
        self._lock = threading.Lock()
        self._counts = {"verdicts": 0, "ties": 0, "consistent": 0, "errors": 0}

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response, all asked for at once. Distinct texts are asked about once."""
        distinct = [text for text in dict.fromkeys(responses) if text != reference]
        found = await asyncio.gather(*(self._verdict(prompt, text, reference) for text in distinct))
        known = dict(zip(distinct, found, strict=True))
        return [known.get(text, Verdict("tie", None, "the reference's own words")) for text in responses]

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent and the run is to end."""
        return self.client.meter.reached and self.client.spec.budget.when_reached == "stop"

    def metrics(self) -> Mapping[str, float]:
        """Since the start: shares of ties, errors and verdicts that don't depend on the seat; cost; cache hits."""
        with self._lock:
            counts = dict(self._counts)
        decided = max(1, counts["verdicts"])
        usage, cache = self.client.meter.usage, self.client.cache
        found = {
            "judge/verdicts": float(counts["verdicts"]),
            "judge/tie_rate": counts["ties"] / decided,
            "judge/consistent": counts["consistent"] / decided,
            "judge/error_rate": counts["errors"] / max(1, counts["verdicts"] + counts["errors"]),
            "judge/requests": float(usage.requests),
            "judge/tokens": float(usage.input_tokens + usage.output_tokens),
            "judge/money": usage.money,
        }
        if cache is not None:
            found["judge/cache_hits"] = cache.hits / max(1, cache.hits + cache.misses)
        return found

    async def _verdict(self, prompt: str, response: str, reference: str) -> Verdict:
        verdict = await self._asked(prompt, response, reference)
        with self._lock:
            self._counts["errors"] += verdict.outcome in ("error", "abstain")
            self._counts["verdicts"] += verdict.outcome not in ("error", "abstain")
            self._counts["ties"] += verdict.outcome == "tie"
            self._counts["consistent"] += verdict.outcome in ("win", "lose") or verdict.margin == 0.0
        return verdict

    async def _asked(self, prompt: str, response: str, reference: str) -> Verdict:
        if not response.strip():
            return Verdict("lose" if reference.strip() else "tie", None, "empty text")
        seats = [(response, reference), (reference, response)][: 2 if self.client.spec.both_seats else 1]
        try:
            better = await asyncio.gather(*(self._better(prompt, *pair) for pair in seats))
        except BudgetReached as exc:
            return Verdict("abstain", None, str(exc))
        except NoReply as exc:
            return Verdict("error", None, str(exc))
        if None in better:
            return Verdict("error", None, "a reply without a verdict")
        points = [0 if seat == 0 else 1 if (seat == 1) == (place == 0) else -1 for place, seat in enumerate(better)]
        if len(set(points)) > 1:
            return Verdict("tie", None, "depends on the seat")
        outcome = {1: "win", 0: "tie", -1: "lose"}[points[0]]
        return Verdict(outcome, float(points[0]))  # type: ignore[arg-type]

    async def _better(self, prompt: str, first: str, second: str) -> int | None:
        if self.client.spec.strip_markdown:
            first, second = strip_markdown(first), strip_markdown(second)
        text = self._prompt.fill(prompt, first, second)
        reply = await self.client.ask(text, PAIRWISE_SCHEMA, prompt_version=self._prompt.version)
        return read_verdict(reply.text)

    def close(self) -> None:
        self.client.close()


def strip_markdown(text: str) -> str:
    """Without headings, lists, emphasis, code marks and link targets; the words stay."""
    return _MARKUP.sub(lambda match: match[1] or "", text)
