"""What a tracker is given, and what it must do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omni_thinker.runs.schema.logs import Metrics


@dataclass(frozen=True, slots=True)
class Study:
    """What all of a study's runs at a tracker have in common."""

    name: str
    """Of the run's directory: the group."""
    id: str
    """Made once for a run's directory, so that a resumed study finds its runs again."""
    project: str
    """Project or experiment."""
    folder: Path
    """Where a tracker writes on this machine."""
    online: bool
    """Whether rows may leave this machine."""
    config: Mapping[str, Any]
    """The resolved recipe, as nested tables."""


@dataclass(frozen=True, slots=True)
class Place:
    """One run at a tracker: one arm of one seed."""

    seed: int
    arm: str

    @property
    def key(self) -> str:
        """How it is called within a study."""
        return f"{self.seed} {self.arm}"

    @property
    def slug(self) -> str:
        """The same as part of an id."""
        return f"{self.arm.replace(':', '-')}-{self.seed}"

    def name(self, study: Study) -> str:
        """How it is called at a tracker: STUDY/ARM/seed-SEED."""
        return f"{study.name}/{self.arm.replace(':', '-')}/seed-{self.seed}"


class Tracker(Protocol):
    """Sends rows to one tracker. Any method may raise: the tracker then gets no more rows from this process."""

    def __init__(self, study: Study) -> None: ...

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        """Row `number` (from 0) of a run, where the arm had done `step` steps."""

    def flush(self) -> None:
        """Returns once the tracker has what was logged."""

    def close(self, *, ended: bool) -> None:
        """Nothing more comes. ended: the study has ended, else it broke off and may be resumed."""

    @staticmethod
    def words(study: Study) -> str:
        """How to look at what was sent, in a line."""


def values_of(row: Metrics) -> dict[str, float]:
    """The values of a row under their names in metrics.jsonl. Those of training stand as they are; those of other
    kinds begin with the kind (`validation/accuracy/math`), since a run has one namespace."""
    prefix = "" if row.kind == "train" else f"{row.kind}/"
    return {f"{prefix}seconds": row.seconds, **{f"{prefix}{name}": value for name, value in row.metrics.items()}}
