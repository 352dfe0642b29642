"""The script that says how often an answer is right after an error message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import turn_success


def test_success_after_an_error_is_counted_by_hand_with_an_interval() -> None:
    """Of four problems the start mends 1 of 3, the arm 2 of 2; a problem that was right at once counts for neither."""

    def row(arm: str, problem: int, *turns: str, score: float | None, split: str = "test") -> dict[str, Any]:
        told = {"seed": 0, "split": split, "task": "t", "turns": list(turns)}
        return {**told, "arm": arm, "problem": str(problem), "score": score}

    rows = [row("start", n, "a", "no", "b", score=float(n == 0)) for n in range(3)]
    rows += [row("start", 3, "a", score=1.0), row("joint", 2, "a", score=1.0), row("joint", 3, "a", score=1.0)]
    rows += [row("joint", n, "a", "no", "b", score=1.0) for n in range(2)]
    rows += [row("joint", 9, "a", "no", "b", score=1.0, split="validation"), row("other", 0, "a", score=1.0)]
    counts = turn_success.counted(rows, "joint")["seed 0"]
    assert counts.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert turn_success.shares(counts).tolist() == [pytest.approx(1 / 3), 1.0]
    many = np.tile(counts, (50, 1))
    low, high = turn_success.interval(many)
    assert low < 2 / 3 < high
    assert low > 0.5
    assert high < 0.8
