"""The Judge protocol: which of two texts answers a prompt better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from omni_thinker.types import Score


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a response fares against the reference.

    `margin` is by how much, in the judge's own unit, positive where the response is better; None where the judge
    has no such number. An "error" is no verdict: it must never be counted as "lose". "abstain": there may be no
    verdict, because a budget is spent."""

    outcome: Literal["win", "tie", "lose", "error", "abstain"]
    margin: float | None = None
    reason: str | None = None


def without_asking(text: str, reference: str) -> Verdict | None:
    """The verdict that needs no judge: the same text ties, an empty one loses against any other. None elsewhere."""
    if text == reference:
        return Verdict("tie", 0.0)
    if text.strip() and reference.strip():
        return None
    if not text.strip() and not reference.strip():
        return Verdict("tie", None, "empty text")
    return Verdict("lose" if reference.strip() else "win", None, "empty text")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One line of a rubric: what is looked at, and what earns how many points ("1-2": "...")."""

    name: str
    description: str
    bands: Mapping[str, str]


@runtime_checkable
class Judge(Protocol):
    """Compares responses with a reference."""

    @property
    def name(self) -> str: ...

    @property
    def caveat(self) -> str:
        """One plain sentence for the report: what this judge's verdicts are worth."""

    @property
    def local(self) -> bool:
        """Whether it computes on this machine, and so can't work while the policy samples."""

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response, in order. Swapping a response with the reference must swap win and lose."""

    def metrics(self) -> Mapping[str, float]:
        """What verdicts were like since the start (ties, consistency, correlation with length), and what they cost;
        under names that begin with `judge/`."""


@runtime_checkable
class Costly(Judge, Protocol):
    """A judge that is paid for."""

    @property
    def exhausted(self) -> bool:
        """Whether its budget is spent and the run is to end."""


@runtime_checkable
class Counting(Judge, Protocol):
    """A judge whose counts can be kept, for a run that goes on in another process."""

    def state(self) -> dict[str, Any]:
        """The counts as plain JSON, for `restore`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Count on from there."""


@runtime_checkable
class Ranker(Judge, Protocol):
    """A judge that can rank several responses at once."""

    async def rank(self, prompt: str, responses: Sequence[str]) -> list[Score]:
        """For each response the share of the others that it beats, a tie counting half."""


@runtime_checkable
class Rater(Judge, Protocol):
    """A judge that can rate a response by criteria."""

    async def rate(self, prompt: str, responses: Sequence[str], rubric: Sequence[Criterion]) -> list[Score]:
        """For each response its mean points, scaled to [0, 1]."""


class NoJudge:
    """A placeholder where only gates are scored. It is never called."""

    name = "none"
    caveat = "No judge."
    local = False

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        return [Verdict("error", None, "no judge") for _ in responses]

    async def rate(self, prompt: str, responses: Sequence[str], rubric: Sequence[Criterion]) -> list[Score]:
        return [Score.error("no judge") for _ in responses]

    def metrics(self) -> Mapping[str, float]:
        return {}
