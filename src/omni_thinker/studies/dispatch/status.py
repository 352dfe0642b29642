"""How far a run is, for a process that doesn't work on it."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.runs.lock import holder

STATUS = "status.json"
COUNTED = ("done", "running", "waiting")


def read_status(directory: Path) -> dict[str, Any]:
    """What `status.json` says, and whether somebody works on the run. Raises UserError where there is no run."""
    path = directory / STATUS
    try:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _check(table)
        age = max(0.0, time.time() - table["at"])
        waiting = sum(counts["running"] + counts["waiting"] for counts in table["units"].values())
    except FileNotFoundError:
        if owner := holder(directory):
            return {"state": "starting", "owner": owner, "units": {}, "running": []}
        raise UserError(
            "missing; the study has not begun, an earlier version ran it, or this is no run's directory", file=path
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise UserError(f"isn't what a run writes ({type(exc).__name__}: {exc})", file=path) from None
    owner = holder(directory)
    state = "running" if owner else "stopped" if waiting else "ended"
    if state == "stopped":  # nobody works on what was running then
        for counts in table["units"].values():
            counts["waiting"], counts["running"] = counts["waiting"] + counts["running"], 0
        table["running"] = []
    return {**table, "state": state, "owner": owner, "age": round(age, 1)}


def _check(table: Mapping[str, Any]) -> None:
    """Raises ValueError, or what Python does, for what is no `Board.table`."""
    words, numbers = list(table["units"]), [table[name] for name in ("at", "done", "workers", "seconds_left")]
    numbers += [counts[state] for counts in table["units"].values() for state in COUNTED]
    for unit in table["running"]:
        words += [unit["unit"], unit["line"]]
        numbers += [unit["seed"], unit["seconds"]]
    if not all(isinstance(word, str) for word in words) or not all(map(math.isfinite, numbers)):
        raise ValueError("no names and numbers")
