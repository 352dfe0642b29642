"""The run directory: one study on disk. See docs/run-directory.md for its files."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe
from omni_thinker.runs.files import remove, write_whole
from omni_thinker.runs.journal import NAME as JOURNAL
from omni_thinker.runs.journal import STUDY, Counts, Journal, unit_id
from omni_thinker.runs.json_text import write_json
from omni_thinker.runs.lock import Lock
from omni_thinker.runs.tape import Tape
from omni_thinker.runs.unit_run import UnitRun

DRAWN = "problems"
"""Folder of a run with the problems that were drawn for it."""
_MARKS = (
    "recipe.toml", JOURNAL, "metrics.jsonl", "samples.jsonl", "references.jsonl", "result.json", "scores.json",
    "plan.json", "transfer.json", "transfer.csv", "report.html", "diverged.json", "models", "status.json",
    "workers", "track", DRAWN,
)  # fmt: skip
"""What a run writes, but for its lock: a directory that has any of it isn't free."""


class RunDir:
    """Owns a directory: a fresh one, or with `resume` one that holds a run. Raises UserError where it holds a run
    without it, is in use by another process, or can't be written."""

    journal: Journal
    study: Tape
    """What belongs to the whole study: its recipe, model and problems."""

    def __init__(self, path: Path, recipe: Recipe, *, resume: bool = False) -> None:
        if not resume:
            check_free(path)
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(path)
            if not resume:
                check_free(path)  # again: another may have begun and ended before this one had the lock
                self.write_recipe(recipe)
        except OSError as exc:
            raise UserError(f"can't be written: {exc.strerror or exc}", file=path) from None

    def close(self) -> None:
        """Let another take the directory."""
        self._lock.release()

    def discard(self) -> None:
        """Remove what a run that did nothing has written so far."""
        for mark in (JOURNAL, "recipe.toml", "status.json", "track", DRAWN):
            remove(self.path / mark)

    def write_recipe(self, recipe: Recipe) -> None:
        self.write_text("recipe.toml", tomli_w.dumps(_without_none(recipe.model_dump(mode="json"))))

    def open_journal(self, logs: Sequence[str], *, usable: Callable[[Any], bool], counts: Counts | None = None) -> None:
        """See Journal. Raises UserError where there are logs without one: nothing tells what they are worth."""
        if not (self.path / JOURNAL).exists() and any((self.path / log).exists() for log in logs):
            raise UserError("has no journal.jsonl, so it can't be resumed", file=self.path)
        self.journal = Journal(self.path, logs, usable=usable, counts=counts)
        self.study = self.journal.tape(STUDY)

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file: readers see the old one or the new one, never half of it."""
        target = self.path / name
        write_whole(target, lambda partial: partial.write_text(text, "utf-8"))
        return target

    def write_json(self, name: str, table: Any) -> Path:
        """Write a document of the schema, or a plain table."""
        return write_json(self.path / name, table)

    def unit(self, seed: int, name: str) -> UnitRun:
        """What a unit reads and writes, where it is worked on in this process."""
        unit = unit_id(seed, name)
        return UnitRun(self.path, name, self.journal.tape(unit), partial(self.journal.append, unit))


def check_free(path: Path) -> None:
    """Raises UserError where `path` already holds a run, or is no directory."""
    try:
        if path.exists() and not path.is_dir():
            raise UserError("is a file, not a directory", file=path, key="--out")
        held = any((path / mark).exists() for mark in _MARKS)
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be a run's directory: {exc}", file=f"{path!s:.80}", key="--out") from None
    if held:
        raise UserError("already holds a run's files; choose another --out, or resume it with --resume", file=path)


def _without_none(value: Any) -> Any:
    """TOML has no null: keys that are not set are left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
