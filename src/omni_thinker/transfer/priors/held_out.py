"""How good forecasts are on tasks that no prior was learned from.

The tasks of an atlas are parted into groups. For each group, priors are learned from the single runs of the other
tasks and from runs that train none of the group's. Then every run that trains one of the group's tasks is forecast, and
its accuracies on these tasks are compared with what came."""

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.forecast import LEVEL, Forecaster, measured
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.priors.cases import Case, cases_of, matrices_of, restricted, without
from omni_thinker.transfer.priors.learn import learn
from omni_thinker.transfer.priors.named import HAND
from omni_thinker.types import TaskName

GROUPS = 5
FORMULAS = ("naive", "additive")
LEARNED = "atlas"


@dataclass(frozen=True, slots=True)
class Said:
    """What one forecaster said of one accuracy, with the ends of its interval, and what came."""

    forecaster: str
    case: Case
    task: TaskName
    mean: float
    low: float
    high: float
    seen: float

    @property
    def error(self) -> float:
        """Absolute error, in accuracy."""
        return abs(self.mean - self.seen)

    @property
    def inside(self) -> bool:
        """Whether it came to lie in the interval."""
        return self.low <= self.seen <= self.high


def grouped(tasks: Sequence[TaskName], groups: int = GROUPS, seed: int = 0) -> list[tuple[TaskName, ...]]:
    """The tasks in random groups whose sizes differ by 1 at most."""
    mixed = random.Random(f"groups {seed}").sample(list(tasks), len(tasks))
    return [tuple(mixed[place::groups]) for place in range(groups)]


def say(
    cases: Iterable[Case],
    name: str,
    make: Callable[[TransferMatrix], Forecaster],
    tasks: Sequence[TaskName] | None = None,
    level: float = LEVEL,
) -> list[Said]:
    """What a forecaster says of some cases. tasks: whose accuracies, by default all that a run trained."""
    made, found = dict[int, Forecaster](), list[Said]()
    for case in cases:
        if (place := id(case.matrix)) not in made:
            made[place] = make(case.matrix)
        predict = made[place]
        draws = predict.by_column(case.plan)
        low, high = np.quantile(measured(predict, draws), [(1 - level) / 2, (1 + level) / 2], axis=1)
        for c, column in enumerate(predict.columns):
            if tasks is None or column.name in tasks:
                seen = case.seen[column.name].mean
                means = float(draws[c].mean())
                found.append(Said(name, case, column.name, means, float(low[c]), float(high[c]), seen))
    return found


def held_out(
    rows: Sequence[AtlasRow],
    *,
    groups: int = GROUPS,
    seed: int = 0,
    on_group: Callable[[tuple[TaskName, ...], Priors], None] | None = None,
) -> list[Said]:
    """What formulas, the hand-set priors and learned ones say of whole runs on tasks that were held out.

    on_group: called with each group and the priors that were learned without it. Raises UserError where too little is
    left to learn from."""
    cases, matrices = cases_of(rows), list(matrices_of(rows).values())
    found = list[Said]()
    for group in grouped(sorted({task for matrix in matrices for task in matrix.tasks}), groups, seed):
        priors = learned_without(group, matrices, cases)
        if on_group:
            on_group(group, priors)
        tested = [case for case in cases if case.whole and set(group) & set(case.matrix.tasks)]
        for name, make in makers({HAND.name: HAND, LEARNED: priors}).items():
            found += say(tested, name, make, group)
    return found


def learned_without(tasks: Collection[TaskName], matrices: Iterable[TransferMatrix], cases: Iterable[Case]) -> Priors:
    """Priors learned from single runs of other tasks, and from runs that train none of these. Raises UserError where
    too little is left."""
    others = [restricted(matrix, [task for task in matrix.tasks if task not in tasks]) for matrix in matrices]
    return learn(others, without(cases, tasks), name=LEARNED)


def makers(priors: Mapping[str, Priors]) -> dict[str, Callable[[TransferMatrix], Forecaster]]:
    """The formulas, and the hierarchical forecaster with each of these priors."""
    made: dict[str, Callable[[TransferMatrix], Forecaster]] = {
        name: partial(make_forecaster, name) for name in FORMULAS
    }
    for name, own in priors.items():
        made[name] = partial(make_forecaster, "hierarchical", priors=own)
    return made
