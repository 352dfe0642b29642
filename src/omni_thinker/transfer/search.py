"""Searching the orders of a forecaster whose forecasts depend only on which tasks come after a task.

Up to 18 tasks exactly, by dynamic programming over the sets that an order may end with; beyond by local search, with an
upper bound on what it missed. Maximising pairwise effects alone is the linear ordering problem."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_thinker.errors import UserError
from omni_thinker.transfer.forecast import Array, Forecaster, Joint, Merge, SetForm, Stage
from omni_thinker.types import TaskName

Order = tuple[TaskName, ...]
Places = NDArray[Any]
"""Whole numbers: columns, tasks, sizes of sets."""
EXACT = 18
"""Up to this many tasks the best order is found, exactly, in O(2^K K^2)."""
_EPS = 1e-12
_SHARPNESS = 60.0
_GRID = 400


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised: the mean accuracy, weighted if wanted, or the worst task's.

    `fixed`: places (1 is first) that tasks must have."""

    kind: str = "mean"
    weights: Mapping[TaskName, float] = field(default_factory=dict)
    fixed: Mapping[TaskName, int] = field(default_factory=dict)

    def shares(self, tasks: Sequence[TaskName]) -> Array:
        """Weights that add up to 1. Raises UserError for unknown tasks and weights that are none."""
        if unknown := [task for task in self.weights if task not in tasks]:
            raise UserError(f"unknown task {unknown[0]!r}; the matrix has {', '.join(tasks)}", key="--objective")
        given = np.array([float(self.weights.get(task, 0.0 if self.weights else 1.0)) for task in tasks])
        if (given < 0).any() or not np.isfinite(given).all() or given.sum() <= 0:
            raise UserError("weights must be 0 or more, and at least one above 0", key="--objective")
        return np.asarray(given / given.sum())

    def places(self, tasks: Sequence[TaskName]) -> dict[int, int]:
        """Task number -> place from 0. Raises UserError for what can't be."""
        for task, place in self.fixed.items():
            if task not in tasks:
                raise UserError(f"unknown task {task!r}; the matrix has {', '.join(tasks)}", key="--fix")
            if not 1 <= place <= len(tasks):
                raise UserError(f"a place must lie between 1 and {len(tasks)}, got {place}", key="--fix")
        if len(set(self.fixed.values())) < len(self.fixed):
            raise UserError("two tasks can't have the same place", key="--fix")
        return {tasks.index(task): place - 1 for task, place in self.fixed.items()}

    def of(self, accuracy: Mapping[TaskName, Array]) -> Array:
        """The objective of forecasts, [N]."""
        stacked = np.stack(list(accuracy.values()))
        if self.kind == "worst":
            return np.asarray(stacked.min(axis=0))
        return np.asarray(np.tensordot(self.shares(list(accuracy)), stacked, axes=1))


def expected_score(predict: Forecaster, objective: Objective, plan: Sequence[Stage] | Joint | Merge) -> float:
    """The mean of the objective over a forecaster's draws, with the same luck for every plan."""
    return float(objective.of(predict.by_task(predict.expected(plan))).mean())


@dataclass(frozen=True, slots=True)
class Found:
    """An order, its score as measured, and what no order can exceed (the score itself where the search was exact)."""

    order: Order
    score: float
    bound: float
    exact: bool


def best_order(form: SetForm, objective: Objective, *, restarts: int = 8, seed: int = 0) -> Found:
    """The best order, or a good one with a bound where there are more than `EXACT` tasks.

    Raises UserError as `Objective` does."""
    objective.shares(form.tasks)
    if len(form.tasks) <= EXACT:
        order = _dynamic(form, objective)
        score = score_order(form, objective, order)
        return Found(order, score, score, True)
    order = _local_search(form, objective, restarts, seed)
    score = score_order(form, objective, order)
    return Found(order, score, max(score, upper_bound(form, objective, order)), False)


def score_order(form: SetForm, objective: Objective, order: Sequence[TaskName]) -> float:
    """The objective of an order, as measured."""
    state = _State(form, objective, [form.tasks.index(task) for task in order])
    values = state.accuracies()
    if objective.kind == "worst":
        return float(values.min())
    return float(objective.shares(form.tasks) @ values)


