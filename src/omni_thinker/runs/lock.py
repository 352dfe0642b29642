"""One process to a run directory."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from omni_thinker.errors import UserError

NAME = "lock"


class Lock:
    """Held as long as it lives, and let go by the system when its process ends however it ends: a lock that nobody
    holds is stale and taken over. The file says who holds it, for people; what counts is the system's lock on it.
    """

    def __init__(self, folder: Path) -> None:
        """Raises UserError where another process holds it."""
        self._stream = (folder / NAME).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"is in use by {_owner(folder / NAME)}; wait for it, or stop it", file=folder) from None
        self._stream.seek(0)
        self._stream.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, self._stream)
        self._stream.flush()

    def release(self) -> None:
        """Let go, so that this process may take it anew."""
        self._stream.close()


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        minutes = max(0.0, time.time() - float(owner["since"])) / 60
        return f"process {owner['pid']} on {owner['host']}, for {minutes:.0f} min"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
