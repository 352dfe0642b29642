"""Errors that a person can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2.

    The message names the file, the key and, where there is one, the remedy.
    """

    def __init__(self, message: str, *, file: object = None, key: str | None = None) -> None:
        self.message, self.file, self.key = message, file, key
        where = ": ".join(str(part) for part in (file, key) if part is not None)
        super().__init__(" ".join((f"{where}: {message}" if where else message).split()))

    def within(self, file: object) -> UserError:
        """The same error, with `file` named where no file was."""
        return self if self.file is not None else UserError(self.message, file=file, key=self.key)
