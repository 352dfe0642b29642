"""Why an arm did as it did: what each task gave it to learn from, arm beside arm."""

import math
from dataclasses import dataclass

from omni_thinker.report.figures import series
from omni_thinker.runs.read import RunData

SIGNALS = ("groups_trained", "zero_variance", "advantage", "entropy", "gradient", "alignment")


@dataclass(frozen=True)
class SignalRow:
    """Means over an arm's RL steps on a task and over seeds; `values` as in `SIGNALS`, NaN where nothing was logged."""

    task: str
    arm: str
    values: list[float]


def signal_rows(run: RunData) -> list[SignalRow]:
    """Task by task, every arm that trained on it."""
    rows = []
    for task in run.tasks:
        for arm in run.arms:
            name = series.trained_as(run, arm)
            values = [series.over_steps(run, name, f"{signal}/{task}") for signal in SIGNALS]
            if math.isfinite(values[0]):
                rows.append(SignalRow(task, arm, values))
    return rows
