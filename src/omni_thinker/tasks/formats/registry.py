"""All forms of rows, and which of them the first rows of a task are in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.formats.base import PLAIN, Format, Values
from omni_thinker.tasks.formats.chats import DPO, MESSAGES
from omni_thinker.tasks.formats.math import GSM8K, MATH, MATH_500, TRL
from omni_thinker.tasks.formats.programs import HUMANEVAL, LIVECODEBENCH, MBPP
from omni_thinker.tasks.formats.questions import CHOICES, VERIFIERS, VERL
from omni_thinker.tasks.paths import MISSING, lookup
from omni_thinker.types import TaskName

AUTO = "auto"
FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        HUMANEVAL, MBPP, LIVECODEBENCH, VERL, DPO, CHOICES, GSM8K, MATH_500, MATH, TRL, MESSAGES, VERIFIERS, PLAIN
    )
}  # fmt: skip
"""By name, in the order that they are tried in."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a task's rows: `paths` says where each column of `format` is. `guessed`: by the rows alone."""

    format: Format
    paths: Mapping[str, str]
    reward: str
    note: str
    guessed: bool

    def values(self, row: Mapping[str, Any]) -> Values:
        """The columns of a row that it has, by our names."""
        return _values(row, self.paths)


def recognise(name: TaskName, spec: TaskSpec, rows: Sequence[Mapping[str, Any]]) -> Form:
    """The form that the recipe names, or that most of the first `rows` are in; of two the one that is tried last.

    Each row speaks for the first form that fits it. Raises UserError for an unknown name, and for rows that fit none.
    """
    if spec.format not in (AUTO, *FORMATS):
        known = (AUTO, *FORMATS)
        raise UserError(
            f"unknown form {spec.format!r:.60}{did_you_mean(spec.format, known)}", key=f"tasks.{name}.format"
        )
    if spec.format != AUTO:
        return _form(FORMATS[spec.format], spec, rows, guessed=False)
    votes = Counter(form.name for row in rows if (form := _first_that_fits(spec, row)) is not None)
    if not votes:
        if not rows:
            return _form(PLAIN, spec, rows, guessed=True)
        columns = ", ".join(map(repr, list(rows[0])[:12]))
        raise UserError(
            f"rows with the columns {columns:.300} are in no known form; say which is what, as in "
            "fields = { prompt = 'COLUMN', answer = 'COLUMN' }",
            key=f"tasks.{name}.fields",
        )
    most = max(votes.values())
    return _form([form for form in FORMATS.values() if votes[form.name] == most][-1], spec, rows, guessed=True)


def _first_that_fits(spec: TaskSpec, row: Mapping[str, Any]) -> Format | None:
    for form in FORMATS.values():
        paths = _paths(form, spec, [row])
        values = _values(row, paths)
        if any(paths.get(mark) not in form.columns[mark] for mark in form.marks):
            continue
        if form is PLAIN:
            if "prompt" in row or "prompt" in spec.fields:
                return PLAIN
        elif all(field in values for field in form.required) and form.fits(values):
            return form
    return None


def _form(form: Format, spec: TaskSpec, rows: Sequence[Mapping[str, Any]], *, guessed: bool) -> Form:
    paths = _paths(form, spec, rows)
    fitting = [values for row in rows if all(field in (values := _values(row, paths)) for field in form.required)]
    return Form(form, paths, form.reward(fitting), form.note(fitting), guessed)


def _paths(form: Format, spec: TaskSpec, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where each column is: as the recipe says, else the first of its names that a row has."""
    paths: dict[str, str] = {}
    for column, names in form.columns.items():
        held = (path for path in names if any(lookup(row, path) is not MISSING for row in rows))
        path = spec.fields.get(column) or next(held, None)
        if path is not None:
            paths[column] = path
    return paths


def _values(row: Mapping[str, Any], paths: Mapping[str, str]) -> Values:
    return {column: value for column, path in paths.items() if (value := lookup(row, path)) is not MISSING}
