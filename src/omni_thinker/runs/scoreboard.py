"""How far every arm of a run is and how good it is so far, from a metrics.jsonl that still grows."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from omni_thinker.arms import LORA, PROBE, SINGLE, in_order
from omni_thinker.runs.schema.base import adapter
from omni_thinker.runs.schema.logs import Metrics

MOST_REWARDS = 400
"""Steps of an arm whose rewards are kept."""
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class Standing:
    """An arm so far, by seed. steps: of RL that it has had. rewards: mean reward of each of the last of them.
    validation, test: accuracy in [0, 1] on each task, as of its last evaluation."""

    steps: dict[int, int] = field(default_factory=dict)
    rewards: dict[int, list[float]] = field(default_factory=dict)
    validation: dict[int, dict[str, float]] = field(default_factory=dict)
    test: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """The split that `accuracy` is of: test as soon as there is one; empty before the first evaluation."""
        return "test" if self.test else "validation" if self.validation else ""

    def accuracy(self, tasks: Sequence[str]) -> list[float]:
        """Mean over the seeds that were evaluated, on each task and, last, over all tasks; NaN where it isn't known."""
        rows = self.test or self.validation
        means = [_mean(row[task] for row in rows.values() if task in row) for task in tasks]
        return [*means, math.fsum(means) / len(means) if means else math.nan]


class Scoreboard:
    """Reads what a run has logged, and then only what is new."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.arms: dict[str, Standing] = {}

    def update(self) -> bool:
        """Read on; whether anything was new. A file that has shrunk is that of a run resumed from an earlier point,
        and is read anew."""
        try:
            if self._path.stat().st_size < self._read:
                self._read, self.arms = 0, {}
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return False
        whole = text[: text.rfind(b"\n") + 1]  # the rest is being written
        self._read += len(whole)
        for line in whole.splitlines():
            self._add(line)
        return bool(whole)

    def _add(self, line: bytes) -> None:
        try:
            row: Metrics = adapter(Metrics).validate_python(json.loads(line))
        except (ValueError, ValidationError, RecursionError):
            return  # the report names what can't be read
        # A probe may be the beginning of a single-task arm, or all of it.
        arm = row.unit if row.unit.startswith(SINGLE) else row.arm
        if arm == "warmup" or arm.startswith((PROBE, LORA)):
            return
        standing = self.arms.setdefault(arm, Standing())
        if row.kind == "train":
            standing.steps[row.seed] = max(row.step, standing.steps.get(row.seed, 0))
            if (reward := row.metrics.get("reward/all", math.nan)) == reward:
                standing.rewards.setdefault(row.seed, []).append(reward)
                del standing.rewards[row.seed][:-MOST_REWARDS]
        elif row.kind in ("validation", "test"):
            scores = {
                name.removeprefix("accuracy/"): value
                for name, value in row.metrics.items()
                if name.startswith("accuracy/") and math.isfinite(value)
            }
            (standing.test if row.kind == "test" else standing.validation)[row.seed] = scores


def expected_arms(recipe: Mapping[str, Any]) -> list[str]:
    """The arms that a resolved recipe asks for, as tables list them; what isn't there isn't expected."""
    study, tasks = recipe.get("study"), recipe.get("tasks")
    names = study.get("arms") if isinstance(study, Mapping) else None
    every = [str(task) for task in tasks] if isinstance(tasks, Mapping) else []
    if not isinstance(study, Mapping) or not isinstance(names, list):
        return []
    alone = study.get("single_tasks")
    singles = [str(task) for task in alone] if isinstance(alone, list) and alone else every
    arms = [arm for name in map(str, names) for arm in ([SINGLE + t for t in singles] if name == "single" else [name])]
    return in_order(list(dict.fromkeys(arms)), every)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The last of the values as small bars between the least and the greatest of them."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in shown)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found) if found else math.nan
