"""Working folders of workers, which are removed even where their process was killed."""

import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "omni-thinker-worker-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
"""Names as mkdtemp makes them, so that nobody else's folder is taken for one."""
_YOUNG_S = 60.0
"""A folder is locked within this of being made."""


class Scratch:
    """A temporary folder with a lock beside `path`, out of the worker's reach, that this process holds."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _lock(self._root)
        self.path = self._root / "work"
        try:
            self._lock.acquire()
            self._root.chmod(0o711)  # a worker that becomes another user must get through
            self.path.mkdir(mode=0o700)
        except OSError:  # a disk that is full
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder with its contents. May be called twice."""
        _remove(self._root)
        self._lock.release()


def sweep() -> None:
    """Remove folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _NAME.fullmatch(path.name):
            continue
        try:
            status = path.lstat()
            young = time.time() - status.st_mtime < _YOUNG_S
            if young or status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                continue
            with _lock(path):
                _remove(path)
        except (OSError, Timeout):  # gone, or in use
            continue


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / "lock", blocking=False, thread_local=False)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a program nested folders
        subprocess.run(["rm", "-rf", "--", str(folder)], stderr=subprocess.DEVNULL, check=False)
