"""The Judge protocol: which of two texts answers a prompt better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a response fares against the reference.

    `margin` is by how much, in the judge's own unit, positive where the response is better; None where the judge
    has no such number. An "error" is no verdict: it must never be counted as "lose".
    """

    outcome: Literal["win", "tie", "lose", "error"]
    margin: float | None = None
    reason: str | None = None


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
