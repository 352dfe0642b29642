"""reasoning_gym's scorers in a worker process. A script for isolation/calls.py, never imported."""

from __future__ import annotations

from typing import Any

import reasoning_gym  # noqa: TID253  (this script runs in a process of its own, and only where it is wanted)

_scorers: dict[str, Any] = {}


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """{"gym", "answer", "entry"} -> {"score": float}. A scorer's exception is reported by the caller."""
    name = request["gym"]
    if name not in _scorers:
        _scorers[name] = reasoning_gym.get_score_answer_fn(name)
    return {"score": float(_scorers[name](request["answer"], request["entry"]))}
