"""The command `push`: a trained model to the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import printable


def push_model(
    place: Annotated[Path, typer.Argument(help="A run directory, or a model's folder.", metavar="RUN|FOLDER")],
    repo: Annotated[str, typer.Argument(help="The repository at the hub: NAME or OWNER/NAME.", metavar="REPO")],
    arm: Annotated[str, typer.Option(help="The arm of a run, such as joint.")] = "",
    seed: Annotated[int | None, typer.Option(help="The arm's seed. Default: the run's first.")] = None,
    public: Annotated[bool, typer.Option("--public", help="A new repository can be seen by all.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be uploaded, and the card. Nothing leaves the machine.")
    ] = False,
    json_: Json = False,
) -> None:
    """Upload a model with its card to the Hugging Face hub. New repositories are private."""
    from omni_thinker.hub.card import CARD
    from omni_thinker.hub.push import check_name, push, to_upload
    from omni_thinker.runs.progress import working

    check_name(repo)
    upload = to_upload(place, arm, seed)
    table = {"folder": str(upload.folder), "repo": repo, "files": upload.files, "bytes": upload.size}
    table |= {"private": not public, "dry_run": dry_run}
    if dry_run:
        for name, size in upload.files.items():
            typer.echo(f"{size:>14,}  {printable(name)}")
        typer.echo(f"{upload.size:>14,}  bytes to {repo} ({'public' if public else 'private'} if it is new)")
        typer.echo(printable(f"\n{(upload.folder / CARD).read_text('utf-8', 'replace')}"))
        finish(table, json_)
        return
    with working(f"uploading {upload.size:,} bytes to {repo}"):
        address = push(upload, repo, private=not public, message=message)
    typer.echo(f"uploaded: {address}")
    finish({**table, "commit": address}, json_)
