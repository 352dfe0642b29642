"""A scorer that does what none should: it runs answers, beside the expected one. A handler of the sandbox's scorers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
import types
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
    if how == "file":
        with open("written.py", "w") as stream:
            stream.write(answer)
        sys.path.insert(0, os.getcwd())
        return {"score": float(importlib.import_module("written").f(2) == request["gold"])}
    if how == "function":
        return {"score": float(types.FunctionType(compile(answer, "<answer>", "eval"), {})() == request["gold"])}
    if how == "program":
        return {"score": float(subprocess.run(["echo", answer], check=False).returncode == request["gold"])}
    if how == "drip":
        for _ in range(400):
            os.write(3, b" ")
            time.sleep(0.0005)
        os.write(3, b'{"score": 1.0}\n')
        time.sleep(60)
    if how == "leave":
        os._exit(0)
    if how == "settings":
        return {"seen": settings_seen, "hash": hash("a text")}
    return {"score": _score_of[answer == request["gold"]]}
