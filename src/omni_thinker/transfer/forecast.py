"""What a plan is forecast to end at, from the transfer matrix: sequences of stages, joint training and merging.

Two assumptions of arXiv 2507.14783: the effect of training on i upon j does not depend on the checkpoint it starts
from (A1), and one pass over a task brings it to the level of single-task training (A2). The forecasters here take them
literally, each on its own scale; `hierarchical` doubts both. A forecast is a set of draws, so every number has an
interval and any two plans can be compared draw by draw."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import Estimate, Interval, dump
from omni_thinker.runs.schema.transfer import Column, TransferMatrix
from omni_thinker.transfer.matrix import smoothed
from omni_thinker.types import TaskName

Array = NDArray[np.float64]
DRAWS = 2000
ACCURACY_MARGIN = 5e-3
"""Accuracies are kept this far from 0 and 1 where log-odds or ratios are taken."""
LEVEL = 0.8
"""Default level of intervals."""
CURVE_RATE = 1.5
"""How soon a learning curve flattens: half a pass brings 68 % of a whole one's gain, two passes 122 %."""


def interval(draws: Array, level: float = LEVEL) -> Interval:
    """The mean of the draws with its interval of `level`."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(draws.mean()), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Stage:
    """One task for so many passes (1: as long as its single-task run was)."""

    task: TaskName
    passes: float = 1.0


Stages = tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Joint:
    """All at once, in shares that add up to 1; `passes` in all (default: one for each task of the matrix)."""

    weights: Mapping[TaskName, float]
    passes: float | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """start + scale x sum of (expert - start), arXiv 2212.04089."""

    scale: float = 1.0


def in_order(tasks: Sequence[TaskName]) -> Stages:
    """Every task once, for one pass."""
    return tuple(Stage(task) for task in tasks)


def gain_share(passes: float, rate: float = CURVE_RATE) -> float:
    """The share of one pass's gain that so many passes bring; 0 at 0, 1 at 1. rate: how soon the curve flattens."""
    return float((1 - np.exp(-rate * passes)) / (1 - np.exp(-rate)))


@dataclass(frozen=True, slots=True)
class Draws:
    """The matrix as measured (draw 0) and as it might have been.

    `start_C_N`; `after_K_C_N`, NaN where it wasn't measured. C columns, K tasks, N draws."""

    start_C_N: Array
    after_K_C_N: Array

    @classmethod
    def of(cls, matrix: TransferMatrix, draws: int = DRAWS, seed: int = 0) -> "Draws":
        rng = np.random.default_rng(seed)
        columns = matrix.columns()

        def cell(estimate: Estimate | None) -> Array:
            if estimate is None:
                return np.full(draws, np.nan)
            spread = estimate.stderr if np.isfinite(estimate.stderr) else 0.5
            noisy = np.clip(rng.normal(estimate.mean, spread, draws), 0.0, 1.0)
            noisy[0] = estimate.mean
            return noisy

        start = np.stack([cell(c.start) for c in columns])
        after = np.stack([np.stack([cell(c.after.get(i)) for c in columns]) for i in matrix.tasks])
        return cls(start, after)


@dataclass(frozen=True, slots=True)
class SetForm:
    """A forecaster whose sequences depend only on which tasks come after a task.

    final[c] = back(base[c] + own[c] x retained[c] ** (number of later tasks) + sum over later i of effect[i, c]).
    As measured (one draw); what orders are searched with."""

    tasks: tuple[TaskName, ...]
    own_C: NDArray[np.int64]
    base_C: Array
    effect_K_C: Array
    gain_C: Array
    retained_C: Array
    scale: "Scale"


class Scale(ABC):
    """Accuracies to a line where effects add up, and back."""

    @abstractmethod
    def to(self, accuracy: Array) -> Array: ...

    @abstractmethod
    def back(self, value: Array) -> Array: ...


class Plain(Scale):
    """Accuracy itself, clipped to [0, 1] at the end."""

    def to(self, accuracy: Array) -> Array:
        return accuracy

    def back(self, value: Array) -> Array:
        return np.clip(value, 0.0, 1.0)


class Log(Scale):
    """Factors add up as logarithms; at most 1."""

    def to(self, accuracy: Array) -> Array:
        return np.log(np.maximum(accuracy, ACCURACY_MARGIN))

    def back(self, value: Array) -> Array:
        return np.exp(np.minimum(value, 0.0))


