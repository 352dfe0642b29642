"""The command `watch`: a run in the browser, while it is at work and afterwards."""

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.output import Json, finish


def watch(
    directory: Annotated[Path, typer.Argument(help="A run directory.")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to serve on. Default: 8642, or a free one.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to serve on. Others than this machine's own show it to all.")] = (
        "127.0.0.1"
    ),
    json_: Json = False,
) -> None:
    """Serve the report of a run to the browser, live: it updates itself while the study runs. Ctrl-C ends it."""
    from omni_thinker.report.watch.server import Server

    with Server(directory, host, port) as server:
        at = server.server_address[1]
        typer.echo(f"watching {directory} at {server.address}")
        if _is_loopback(host):
            typer.echo(
                f"from another machine: ssh -L {at}:127.0.0.1:{at} {socket.gethostname()}, then the same address"
            )
        else:
            typer.echo("anybody who can reach this address can read the run")
        finish({"address": server.address}, json_)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("", err=True)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
