"""What a unit of a study reads and writes: its lines of the journal, rows of the logs, and files of the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.runs.json_text import to_json, write_json
from omni_thinker.runs.tape import Tape


class Files(Protocol):
    """Brings files of a run to the machine where a unit works, and takes them to where the next one reads them."""

    def need(self, path: Path) -> None:
        """Have the file or folder `path` of the run here, where the run has it."""

    def made(self, path: Path) -> None:
        """The file or folder `path` is whole; returns once the run has it."""

    def dropped(self, path: Path) -> None:
        """The file `path` was removed."""


class Shared:
    """The run's directory is here: nothing has to travel."""

    def need(self, path: Path) -> None:
        """Nothing to do."""

    def made(self, path: Path) -> None:
        """Nothing to do."""

    def dropped(self, path: Path) -> None:
        """Nothing to do."""


class UnitRun:
    """One unit's share of a run. path: the run's directory, or this machine's copy of it. name: the unit's."""

    def __init__(
        self, path: Path, name: str, journal: Tape, append: Callable[[str, str], None], files: Files | None = None
    ) -> None:
        self.path, self.name, self.journal = path, name, journal
        self.files: Files = files or Shared()
        self._append = append

    def append(self, log: str, row: Any) -> None:
        """Add a row to a log."""
        self._append(log, to_json(row))

    def write_json(self, name: str, table: Any) -> Path:
        """Write a plain table as a file of the run."""
        path = write_json(self.path / name, table)
        self.files.made(path)
        return path

    def models(self, seed: int) -> Path:
        """Folder of a seed's models."""
        return models_of(self.path, seed)


def models_of(run: Path, seed: int) -> Path:
    """Folder of a seed's models in a run's directory."""
    return run / "models" / f"seed-{seed}"
