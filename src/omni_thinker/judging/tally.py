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
        self._verdicts = self._ties = self._steady = self._failures = 0
        self._sums = [Fraction(0)] * 6

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

    def state(self) -> dict[str, Any]:
        """The counts as plain JSON, for `restore`."""
        with self._lock:
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

    def __init__(self) -> None:
        self._tally = Tally()

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
