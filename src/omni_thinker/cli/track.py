"""The command `track`: sends what a run has to trackers, also of a run that ended long ago."""

from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.options import names
from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError

_WAIT_S = 30.0
"""For a process that still sends the last rows of a study."""


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
    from omni_thinker.runs.tracking.process import held
    from omni_thinker.runs.tracking.send import Sender, check_trackers, read_spec

    spec, recipe = read_spec(run)
    changed = {"to": tuple(names(to)), "project": project, "folder": folder, "online": online}
    spec = spec.model_copy(update={key: value for key, value in changed.items() if value})
    try:
        check_trackers(spec)
    except UserError as exc:
        raise UserError(exc.message, key="--to") from None
    if not spec.to:
        raise UserError("name a tracker: the run's recipe has none", key="--to")
    failed = list[str]()
    with held(run, _WAIT_S):
        sender = Sender(run, spec, recipe, failed.append)
        sent = sender.send()
        words = sender.close(ended=(run / "result.json").exists())
    for name, count in sender.counts().items():
        if name not in sender.failed:
            typer.echo(f"{name}: {count} rows" + (f"; see them with: {words[name]}" if name in words else ""))
    for line in failed:
        typer.echo(line, err=True)
    finish({"sent": sent, "rows": sender.counts(), "failed": sender.failed, "see": words}, json_)
    if failed:
        raise typer.Exit(1)