def _dynamic(form: SetForm, objective: Objective) -> Order:
    """best[set] = the best score of the tasks in `set` where these end the order. Ties go to the order of the tasks."""
    count = len(form.tasks)
    size = 1 << count
    places = objective.places(form.tasks)
    taken = {place: k for k, place in places.items()}
    shares = objective.shares(form.tasks)
    worst = objective.kind == "worst"
    sizes = np.zeros(size, dtype=np.int8)
    for k in range(count):
        sizes[1 << k : 2 << k] = sizes[: 1 << k] + 1
    values = [_after_sets(form, k, sizes) * (1.0 if worst else shares[k]) for k in range(count)]
    best = np.full(size, -np.inf)
    best[0] = np.inf if worst else 0.0
    first = np.full(size, -1, dtype=np.int8)
    by_size = np.argsort(sizes, kind="stable")
    edges = np.searchsorted(sizes[by_size], np.arange(count + 2))
    for length in range(1, count + 1):
        sets = by_size[edges[length] : edges[length + 1]]
        place = count - length
        for k in [taken[place]] if place in taken else [k for k in range(count) if k not in places]:
            with_k = sets[(sets >> k & 1) == 1]
            without_k = with_k & ~(1 << k)
            score = (
                np.minimum(best[without_k], values[k][without_k]) if worst else best[without_k] + values[k][without_k]
            )
            better = score > best[with_k] + _EPS
            best[with_k[better]], first[with_k[better]] = score[better], k
    order, left = [], size - 1
    while left:
        k = int(first[left])
        order.append(form.tasks[k])
        left &= ~(1 << k)
    return tuple(order)


def _after_sets(form: SetForm, k: int, sizes: Places) -> Array:
    """Final accuracy of task k by the set of tasks that come after it, [2^K]."""
    columns = np.flatnonzero(form.own_C == k)
    total = np.zeros(len(sizes))
    for c in columns:
        sums = np.zeros(1)
        for effect in form.effect_K_C[:, c]:
            sums = np.concatenate([sums, sums + effect])
        retained = form.gain_C[c] * form.retained_C[c] ** sizes if form.gain_C[c] else 0.0
        total += form.scale.back(form.base_C[c] + sums + retained)
    return total / len(columns)


class _State:
    """An order and, for every column, the sum of what comes after it."""

    def __init__(self, form: SetForm, objective: Objective, order: Sequence[int]) -> None:
        self.form, self.order = form, list(order)
        self.columns = [np.flatnonzero(form.own_C == k) for k in range(len(form.tasks))]
        self._by_task_C = np.concatenate(self.columns)
        self._count_K = np.array([len(columns) for columns in self.columns])
        self._first_K = np.cumsum(self._count_K) - self._count_K
        # Powers are dear: of every column by how many tasks come later.
        self._retained_C_K = form.gain_C[:, None] * form.retained_C[:, None] ** np.arange(len(form.tasks) + 1.0)
        self.sums_C = np.zeros(len(form.own_C))
        self.later_C = np.zeros(len(form.own_C), dtype=np.int64)
        for place, k in enumerate(self.order):
            later = np.array(self.order[place + 1 :], dtype=int)
            self.sums_C[self.columns[k]] = form.effect_K_C[np.ix_(later, self.columns[k])].sum(axis=0)
            self.later_C[self.columns[k]] = len(later)
        shares = objective.shares(form.tasks)
        self._share_C = np.zeros(len(form.own_C))
        for k, columns in enumerate(self.columns):
            self._share_C[columns] = shares[k] / len(columns)
        self._worst = objective.kind == "worst"
        self._every = np.arange(len(form.own_C))
        self._utility_C = self.utility(self._every, self.sums_C, self.later_C)

    def of_tasks(self, tasks: Places) -> Places:
        """The columns of these tasks, one task's after another's."""
        counts = self._count_K[tasks]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.asarray(self._by_task_C[np.repeat(self._first_K[tasks], counts) + within])

    def final(self, columns: Places, sums: Array, later: Places) -> Array:
        form = self.form
        return form.scale.back(form.base_C[columns] + self._retained_C_K[columns, later] + sums)

    def accuracies(self) -> Array:
        """Accuracy of each task."""
        every = self.final(self._every, self.sums_C, self.later_C)
        return np.array([every[columns].mean() for columns in self.columns])

    def utility(self, columns: Places, sums: Array, later: Places) -> Array:
        """What is summed up: shares of accuracy, or something that is steep where a task is bad."""
        value = self.final(columns, sums, later)
        return -np.exp(-_SHARPNESS * value) if self._worst else self._share_C[columns] * value

    def total(self) -> float:
        return float(self._utility_C[self.form.own_C >= 0].sum())

    def gains(self, place: int) -> Array:
        """What moving the task at `place` to each place brings, [K]; 0 where it is."""
        k, order = self.order[place], np.array(self.order)
        columns = self.columns[k]
        side_K = np.zeros(len(order) + 1, dtype=np.int64)  # the last is of columns without a task
        side_K[order[:place]], side_K[order[place + 1 :]] = -1, 1
        side_C = side_K[self.form.own_C]
        # Going right, k comes to be later than those it passes, and they stop being later than k.
        moved = self.utility(self._every, self.sums_C + side_C * self.form.effect_K_C[k], self.later_C + side_C)
        change_K = np.bincount(self.form.own_C + 1, moved - self._utility_C, len(order) + 1)[1:]
        lost = _passed(self.form.effect_K_C[np.ix_(order, columns)], place)
        later = self.later_C[columns] - (np.arange(len(order)) - place)[:, None]
        there = self.utility(columns[None], self.sums_C[columns] - lost, later).sum(axis=1)
        return np.asarray(
            _passed(change_K[order], place) * np.sign(np.arange(len(order)) - place)
            + there
            - self._utility_C[columns].sum()
        )

    def move(self, place: int, by: int) -> None:
        k = self.order.pop(place)
        self.order.insert(place + by, k)
        step = 1 if by > 0 else -1
        passed = np.array(self.order[place : place + by] if by > 0 else self.order[place + by + 1 : place + 1])
        columns, theirs = self.columns[k], self.of_tasks(passed)
        self.sums_C[theirs] += step * self.form.effect_K_C[k, theirs]
        self.later_C[theirs] += step
        self.sums_C[columns] -= step * self.form.effect_K_C[np.ix_(passed, columns)].sum(axis=0)
        self.later_C[columns] -= step * len(passed)
        changed = np.concatenate([theirs, columns])
        self._utility_C[changed] = self.utility(changed, self.sums_C[changed], self.later_C[changed])


