"""Files that are whole or not there, whatever happens to the process that writes them."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

_READ_BYTES = 2**24


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `target`, then put it in its place: on disk before it has the name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk it would stand in the way of all others
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checksum(path: Path) -> str:
    """Size and CRC-32 of a file: enough to tell one that is torn, at the speed of the disk."""
    crc = 0
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            crc = zlib.crc32(block, crc)
    return f"{path.stat().st_size}-{crc:08x}"


def is_whole(path: Path, expected: str) -> bool:
    return path.is_file() and checksum(path) == expected