class LogOdds(Scale):
    """No clipping, and effects near 0 and 1 shrink."""

    def to(self, accuracy: Array) -> Array:
        p = np.clip(accuracy, ACCURACY_MARGIN, 1 - ACCURACY_MARGIN)
        return np.asarray(np.log(p / (1 - p)))

    def back(self, value: Array) -> Array:
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(value, -30, 30))))


class Forecaster(ABC):
    """Forecasts of one matrix. All return accuracies, [C, N].

    `own_C`: place of a column's task among the tasks, -1 where nothing was trained on it."""

    name: str

    def __init__(self, matrix: TransferMatrix) -> None:
        self.matrix = matrix
        self.tasks, self.columns = matrix.tasks, matrix.columns()
        self.own_C = owners(self.columns, self.tasks)
        self._columns_of = {
            task: [c for c, column in enumerate(self.columns) if column.task == task] for task in self.tasks
        }

    @abstractmethod
    def sequence(self, stages: Sequence[Stage]) -> Array: ...

    @abstractmethod
    def joint(self, plan: Joint) -> Array: ...

    @abstractmethod
    def merge(self, plan: Merge) -> Array: ...

    @abstractmethod
    def set_form(self) -> SetForm: ...

    def expected(self, plan: Sequence[Stage] | Joint | Merge) -> Array:
        """`by_column` with the same luck for every plan, so that two of them differ by what they are alone; [C, N]."""
        return self.by_column(plan)

    def __call__(self, plan: Sequence[Stage] | Joint | Merge) -> dict[TaskName, Array]:
        """Final accuracy of every task (the mean of its evaluations), [N] each.

        Raises UserError for tasks that the matrix doesn't know and for shares that are none."""
        return self.by_task(self.by_column(plan))

    def by_column(self, plan: Sequence[Stage] | Joint | Merge) -> Array:
        """The same for every evaluation, [C, N]."""
        if isinstance(plan, Joint):
            check_weights(plan.weights, self.tasks)
            return self.joint(plan)
        if isinstance(plan, Merge):
            return self.merge(plan)
        if unknown := [stage.task for stage in plan if stage.task not in self.tasks]:
            raise UserError(f"unknown task {unknown[0]!r}; the matrix has {', '.join(self.tasks)}", key="--order")
        return self.sequence(plan)

    def by_task(self, columns_C_N: Array) -> dict[TaskName, Array]:
        """The mean of each task's evaluations."""
        return {task: columns_C_N[columns].mean(axis=0) for task, columns in self._columns_of.items()}


class Literal(Forecaster):
    """A1 and A2 taken literally, on one scale."""

    scale: Scale = Plain()

    def __init__(self, matrix: TransferMatrix, draws: int = DRAWS, seed: int = 0) -> None:
        super().__init__(matrix)
        self.draws = Draws.of(matrix, draws, seed)
        self.start_C_N = self.scale.to(self.draws.start_C_N)
        # What wasn't measured is taken to have no effect.
        self.effect_K_C_N = np.nan_to_num(self.scale.to(self.draws.after_K_C_N) - self.start_C_N[None], nan=0.0)
        places = np.arange(len(self.columns))
        trained = self.own_C >= 0
        self.gain_C_N = np.where(trained[:, None], self.effect_K_C_N[self.own_C, places], 0.0)
        for c in places[trained]:
            self.effect_K_C_N[self.own_C[c], c] = 0.0

    def sequence(self, stages: Sequence[Stage]) -> Array:
        value = self.start_C_N.copy()
        for stage in stages:
            k = self.tasks.index(stage.task)
            share = gain_share(stage.passes)
            before = value
            value = value + share * self.effect_K_C_N[k]
            of_task_C = self.own_C == k
            # A2: a whole stage brings a task to its level, whatever went before; a short one goes part of the way.
            level = self.start_C_N[of_task_C] + max(1.0, share) * self.gain_C_N[of_task_C]
            before[of_task_C] += min(1.0, share) * (level - before[of_task_C])
            value[of_task_C] = before[of_task_C]
        return self.scale.back(value)

    def joint(self, plan: Joint) -> Array:
        total = len(self.tasks) if plan.passes is None else plan.passes
        value = self.start_C_N.copy()
        for k, task in enumerate(self.tasks):
            share = gain_share(plan.weights.get(task, 0.0) * total)
            value = value + share * np.where((self.own_C == k)[:, None], self.gain_C_N, self.effect_K_C_N[k])
        return self.scale.back(value)

    def merge(self, plan: Merge) -> Array:
        return self.scale.back(self.start_C_N + plan.scale * (self.gain_C_N + self.effect_K_C_N.sum(axis=0)))

    def set_form(self) -> SetForm:
        count = len(self.columns)
        base = self.start_C_N[:, 0] + self.gain_C_N[:, 0]
        return SetForm(
            self.tasks, self.own_C, base, self.effect_K_C_N[:, :, 0], np.zeros(count), np.ones(count), self.scale
        )


