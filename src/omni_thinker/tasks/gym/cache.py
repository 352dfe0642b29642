"""What was drawn of reasoning-gym sets, kept on disk: drawing may take minutes, and a resumed run must not differ.

JSON with a checksum in its first line. A file that isn't whole is drawn again."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from omni_thinker.models.home import home, publish_folder
from omni_thinker.runs.files import write_whole

_FORMAT = 1
_FILE = "problems.json"
_kept: ContextVar[Path | None] = ContextVar("kept", default=None)


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Meanwhile what a run's folder holds is taken before what the user's cache holds."""
    token = _kept.set(folder)
    try:
        yield
    finally:
        _kept.reset(token)


def cached(what: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A table of JSON that depends on `what` alone: from the run, from the cache, or made and put there.

    Also its name, for `keep`. Raises UserError where the cache can't be written, and what `make` raises."""
    name = _name(what)
    if (folder := _kept.get()) is not None and (table := _read(folder / f"{name}.json")) is not None:
        return name, table
    target = home() / "reasoning-gym" / name

    def fill(scratch: Path) -> None:
        (scratch / _FILE).write_text(_sealed(make()), "utf-8")

    publish_folder(target, fill, lambda folder: _read(folder / _FILE) is not None, force=False)
    table = _read(target / _FILE)
    return name, make() if table is None else table  # None: another process has just removed it


def keep(name: str, table: Mapping[str, Any], folder: Path) -> None:
    """Put what `cached` gave into a run's folder, whole or not at all."""
    target = folder / f"{name}.json"
    if _read(target) is None:
        write_whole(target, lambda partial: partial.write_text(_sealed(table), "utf-8"))


def _name(what: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps({"format": _FORMAT, **what}, sort_keys=True).encode()).hexdigest()[:24]
    return f"{re.sub('[^a-z0-9_]', '-', str(what['gym']))[:64]}-{digest}"


def _sealed(table: Mapping[str, Any]) -> str:
    text = json.dumps(table)
    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def _read(path: Path) -> dict[str, Any] | None:
    """The table of a file, None where there is none or it isn't whole."""
    try:
        seal, _, text = path.read_text("utf-8").partition("\n")
        table = json.loads(text) if seal == hashlib.sha256(text.encode()).hexdigest() else None
    except (OSError, ValueError, RecursionError):
        return None
    return table if isinstance(table, dict) else None
