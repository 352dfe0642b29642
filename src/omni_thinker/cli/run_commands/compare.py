"""The command `compare`: several studies side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.output import Json, finish, paper
from omni_thinker.errors import UserError, printable


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run directories with a result.json.")],
    out: Annotated[Path | None, typer.Option(help="Also write a page (HTML). It must not exist.")] = None,
    json_: Json = False,
) -> None:
    """Put several studies side by side: what each showed, its arms, and which settings differ."""
    from omni_thinker.report.several import load_studies, side_by_side
    from omni_thinker.report.several_page import write_comparison

    if out is not None and out.exists():
        raise UserError("exists; name a new file", file=out, key="--out")
    studies = load_studies(runs)
    frames = side_by_side(studies)
    for frame in frames.values():
        _print(frame)
    typer.echo(printable(studies.note))
    if out is not None:
        write_comparison(studies, out)
        typer.echo(f"page: {out}")
    tables = {name: {"columns": frame.header(), "rows": frame.plain()} for name, frame in frames.items()}
    finish({"studies": list(studies.runs), "tables": tables, "out": None if out is None else str(out)}, json_)


def _print(frame: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=frame.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column, left in zip(frame.columns, frame.lefts(), strict=True):
        table.add_column(Text(printable(column.head)), justify="left" if left else "right", header_style="dim")
    for row in frame.shown():
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = paper()
    console.print(table)
    console.print()
