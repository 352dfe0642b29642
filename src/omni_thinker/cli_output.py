"""What all commands print alike."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def finish(table: dict[str, Any], json_: bool) -> None:
    """The last line, for machines."""
    if json_:
        from omni_thinker.runs.rundir import to_json

        typer.echo(to_json(table))