def _passed(values: Array, place: int) -> Array:
    """Sums of `values` over the places that lie between `place`, without it, and each other, with it; negative to the
    left."""
    sums = np.cumsum(values, axis=0)
    left = sums[place - 1] - sums[:place] + values[:place] if place else values[:0]
    return np.concatenate([-left, np.zeros_like(values[:1]), sums[place + 1 :] - sums[place]])


def _local_search(form: SetForm, objective: Objective, restarts: int, seed: int) -> Order:
    """Insertion moves until none helps, from greedy and from shuffled orders."""
    places = objective.places(form.tasks)
    rng = random.Random(seed)
    best, best_score = None, -np.inf
    count = len(form.tasks)
    effects = np.stack([form.effect_K_C[:, form.own_C == k].mean(axis=1) for k in range(count)], axis=1)
    for start in [back_greedy(effects), *(rng.sample(range(count), count) for _ in range(restarts))]:
        state = _State(form, objective, _settle(start, places))
        _climb(state, places)
        score = state.total()
        if score > best_score + _EPS:
            best, best_score = tuple(form.tasks[k] for k in state.order), score
    assert best is not None
    return best


def _settle(order: Sequence[int], places: Mapping[int, int]) -> list[int]:
    """The same order with fixed tasks at their places."""
    free = iter([k for k in order if k not in places])
    taken = {place: k for k, place in places.items()}
    return [taken[place] if place in taken else next(free) for place in range(len(order))]


def _climb(state: _State, places: Mapping[int, int]) -> None:
    if places:
        _climb_swapping(state, places)
        return
    improved = True
    while improved:
        improved = False
        for k in list(state.order):
            place = state.order.index(k)
            gains = state.gains(place)
            if gains.max() > 1e-10:
                state.move(place, int(gains.argmax()) - place)
                improved = True


def _climb_swapping(state: _State, places: Mapping[int, int]) -> None:
    """Where places are fixed, tasks between them swap; slower, and enough for what is left free."""
    free = [place for place in range(len(state.order)) if state.order[place] not in places]
    improved = True
    while improved:
        improved = False
        for a, b in [*pairwise(free), *((free[0], place) for place in free[2:])]:
            before = state.total()
            _swap(state, a, b)
            if state.total() <= before + 1e-10:
                _swap(state, a, b)
            else:
                improved = True


def _swap(state: _State, a: int, b: int) -> None:
    state.move(a, b - a)
    if b - 1 != a:
        state.move(b - 1, a - b + 1)


