"""What a form of rows declares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Mapping[str, Any]
"""Fields of a row by our own names; only those that the row has."""


class Unusable(Exception):
    """A row that can't be a problem of its form: the field, and why."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why


def _nothing(values: Values) -> Values:
    return {}


def _always(values: Values) -> bool:
    return True


def _unsaid(rows: Sequence[Values]) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Format:
    """A form of rows.

    columns: field -> the paths it may have; the first that the rows have is used. Names that aren't fields of ours
    serve `fits`, `take` and `reward` alone.
    required: fields that a row must have. marks: those that it is recognised by, under a name of the form's own.
    fits: a closer look at such a row. take: fields that change on the way; raises Unusable.
    reward: the part that the first rows speak for, "" where their answers decide. template: the user's turn."""

    name: str
    about: str
    """How its rows are recognised, in words."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ("prompt",)
    marks: tuple[str, ...] = ()
    fits: Callable[[Values], bool] = _always
    take: Callable[[Values], Values] = _nothing
    reward: Callable[[Sequence[Values]], str] = _unsaid
    template: str = "{prompt}"
    note: Callable[[Sequence[Values]], str] = _unsaid
    """What people should know of these rows besides, "" for nothing."""


def always(part: str) -> Callable[[Sequence[Values]], str]:
    """The same reward part, whatever the rows hold."""
    return lambda rows: part


PLAIN = Format("plain", "a column `prompt`; every field has its own name", {"prompt": ("prompt",)})
