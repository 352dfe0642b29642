"""Verdicts of many callers, of which some will have been for nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omni_thinker.judging.tally import Tally


@dataclass
class _Caller:
    """Tallies between marks; those before the mark `kept` are counted for good. `gone`: none of them counts, unless it
    is still kept."""

    kept: int = 0
    parts: list[Tally] = field(default_factory=lambda: [Tally()])
    gone: bool = False


class Counts:
    """Counts for good what a caller's checkpoint covers; takes the rest back where the caller dies."""

    def __init__(self) -> None:
        self.kept = Tally()
        """What is counted for good."""
        self.all = Tally()
        """That, and what may still be taken back."""
        self._callers: dict[str, _Caller] = {}

    def add(self, caller: str, taken: Mapping[str, Any]) -> None:
        """`taken`: of `Tally.take`."""
        self._caller(caller).parts[-1].add(taken)
        self.all.add(taken)

    def mark(self, caller: str) -> int:
        """A number for `keep`: all that the caller has counted until now."""
        counted = self._caller(caller)
        counted.parts.append(Tally())
        return counted.kept + len(counted.parts) - 1

    def keep(self, caller: str, mark: int | None) -> None:
        """Count for good what the caller had counted at `mark`; None: all that it has counted, at its last mark if it
        is gone. The caller may have gone meanwhile: its checkpoint was on its way."""
        counted = self._caller(caller)
        if mark is None:
            mark = counted.kept + len(counted.parts) - 1 if counted.gone else self.mark(caller)
        while counted.kept < mark and len(counted.parts) > 1:
            part = counted.parts.pop(0).take()
            self.kept.add(part)
            if counted.gone:
                self.all.add(part)
            counted.kept += 1

    def gone(self, caller: str) -> None:
        """Take back what isn't counted for good."""
        self._caller(caller).gone = True
        self._sum()

    def restored(self) -> None:
        """`kept` has been restored: nobody has counted anything since."""
        self._callers.clear()
        self._sum()

    def _caller(self, caller: str) -> _Caller:
        return self._callers.setdefault(caller, _Caller())

    def _sum(self) -> None:
        self.all = Tally()
        loose = (part for counted in self._callers.values() if not counted.gone for part in counted.parts)
        for tally in (self.kept, *loose):
            self.all.add(tally.all_counts())
