"""What every command can print: one JSON line, or a dry run."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def finish(table: dict[str, Any], json_: bool) -> None:
    """Print `table` as the last line, with --json."""
    if json_:
        from omni_thinker.runs.json_text import to_json

        typer.echo(to_json(table))


def tell(summary: Mapping[str, Any], units: Mapping[str, str]) -> None:
    """Print a dry run for people. Tables and numbers, such as the recipe, are printed by --json only."""
    for key, value in summary.items():
        if key == "work":
            typer.echo("work: " + ", ".join(f"{count} {units[kind]}" for kind, count in value.items()))
        elif key == "problems":
            for split, tasks in value.items():
                typer.echo(f"{split}: " + ", ".join(f"{task} {count}" for task, count in tasks.items()))
        elif isinstance(value, list):
            typer.echo(f"{key}: {', '.join(map(str, value))}")
        elif isinstance(value, str):
            typer.echo(f"{key}: {value}")
