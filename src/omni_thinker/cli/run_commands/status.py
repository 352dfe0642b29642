"""The command `status`: how far a run is, while another process works on it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import printable


def status(directory: Annotated[Path, typer.Argument(help="A run directory.")], json_: Json = False) -> None:
    """Tell how far a run is: units done, running and waiting, and the time left."""
    from omni_thinker.studies.dispatch.status import COUNTED, read_status

    table = read_status(directory)
    typer.echo(printable(f"{directory}: {table['state']}" + (f" ({table['owner']})" if table["owner"] else "")))
    for kind, counts in table["units"].items():
        typer.echo(printable(f"{kind}: ") + ", ".join(f"{counts[state]} {state}" for state in COUNTED if counts[state]))
    if table["state"] == "stopped":
        typer.echo(f"resume with `omni-thinker study {shlex.quote(str(directory))} --resume`")
    if table["state"] == "ended" and (directory / "report.html").exists():
        typer.echo(f"report: {directory / 'report.html'}")
    if table["state"] == "running":
        for unit in table["running"]:
            line = " ".join(unit["line"].split())
            typer.echo(printable(f"seed {unit['seed']}: {unit['unit']}, {unit['seconds']:.0f} s: {line}"))
        workers = f"{table['workers']} worker{'' if table['workers'] == 1 else 's'}"
        typer.echo(f"{workers}; about {table['seconds_left']:.0f} s left; as of {table['age']:.0f} s ago")
    finish(table, json_)
