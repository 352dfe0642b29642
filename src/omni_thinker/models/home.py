"""Where Omni-Thinker keeps what it made once and can make again."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from omni_thinker.errors import UserError

MANIFEST = "omni_thinker.json"
_SCRATCH = ".making-"
_STALE_SECONDS = 3600.0


def home() -> Path:
    """`OMNI_THINKER_HOME`, else `omni-thinker` in the user's cache folder."""
    if chosen := os.environ.get("OMNI_THINKER_HOME"):
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "omni-thinker"


def publish_folder(target: Path, make: Callable[[Path], None], ready: Callable[[Path], bool], *, force: bool) -> Path:
    """Fill `target` by `make(scratch)` unless it is `ready`; readers see all of it or nothing.

    Safe with several processes at once: they take turns, and the later ones find the work done.
    Raises UserError when the cache folder can't be written and has to be."""
    if not force and ready(target):  # a cache that others filled may be read-only
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if force or not ready(target):
                with _scratch_folder(target.parent) as scratch:
                    new = scratch / "new"
                    new.mkdir()
                    make(new)
                    _swap(new, target, scratch)
    except OSError as exc:
        remedy = "set OMNI_THINKER_HOME to a folder on a disk with room that you may write to"
        raise UserError(f"can't be written ({exc}); {remedy}", file=target.parent) from exc
    return target


def _swap(new: Path, target: Path, scratch: Path) -> None:
    """Two renames: a folder can't replace a folder that isn't empty."""
    if target.exists():
        target.rename(scratch / "old")
    new.rename(target)


@contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the target, so that the rename stays on one disk; leftovers of killed runs go."""
    for leftover in parent.glob(f"{_SCRATCH}*"):
        try:
            stale = time.time() - leftover.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if stale:
            shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
