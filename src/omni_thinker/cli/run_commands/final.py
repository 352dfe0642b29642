"""The table that a whole study was for, in a terminal."""

import math
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from omni_thinker.cli.output import paper
from omni_thinker.errors import printable
from omni_thinker.report import write_report
from omni_thinker.report.headline import headline
from omni_thinker.report.tables import Cell, arm_rows
from omni_thinker.runs.read import RunData, load_run
from omni_thinker.runs.schema.base import MACRO

LEGEND = "▲ ▼ shown to be above or below the start; △ ▽ a hint, by itself alone; bold: the highest of a column"


def tell_result(directory: Path) -> Path:
    """Write the report of a run that has ended, print what came of it, and return the report's path."""
    path = write_report(directory)
    run = load_run(directory)
    print_result(run)
    typer.echo(run.result.verdict)
    typer.echo(f"report: {path}")
    return path


def print_result(run: RunData) -> None:
    """Arms x tasks on the test split and what the study showed, on stdout."""
    console = paper()
    console.print(result_table(run))
    console.print(Text(LEGEND, "dim"))
    line = headline(run)
    tiles = "; ".join(f"{tile.name.lower()} {tile.value} ({tile.about})" for tile in line.tiles)
    if tiles or line.line not in run.result.verdict:  # the verdict follows
        console.print(Text(printable(f"{line.line}: {tiles}." if tiles else f"{line.line}.")))


def result_table(run: RunData) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm (test split)", no_wrap=True)
    for name in [*run.tasks, MACRO]:
        table.add_column(Text(printable(name)), justify="right", no_wrap=True)
    for row in arm_rows(run):
        table.add_row(Text(printable(row.arm)), *map(_cell, row.cells))
    return table


def _cell(cell: Cell) -> Text:
    if not math.isfinite(cell.mean):
        return Text("–")
    mark = ("△" if cell.hint else "▲") if cell.versus > 0 else ("▽" if cell.hint else "▼") if cell.versus < 0 else " "
    return Text(f"{cell.mean:.3f}{mark}", "bold" if cell.best else "")
