"""When a training is saved so that it can be resumed, and where."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_thinker.protocol import Policy
from omni_thinker.runs.files import checksum, is_whole, remove, write_whole
from omni_thinker.runs.unit_run import UnitRun

COST = 0.02
"""Share of a training's time that checkpoints may take."""
_GUESS_S = 5.0
"""Seconds of one, before one was made."""
_SAVED_CHECKPOINTS = 2
"""The newest one, and the one before it in case the newest is torn."""


class Checkpoints:
    """Of one arm. A checkpoint costs the same whatever lies between two, so how many steps do is a question of time:
    by itself, as few as keep the cost under `COST`."""

    def __init__(self, folder: Path, run: UnitRun, name: str, every: int) -> None:
        """`every` so many steps, 0: by time. Files lie in `folder` and are named from the run's directory."""
        self._folder, self._run, self._name, self._every = folder, run, name, every
        self._cost, self._last, self._steps = _GUESS_S, time.monotonic(), 0

    def due(self) -> bool:
        """Whether a checkpoint is due. Call it once after every step."""
        self._steps += 1
        if self._every:
            return self._steps % self._every == 0
        return time.monotonic() - self._last > self._cost / COST

    def write(self, policy: Policy, step: int) -> dict[str, str]:
        """The policy's weights and moments after `step`; what `usable` and `read` take."""
        began = time.monotonic()
        suffix = getattr(policy, "state_suffix", ".safetensors")  # some write folders
        path = self._folder / f"{self._name}.{step}{suffix}"
        write_whole(path, policy.save_state)
        self._run.files.made(path)
        written = {"file": str(path.relative_to(self._run.path)), "sum": checksum(path)}
        self._last = time.monotonic()
        self._cost = self._last - began
        return written

    def read(self, policy: Policy, value: Mapping[str, Any]) -> None:
        """Go back to it: what is later was passed over, and must not count among the newest."""
        path = self._run.path / value["file"]
        self._run.files.need(path)
        policy.load_state(path)
        for other in self._folder.glob(f"{self._name}.*"):
            if self._step(other) > self._step(path):
                self._remove(other)

    def drop(self, count: int = _SAVED_CHECKPOINTS) -> None:
        """All but the newest, once the journal knows of those."""
        files = sorted(self._folder.glob(f"{self._name}.*"), key=self._step)
        for path in files[: len(files) - count]:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        remove(path)
        self._run.files.dropped(path)

    def _step(self, path: Path) -> int:
        """The step in a file's name: a file's time is worth nothing where the clock was set."""
        return int(path.name.removeprefix(f"{self._name}.").partition(".")[0])


def usable(root: Path, value: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's file is as it was written."""
    return is_whole(root / value["file"], value["sum"])
