"""Files, and folders of files, that are whole or not there, whatever happens to the process that writes them."""

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

_READ_BYTES = 2**24


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file or a folder beside `target`, then put it in its place: on disk before it has the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    remove(partial)  # of a process that was killed: a folder would keep what was in it
    try:
        write(partial)
        for path in (*_files(partial), *([partial] if partial.is_dir() else [])):
            _sync(path)
        if target.is_dir():
            remove(target)  # no folder takes the place of one that isn't empty
        os.replace(partial, target)
    except BaseException:
        remove(partial)  # on a full disk it would stand in the way of all others
        raise
    _sync(target.parent)


def checksum(path: Path) -> str:
    """Size and CRC-32 of a file, or of a folder's files and their names: enough to tell one that is torn, at the speed
    of the disk."""
    crc = size = 0
    for file in _files(path):
        if file != path:
            crc = zlib.crc32(str(file.relative_to(path)).encode(), crc)
        with file.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                crc = zlib.crc32(block, crc)
        size += file.stat().st_size
    return f"{size}-{crc:08x}"


def is_whole(path: Path, expected: str) -> bool:
    return path.exists() and checksum(path) == expected


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
