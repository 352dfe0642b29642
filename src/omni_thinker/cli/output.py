"""What every command can print: one JSON line, or a dry run."""

import io
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def finish(table: dict[str, Any], json_: bool) -> None:
    """Print `table` as the last line, with --json."""
    if json_:
        from omni_thinker.runs.json_text import to_json

        typer.echo(to_json(table))


def paper() -> "Console":
    """Stdout for tables. A log wraps nothing, and a mark that its encoding lacks becomes a question mark."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 1000
    return console


def tell(summary: Mapping[str, Any], units: Mapping[str, str]) -> None:
    """Print a dry run for people. Tables and numbers, such as the recipe, are printed by --json only."""
    for key, value in summary.items():
        if key == "work":
            typer.echo("work: " + ", ".join(f"{count} {units[kind]}" for kind, count in value.items()))
        elif key == "graph":
            typer.echo("\n".join(_graph(value)))
        elif key == "problems":
            for split, tasks in value.items():
                typer.echo(f"{split}: " + ", ".join(f"{task} {count}" for task, count in tasks.items()))
        elif isinstance(value, list):
            typer.echo(f"{key}: {', '.join(map(str, value))}")
        elif isinstance(value, str):
            typer.echo(f"{key}: {value}")


def _graph(graph: Mapping[str, Any]) -> list[str]:
    """The units of a study, and what they would take."""
    times = ", ".join(f"{_duration(seconds)} with {count}" for count, seconds in graph["workers"].items())
    guessed = ", at guessed times" if graph["guessed"] else ""
    basis = "at guessed times of a step and an evaluation; --times measures them" if graph["guessed"] else "computed"
    return [
        f"units: {graph['units']}, {_duration(graph['work_seconds'])} of work{guessed}",
        f"longest chain: {_duration(graph['critical_seconds'])} ({' -> '.join(graph['critical_path'])})",
        f"time by workers: {times} ({basis})",
    ]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