class Additive(Literal):
    """clip(s[j] + sum of transfer[i -> j])."""

    name = "additive"


class Relative(Literal):
    """s[j] x product of (1 + transfer[i -> j] / start[j])."""

    name = "relative"
    scale = Log()


class Logit(Literal):
    """The additive forecast on log-odds."""

    name = "logit"
    scale = LogOdds()


class Naive(Literal):
    """Nothing transfers: each task ends at its own single-task accuracy."""

    name = "naive"

    def __init__(self, matrix: TransferMatrix, draws: int = DRAWS, seed: int = 0) -> None:
        super().__init__(matrix, draws, seed)
        self.effect_K_C_N = np.zeros_like(self.effect_K_C_N)


def check_order(order: Sequence[TaskName], tasks: Sequence[TaskName]) -> None:
    """Raises UserError unless `order` names every task once."""
    if unknown := [task for task in order if task not in tasks]:
        raise UserError(f"unknown task {unknown[0]!r}; the matrix has {', '.join(tasks)}", key="--order")
    if len(set(order)) != len(order):
        raise UserError("an order must name each task once", key="--order")
    if missing := [task for task in tasks if task not in order]:
        raise UserError(f"leaves out {missing[0]!r}", key="--order")


def check_weights(weights: Mapping[TaskName, float], tasks: Sequence[TaskName]) -> None:
    """Raises UserError unless these are shares of known tasks that add up to 1."""
    if unknown := [task for task in weights if task not in tasks]:
        raise UserError(f"unknown task {unknown[0]!r}; the matrix has {', '.join(tasks)}", key="--joint")
    if not weights or any(not 0 <= weight <= 1 for weight in weights.values()):
        raise UserError("shares must lie between 0 and 1", key="--joint")
    if abs(sum(weights.values()) - 1) > 1e-6:
        raise UserError(f"shares must add up to 1, not {sum(weights.values()):g}", key="--joint")


def owners(columns: Sequence[Column], tasks: Sequence[TaskName]) -> NDArray[np.int64]:
    """Place of each column's task among the tasks, -1 where it is none of them."""
    places = {task: k for k, task in enumerate(tasks)}
    return np.array([places.get(column.task, -1) for column in columns])


def evenly(tasks: Sequence[TaskName]) -> Joint:
    """All tasks in like shares."""
    return Joint({task: 1 / len(tasks) for task in tasks})


def measured(forecaster: Forecaster, accuracy_C_N: Array, seed: int = 0) -> Array:
    """What evaluations of the same size as at the start would show: the forecast with their noise, [C, N]."""
    rng = np.random.default_rng([seed, 7])
    noise = []
    for column in forecaster.columns:
        stderr, p = column.start.stderr, smoothed(column.start)
        # A start near 0 has less noise than where the forecast lies: scale by the spread of a share.
        here = p * (1 - p)
        spread = stderr if np.isfinite(stderr) else 0.5
        noise.append(rng.normal(0.0, 1.0, accuracy_C_N.shape[1]) * spread / np.sqrt(here))
    width = np.sqrt(np.maximum(accuracy_C_N * (1 - accuracy_C_N), 0.0))
    return np.asarray(np.clip(accuracy_C_N + np.stack(noise) * width, 0.0, 1.0))


def to_intervals(forecast: Mapping[TaskName, Array], level: float = LEVEL) -> dict[str, Any]:
    """The intervals as JSON."""
    return {task: dump(interval(draws, level)) for task, draws in forecast.items()}
