"""The command `atlas`: many small studies over a pool of tasks."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.options import Set, SkipRefused, Weak, in_recipe, load
from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError


def atlas(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (TOML) with the pool of tasks.")],
    out: Annotated[Path, typer.Option(help="Directory of the atlas. One that holds a part of it is resumed.")],
    known: Annotated[
        Path | None, typer.Option(help="atlas.jsonl of an earlier atlas, whose runs aren't run again.")
    ] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, help="Stop after so many hours; resume later.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Repeat this run (START/SEED/NAME) and compare it with --known. Repeatable."),
    ] = None,
    overrides: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the work ahead, but write nothing.")] = False,
    times: Annotated[
        Path | None, typer.Option(help="For --dry-run: a run to take times from, or JSON with seconds by kind of work.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process (and on a GPU).")] = 1,
    cluster: Annotated[
        str, typer.Option(help="Spread them over a Ray cluster: HOST:PORT of its head, or auto (docs/cluster.md).")
    ] = "",
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Run many small studies over a pool of tasks, and write what each came to as a row."""
    from omni_thinker.studies.atlas.run import describe_atlas, run_atlas
    from omni_thinker.studies.crews.make import Where

    if times is not None and not dry_run:
        raise UserError("is for --dry-run alone; an atlas measures its times itself", key="--times")
    if only and known is None:
        raise UserError("needs --known, the rows to compare with", key="--only")
    loaded = load(recipe, overrides, skip_refused)
    with in_recipe(recipe):
        if dry_run:
            summary = describe_atlas(loaded, times, jobs)
            _tell(summary)
            finish(summary, json_)
            return
        result = run_atlas(loaded, out, hours=hours, known=known, only=tuple(only or ()), where=Where(jobs, cluster))
    typer.echo(f"{result['rows']} rows in {out / 'atlas.jsonl'}, {result['runs_left']} runs left")
    if result["out_of_time"]:
        typer.echo(f"the hours are spent; resume with the same command and --out {shlex.quote(str(out))}")
    for name, fields in result["different"].items():
        typer.echo(f"{name} differs: {', '.join(fields)}")
    finish(result, json_)
    if result["different"]:
        raise typer.Exit(1)
    if only and not result["runs_left"]:
        typer.echo("all repeated rows are the same")


def _tell(summary: Mapping[str, Any]) -> None:
    """Print a dry run for people."""
    runs = ", ".join(f"{count} {kind}" for kind, count in summary["runs"].items())
    basis = "at guessed times of a step and an evaluation; --times measures them" if summary["guessed"] else "computed"
    typer.echo(f"{len(summary['tasks'])} tasks, starts {', '.join(summary['starts'])}, seeds {summary['seeds']}")
    typer.echo(f"runs: {runs}")
    typer.echo(f"{summary['hours']:g} hours ({basis})")
