"""A scorer that does what none should: it runs answers, beside the expected one. A handler of the sandbox's scorers."""

from __future__ import annotations

import os
import time
from typing import Any

settings_seen: list[Any] = []
_score_of = {True: 1.0, False: 0.0}


def prepare(settings: Any) -> None:
    settings_seen.append(settings)


def handle(request: dict[str, Any]) -> dict[str, Any]:
    answer, how = request.get("answer", ""), request["how"]
    if how == "exec":
        space: dict[str, Any] = {}
        exec(answer, space)
        value = space.get("f", lambda x: None)(2)
        return {"score": _score_of[value == request["gold"]], "said": str(space.get("said"))}
    if how == "eval":
        return {"score": _score_of[eval(answer) == request["gold"]]}
    if how == "eval with names":
        return {"score": _score_of[eval(answer, {}) == request["gold"]]}
    if how == "sleep":
        time.sleep(60)
    if how == "leave":
        os._exit(0)
    if how == "settings":
        return {"seen": settings_seen, "hash": hash("a text")}
    return {"score": _score_of[answer == request["gold"]]}
