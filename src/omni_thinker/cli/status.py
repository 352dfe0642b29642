"""The command `status`: how far a run is, while another process works on it."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError, printable

_COUNTED = ("done", "running", "waiting")


def status(directory: Annotated[Path, typer.Argument(help="A run directory.")], json_: Json = False) -> None:
    """Tell how far a run is: units done, running and waiting, and the time left."""
    table = read_status(directory)
    typer.echo(f"{directory}: {table['state']}" + (f" ({table['owner']})" if table["owner"] else ""))
    for kind, counts in table["units"].items():
        typer.echo(f"{kind}: " + ", ".join(f"{counts[state]} {state}" for state in _COUNTED if counts[state]))
    if table["state"] == "stopped":
        typer.echo(f"resume with `omni-thinker study {shlex.quote(str(directory))} --resume`")
    if table["state"] == "ended" and (directory / "report.html").exists():
        typer.echo(f"report: {directory / 'report.html'}")
    if table["state"] == "running":
        for unit in table["running"]:
            line = " ".join(unit["line"].split())
            typer.echo(printable(f"seed {unit['seed']}: {unit['unit']}, {unit['seconds']:.0f} s: {line}"))
        typer.echo(f"{table['workers']} at a time, {table['seconds_left']:.0f} s left, {table['age']:.0f} s ago")
    finish(table, json_)


def read_status(directory: Path) -> dict[str, Any]:
    """What `status.json` says, and whether somebody works on the run. Raises UserError where there is no run."""
    import json
    import time

    from omni_thinker.runs.lock import holder
    from omni_thinker.studies.dispatch.board import STATUS

    path = directory / STATUS
    try:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
        _check(table)
        age = max(0.0, time.time() - table["at"])
        waiting = sum(counts["running"] + counts["waiting"] for counts in table["units"].values())
    except FileNotFoundError:
        if owner := holder(directory):
            return {"state": "starting", "owner": owner, "units": {}}
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
    numbers += [counts[state] for counts in table["units"].values() for state in _COUNTED]
    for unit in table["running"]:
        words += [unit["unit"], unit["line"]]
        numbers += [unit["seed"], unit["seconds"]]
    if not all(isinstance(word, str) for word in words) or not all(map(math.isfinite, numbers)):
        raise ValueError("no names and numbers")
