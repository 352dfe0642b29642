"""What a run's verdicts are like: ties, failures, steadiness, and how far they follow length."""

import math
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from omni_thinker.judging.base import Verdict

POINTS: Mapping[str, float] = {"win": 1.0, "tie": 0.5, "lose": 0.0}


class Tally:
    """Counts since the start; may be fed from several threads. Sums are exact, so that their order is no matter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._empty()

    def _empty(self) -> None:
        self._verdicts = self._ties = self._steady = self._failures = 0
        self._sums = [Fraction(0)] * 6
        self._guarded = self._asked = 0

    def verdict(self, verdict: Verdict, response: str, reference: str, *, steady: bool = True) -> None:
        """Count one verdict. `steady`: both seats said the same."""
        points = POINTS.get(verdict.outcome)
        if points is None:
            self.failure()
        else:
            self.points(points, log_ratio(response, reference), steady=steady)

    def points(self, points: float, length: float | None, *, steady: bool = True) -> None:
        """Count points in [0, 1] for a text; `length`: its log-length against what it was compared with."""
        with self._lock:
            self._verdicts += 1
            self._ties += points == 0.5
            self._steady += steady
            if length is not None:
                moments = (1.0, length, points, length * length, points * points, length * points)
                self._sums = [a + Fraction(b) for a, b in zip(self._sums, moments, strict=True)]

    def failure(self) -> None:
        """Count a question without an answer."""
        with self._lock:
            self._failures += 1

    def guard(self, *, guarded: bool) -> None:
        """Count a verdict that a guard has looked at. `guarded`: it was made a tie."""
        with self._lock:
            self._asked += 1
            self._guarded += guarded

    @property
    def guards(self) -> tuple[int, int]:
        """(verdicts that a guard made ties, verdicts that it has looked at)."""
        with self._lock:
            return self._guarded, self._asked

    def restore_guards(self, guarded: int, asked: int) -> None:
        with self._lock:
            self._guarded, self._asked = guarded, asked

    def take(self) -> dict[str, Any]:
        """`all_counts`, which begin at 0 again."""
        with self._lock:
            taken = self._all_counts()
            self._empty()
            return taken

    def all_counts(self) -> dict[str, Any]:
        """Those of guards too, as plain JSON for `add`."""
        with self._lock:
            return self._all_counts()

    def _all_counts(self) -> dict[str, Any]:
        return {**self._state(), "guards": [self._guarded, self._asked]}

    def add(self, taken: Mapping[str, Any]) -> None:
        """Count on by what another tally has counted. `taken`: of `take` or `all_counts`."""
        with self._lock:
            verdicts, ties, steady, failures = taken["counts"]
            self._verdicts, self._ties = self._verdicts + verdicts, self._ties + ties
            self._steady, self._failures = self._steady + steady, self._failures + failures
            self._sums = [a + Fraction(b) for a, b in zip(self._sums, taken["sums"], strict=True)]
            guarded, asked = taken["guards"]
            self._guarded, self._asked = self._guarded + guarded, self._asked + asked

    def state(self) -> dict[str, Any]:
        """The counts as plain JSON, for `restore`. Those of guards are theirs to keep."""
        with self._lock:
            return self._state()

    def _state(self) -> dict[str, Any]:
        counts = [self._verdicts, self._ties, self._steady, self._failures]
        return {"counts": counts, "sums": [str(moment) for moment in self._sums]}

    def restore(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            self._verdicts, self._ties, self._steady, self._failures = state["counts"]
            self._sums = [Fraction(moment) for moment in state["sums"]]

    def metrics(self) -> dict[str, float]:
        """Under names that begin with `judge/`. The correlation (Pearson's, of points and log-length ratio) is absent
        until both have varied."""
        with self._lock:
            decided = max(1, self._verdicts)
            metrics = {
                "judge/verdicts": float(self._verdicts),
                "judge/tie_rate": self._ties / decided,
                "judge/consistent": self._steady / decided,
                "judge/error_rate": self._failures / max(1, self._verdicts + self._failures),
            }
            n, x, y, xx, yy, xy = (float(moment) for moment in self._sums)
        spread = (n * xx - x * x) * (n * yy - y * y)
        if n > 1 and spread > 1e-9 * max(1.0, n * n * xx * yy):
            metrics["judge/length_correlation"] = (n * xy - x * y) / math.sqrt(spread)
        return metrics


class TalliedJudge:
    """A judge that computes with this machine's cores or device, and counts its verdicts."""

    local = True

    def __init__(self, tally: Tally | None = None) -> None:
        self._tally = tally or Tally()

    def counted(self, verdicts: list[Verdict], responses: Sequence[str], reference: str) -> list[Verdict]:
        """The same verdicts."""
        for verdict, response in zip(verdicts, responses, strict=True):
            self._tally.verdict(verdict, response, reference)
        return verdicts

    def metrics(self) -> Mapping[str, float]:
        return self._tally.metrics()

    def state(self) -> dict[str, Any]:
        return self._tally.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._tally.restore(state)


def log_ratio(text: str, other: str) -> float | None:
    """log(length / other length) in characters; None where either is empty."""
    return math.log(len(text) / len(other)) if text and other else None
