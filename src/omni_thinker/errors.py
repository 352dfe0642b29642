"""Errors that a person can mend."""

import errno
import os
import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LONGEST_PLACE = 400
"""Longest file name or key in a message, in characters."""


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2.

    The message names the file, the key and, where there is one, the remedy."""

    def __init__(self, message: str, *, file: object = None, key: str | None = None) -> None:
        self.message, self.file, self.key = message, file, key
        where = ": ".join(_short(str(place)) for place in (file, key) if place is not None)
        super().__init__(" ".join((f"{where}: {message}" if where else message).split()))

    def within(self, file: object) -> "UserError":
        """The same error, with `file` named where no file was."""
        return self if self.file is not None else UserError(self.message, file=file, key=self.key)


class EngineLost(RuntimeError):
    """A process that a run computes with has ended, or hangs. The run can be resumed from its last checkpoint."""


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_PLACE else f"{name[: _LONGEST_PLACE // 2]}...{name[-_LONGEST_PLACE // 2 :]}"


def printable(text: str) -> str:
    """A text for a terminal: control characters, which could move the cursor or rewrite what stands there, as \\x1b.

    So are halves of characters, which no encoding has. New lines and tabs stay. What models, judges and rows wrote goes
    through this before it is printed."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def machine_error(exc: Exception) -> str | None:
    """What is wrong with the machine, where that is all that is wrong: a full disk, a folder that can't be written, a
    process of the run that has ended."""
    if isinstance(exc, EngineLost):
        return str(exc)
    number = exc.errno if isinstance(exc, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(exc))):  # as safetensors tells it
        number = int(match[1])
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        return None
    file = getattr(exc, "filename", None)
    return (f"{file}: " if file else "") + os.strerror(number)
