"""One process to a run directory."""

import errno
import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from omni_thinker.errors import UserError

NAME = "lock"
_MOMENT_S = 0.3
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Lock:
    """Held as long as it lives. The system releases it when its process ends, however it ends, so a killed process
    leaves no obstacle. The file names the holder, for people; what counts is the system's lock on it."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where another process holds it."""
        path = folder / NAME
        # For a moment, since who asks for the holder takes it for as long.
        self._lock = FileLock(path, timeout=_MOMENT_S, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(poll_interval=_MOMENT_S / 10)
        except Timeout:
            raise UserError(f"is in use by {_owner(path)}; wait for it, or stop it", file=folder) from None
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            # A file that merely exists would outlive a killed process.
            raise UserError(
                f"can't be locked ({exc.strerror or exc}); use a folder on a disk with file locks", file=folder
            ) from None
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}), "utf-8")

    def release(self) -> None:
        """Let go, so that this process may take it anew."""
        self._lock.release()


def holder(folder: Path) -> str:
    """Who holds the lock of `folder`, in words; empty where nobody does."""
    path = folder / NAME
    if not path.exists():
        return ""
    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return _owner(path)
    except OSError:
        return ""
    lock.release()
    return ""


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text("utf-8"))
        minutes = max(0.0, time.time() - float(owner["since"])) / 60
        return f"process {owner['pid']} on {owner['host']}, for {minutes:.0f} min"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