def upper_bound(form: SetForm, objective: Objective, order: Sequence[TaskName]) -> float:
    """No order scores more than this.

    Each task's accuracy, as a function of its sum, lies under a straight line (its concave envelope's, at the sum it
    has in `order`); under lines the score is a sum over pairs, and no order does better than the better way round of
    every pair. Nor better than every task with the set after it that suits it best."""
    state = _State(form, objective, [form.tasks.index(task) for task in order])
    shares = objective.shares(form.tasks)
    count = len(form.tasks)
    slopes, alone, fixed = np.zeros((count, count)), np.zeros(count), 0.0
    for k, columns in enumerate(state.columns):
        for c in columns:
            effect = np.delete(form.effect_K_C[:, c], k)
            wear, const = _wear(form, int(c), count)
            low = form.base_C[c] + const + np.minimum(effect + wear, 0.0).sum()
            high = form.base_C[c] + const + np.maximum(effect + wear, 0.0).sum()
            at = form.base_C[c] + const + state.sums_C[c] + wear * state.later_C[c]
            slope, intercept = _line(form.scale.back, low, high, float(at))
            share = shares[k] / len(columns)
            fixed += share * (intercept + slope * (form.base_C[c] + const))
            line = slope * (form.effect_K_C[:, c] + wear)
            line[k] = 0.0
            slopes[:, k] += share * line  # [i, k]: what i after k adds
            alone[k] += float(form.scale.back(np.array(high))) / len(columns)
    if objective.kind == "worst":
        return float(alone.min())
    pairs = np.triu(np.maximum(slopes, slopes.T), 1).sum()
    return float(min(fixed + pairs, shares @ alone))


def _wear(form: SetForm, c: int, count: int) -> tuple[float, float]:
    """gain x retained^n <= const + wear x n for n in 0 .. K - 1: its chord, or for a loss its least."""
    gain, retained = float(form.gain_C[c]), float(form.retained_C[c])
    last = gain * retained ** (count - 1)
    return ((last - gain) / (count - 1), gain) if gain > 0 else (0.0, last)


def _line(back: Callable[[Array], Array], low: float, high: float, at: float) -> tuple[float, float]:
    """Slope and intercept of a line that lies above `back` on [low, high], near it at `at`."""
    if high - low < 1e-9:
        return 0.0, float(back(np.array(high)))
    grid = np.unique(np.concatenate([np.linspace(low, high, _GRID), np.clip([0.0, 1.0, at], low, high)]))
    values = back(grid)
    hull: list[int] = []
    # Plain numbers: one by one they are several times as fast as NumPy's.
    x, y = grid.tolist(), values.tolist()
    for n in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[n] - x[a]) <= (y[n] - y[a]) * (x[b] - x[a]):
                hull.pop()
            else:
                break
        hull.append(n)
    right = min(max(int(np.searchsorted(grid[hull], at)), 1), len(hull) - 1)
    a, b = hull[right - 1], hull[right]
    slope = float((values[b] - values[a]) / (grid[b] - grid[a]))
    intercept = float(values[a] - slope * grid[a])
    # Between grid points a curve may lie above its chords, by no more than this.
    above = 0.0 if values.max() == values.min() else 0.25 * float(np.diff(grid).max()) ** 2 / 8
    return slope, float(intercept + above)


def least_to_most_forgettable(effects_K_K: Array) -> list[int]:
    """Sort by what the other tasks do to a task in all: the most damaged goes last."""
    incoming = _off_diagonal(effects_K_K).sum(axis=0)
    return sorted(range(len(incoming)), key=lambda k: -incoming[k])


def back_greedy(effects_K_K: Array) -> list[int]:
    """Fill places from the last one: each time the remaining task that harms the other remaining ones least.
    Ties keep the order of the tasks."""
    effects = _off_diagonal(effects_K_K)
    left, order = list(range(len(effects))), list[int]()
    while left:
        outgoing = effects[np.ix_(left, left)].sum(axis=1)
        order.insert(0, left.pop(max(reversed(range(len(left))), key=lambda n: float(outgoing[n]))))
    return order


def front_greedy(effects_K_K: Array) -> list[int]:
    """Sort by what a task does to the other tasks in all: what helps them most is trained first."""
    outgoing = _off_diagonal(effects_K_K).sum(axis=1)
    return sorted(range(len(outgoing)), key=lambda k: -outgoing[k])


def _off_diagonal(effects_K_K: Array) -> Array:
    """`effects[i, j]`: transfer from i to j."""
    effects = np.array(effects_K_K, dtype=float)
    np.fill_diagonal(effects, 0.0)
    return effects
