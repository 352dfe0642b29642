"""The command `track`: sends what a run has to trackers, also of a run that ended long ago."""

from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.options import names
from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError, printable


def track(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[
        str, typer.Option(help="Trackers: trackio,wandb,tensorboard,mlflow. Default: those of the run's recipe.")
    ] = "",
    project: Annotated[str, typer.Option(help="Project or experiment. Default: the recipe's.")] = "",
    folder: Annotated[str, typer.Option(help="Folder that the trackers write to. Default: the recipe's.")] = "",
    online: Annotated[bool, typer.Option("--online", help="Send rows to the trackers' servers.")] = False,
    json_: Json = False,
) -> None:
    """Send a run's metrics to experiment trackers: every row that they don't have yet."""
    from omni_thinker.runs.tracking.process import track_run

    try:
        table = track_run(run, names(to), project=project, folder=folder, online=online)
    except UserError as exc:
        raise UserError(exc.message, file=exc.file, key="--to" if exc.key == "track.to" else exc.key) from None
    for name, count in table["rows"].items():
        see = table["see"].get(name)
        if name in table["failed"]:
            typer.echo(f"{name} failed: {table['failed'][name]}", err=True)
        else:
            typer.echo(f"{name}: {count} rows" + (printable(f"; see them with: {see}") if see else ""))
    finish(table, json_)
    if table["failed"]:
        raise typer.Exit(1)
