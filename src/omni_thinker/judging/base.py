"""The Judge protocol: which of two texts answers a prompt better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a response fares against the reference.

    `margin` is by how much, in the judge's own unit, positive where the response is better; None where the judge
    has no such number. An "error" is no verdict: it must never be counted as "lose". "abstain": there may be no
    verdict, because a budget is spent.
    """

    outcome: Literal["win", "tie", "lose", "error", "abstain"]
    margin: float | None = None
    reason: str | None = None


@runtime_checkable
class Costly(Protocol):
    """What a judge that is paid for can tell."""

    @property
    def exhausted(self) -> bool:
        """Whether its budget is spent and the run is to end."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Since the start, under names that begin with `judge/`."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Compares responses with a reference."""

    @property
    def name(self) -> str: ...

    @property
    def caveat(self) -> str:
        """One plain sentence for the report: what this judge's verdicts are worth."""
        ...

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response, in order. Swapping a response with the reference must swap win and lose."""
        ...
