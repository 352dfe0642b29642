"""What interim validations of an arm say: which weights were best so far, and whether it still gets better."""

from collections.abc import Mapping, Sequence
from math import inf, sqrt

import numpy as np

from omni_thinker.types import TaskName

_ROUNDING = 1e-9
Values = Mapping[TaskName, Mapping[str, float]]
"""Mean score of each problem, by task and problem."""


class Watch:
    """Sees each interim validation of an arm once, in order. The same problems are answered each time with the same
    random numbers, so two of them are compared problem by problem."""

    def __init__(self, tasks: Sequence[TaskName]) -> None:
        """tasks: those that the arm trains; their mean is what counts."""
        self._tasks = tuple(tasks)
        self._risen: Values | None = None
        self.best: int | None = None
        """Step of the highest mean so far, the first of equals."""
        self.score = -inf
        """That mean, in [0, 1]."""
        self.waited = 0
        """Interim validations in a row without a rise beyond its standard error."""

    def see(self, step: int, values: Values, *, counts: bool = True) -> bool:
        """An interim validation after `step` steps; whether its mean is the highest so far. counts: whether the arm may
        have come to a plateau; where a later stage is to come, it can't."""
        score = float(np.mean([np.mean(list(values[task].values())) for task in self._tasks]))
        if self._risen is None or not counts or rises(self._risen, values, self._tasks):
            self._risen, self.waited = values, 0
        else:
            self.waited += 1
        if score <= self.score:
            return False
        self.best, self.score = step, score
        return True


def rises(before: Values, now: Values, tasks: Sequence[TaskName]) -> bool:
    """Whether the mean over tasks has risen by more than the standard error of this difference, which is paired over
    problems. Never where a task has fewer than two problems that both scored."""
    means, variances = list[float](), list[float]()
    for task in tasks:
        differences = [now[task][name] - value for name, value in before[task].items() if name in now[task]]
        if len(differences) < 2:
            return False
        means.append(float(np.mean(differences)))
        variances.append(float(np.var(differences, ddof=1)) / len(differences))
    return float(np.mean(means)) > sqrt(sum(variances)) / len(tasks) + _ROUNDING
