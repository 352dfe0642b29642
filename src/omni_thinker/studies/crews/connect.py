"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError

_CONNECT_S = 3.0
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


def check_address(address: str) -> Any:
    """Ray. Raises UserError where it isn't installed, and where nobody listens at the address."""
    try:
        ray = import_module("ray")
        import_module("ray.util.scheduling_strategies")
    except ImportError:
        raise UserError(
            "needs Ray; run: pip install 'omni-thinker[ray]', in a clone: .venv/bin/pip install -e '.[ray]'",
            key="--cluster",
        ) from None
    if address != "auto":
        _reach(address)
    return ray


def connect(address: str) -> Any:
    """Ray, with a cluster behind it. Raises UserError where there is none."""
    ray = check_address(address)
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says of its own tokens
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": "omni-thinker"}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError:
            if address != "auto":
                raise
            with _own_token():
                ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as exc:  # Ray 2.60 raises that very class, too, and RuntimeError where versions differ
        ray.shutdown()
        what = "no Ray cluster can be joined or started here" if address == "auto" else f"no Ray cluster at {address}"
        raise UserError(f"{what}: {' '.join(str(exc).split()):.400}{_token_words()}", key="--cluster") from None
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray 2.60 has put its own in their place
            signal.signal(number, handler)
    return ray


def _reach(address: str) -> None:
    """Raises UserError where nobody listens: Ray itself would try for half a minute."""
    host, _, port = address.rpartition(":")
    if "//" in address or not host or not port.isdecimal():
        raise UserError(f"must be auto or HOST:PORT of a Ray cluster's head, got {address!r:.80}", key="--cluster")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as exc:
        raise UserError(
            f"no Ray cluster at {address}: {exc}; start one with: ray start --head --port {port}", key="--cluster"
        ) from None


@contextmanager
def _own_token() -> Iterator[None]:
    """A token for a cluster of this process alone, unless the user has one.

    Ray 2.60 would write one to ~/.ray/auth_token, and clusters that `ray start` begins later on this machine could
    then be joined only with RAY_AUTH_MODE=token."""
    if _MODE in os.environ or _TOKEN in os.environ or _token_file().exists():
        yield
        return
    os.environ[_TOKEN] = secrets.token_hex(32)
    try:
        yield
    finally:
        os.environ.pop(_TOKEN)
        os.environ.pop(_MODE, None)  # which Ray has set


def _token_words() -> str:
    """What may help where a cluster can't be joined."""
    if _MODE in os.environ or not _token_file().exists():
        return ""
    return f"; a cluster that was begun where {_token_file()} exists is joined with {_MODE}=token"


def _token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"
