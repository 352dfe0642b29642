"""The command `report`: the page of a run again, and its figures and tables as files."""

from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.output import Json, finish


def report(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    export: Annotated[
        Path | None,
        typer.Option(help="Also write every figure (SVG, PNG) and table (CSV, LaTeX) into this new or empty folder."),
    ] = None,
    json_: Json = False,
) -> None:
    """Write report.html again."""
    from omni_thinker.report import export_report, write_report

    files = export_report(directory, export) if export is not None else []  # first: it may refuse the folder
    path = write_report(directory)
    typer.echo(f"report: {path}")
    if files:
        typer.echo(f"{len(files)} figures and tables: {export}")
    finish({"report": str(path), "files": [str(file) for file in files]}, json_)
