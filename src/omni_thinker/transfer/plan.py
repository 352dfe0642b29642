"""The order that is forecast to end best, and what the named rules would have chosen.

The sources of the method can be read as three different rules; each is a strategy with its own name. All maximise the
unweighted mean of the final accuracies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from omni_thinker.errors import UserError
from omni_thinker.transfer.forecast import (
    FORECASTERS,
    Array,
    Forecaster,
    Interval,
    MatrixDraws,
    check_order,
    forecast_order,
)
from omni_thinker.transfer.matrix import TransferMatrix
from omni_thinker.types import TaskName

Order = tuple[TaskName, ...]
ENUMERATED = 5
"""Up to this many tasks every order is listed, with the probability that it is the best."""
EXACT = 12
"""Up to this many tasks the best order is found, exactly, in O(2^K K^2): two seconds for 12."""


@dataclass(frozen=True, slots=True)
class OrderForecast:
    """`score` is the mean of the tasks' forecasts as measured; `interval` holds evaluation noise."""

    order: Order
    score: float
    interval: Interval
    tasks: Mapping[TaskName, Interval]
    probability_best: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "order": list(self.order),
            "score": self.score,
            "low": self.interval.low,
            "high": self.interval.high,
            "probability_best": self.probability_best,
            "forecast": {task: interval.to_json() for task, interval in self.tasks.items()},
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """`chosen` by the asked strategy (or given), among `orders` (best first)."""

    chosen: OrderForecast
    orders: tuple[OrderForecast, ...]
    strategies: Mapping[str, tuple[Order, float, float]]
    """name -> (order, score, regret: how much of the best score it gives away)."""
    best_score: float
    forecaster: str

    def to_json(self) -> dict[str, Any]:
        chosen = self.chosen.to_json()
        return {
            "plan": {"kind": "sequence", **chosen},
            "orders": [order.to_json() for order in self.orders],
            "strategies": {
                name: {"order": list(order), "score": score, "regret": regret}
                for name, (order, score, regret) in self.strategies.items()
            },
            "exact": True,
            "upper_bound": self.best_score,
            "forecaster": self.forecaster,
        }


def make_plan(
    matrix: TransferMatrix, *, forecaster: str = "logit", strategy: str = "exact", order: Sequence[TaskName] = ()
) -> Plan:
    """Forecast the orders of `matrix` and choose one; `order` fixes the choice instead.

    Raises UserError for unknown names or too many tasks.
    """
    if forecaster not in FORECASTERS:
        raise UserError(f"unknown forecaster {forecaster!r}; known: {', '.join(FORECASTERS)}", key="--forecaster")
    if strategy not in STRATEGIES:
        raise UserError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}", key="--strategy")
    if len(matrix.tasks) > EXACT:
        raise UserError(f"{len(matrix.tasks)} tasks; orders are planned for at most {EXACT}", key="tasks")
    if order:
        check_order(order, matrix.tasks)
    predict, draws = FORECASTERS[forecaster], MatrixDraws.of(matrix)
    named = {name: choose(matrix, predict, draws) for name, choose in STRATEGIES.items()}
    wanted = tuple(order) or named[strategy]
    every = len(matrix.tasks) <= ENUMERATED
    listed = list(permutations(matrix.tasks)) if every else list(dict.fromkeys([*named.values(), wanted]))
    scores = {o: _macro(forecast_order(predict, draws, o)) for o in listed}
    chances = _probability_best(scores) if every else {}
    forecasts = {o: _describe(o, forecast_order(predict, draws, o), chances.get(o)) for o in listed}
    best = float(scores[named["exact"]][0])
    return Plan(
        chosen=forecasts[wanted],
        orders=tuple(sorted(forecasts.values(), key=lambda f: (-round(f.score, 12), f.order))),
        strategies={name: (o, forecasts[o].score, best - forecasts[o].score) for name, o in named.items()},
        best_score=best,
        forecaster=forecaster,
    )


def exact(matrix: TransferMatrix, predict: Forecaster, draws: MatrixDraws) -> Order:
    """Subset dynamic programming: task j's forecast depends only on which tasks come after it, so the best end of
    an order depends only on the set it is made of. Ties go to the order of the matrix's tasks."""
    tasks = matrix.tasks
    full = (1 << len(tasks)) - 1
    best = np.full(full + 1, -np.inf)
    best[0] = 0.0
    first = np.zeros(full + 1, dtype=np.int64)
    measured = _only_measured(draws)
    for subset in range(1, full + 1):
        for j, task in enumerate(tasks):
            if not subset >> j & 1:
                continue
            rest = subset & ~(1 << j)
            later = [tasks[i] for i in range(len(tasks)) if rest >> i & 1]
            score = best[rest] + float(predict(measured, task, later)[0])
            if score > best[subset] + 1e-12:
                best[subset], first[subset] = score, j
    order: list[TaskName] = []
    left = full
    while left:
        order.append(tasks[first[left]])
        left &= ~(1 << int(first[left]))
    return tuple(order)


def least_to_most_forgettable(matrix: TransferMatrix, predict: Forecaster, draws: MatrixDraws) -> Order:
    """Sort by what the other tasks do to a task in all: the most damaged goes last."""
    incoming = {j: sum(matrix.effect(i, j) for i in matrix.tasks if i != j) for j in matrix.tasks}
    return tuple(sorted(matrix.tasks, key=lambda j: -incoming[j]))


def back_greedy(matrix: TransferMatrix, predict: Forecaster, draws: MatrixDraws) -> Order:
    """Fill places from the last one: each time the remaining task that harms the other remaining ones least.
    Ties keep the order of the matrix's tasks."""
    left, order = list(matrix.tasks), list[TaskName]()
    while left:
        last = max(reversed(left), key=lambda i: sum(matrix.effect(i, j) for j in left if j != i))
        order.insert(0, last)
        left.remove(last)
    return tuple(order)


def front_greedy(matrix: TransferMatrix, predict: Forecaster, draws: MatrixDraws) -> Order:
    """Fill places from the first one: each time the task that helps the other remaining ones most."""
    left, order = list(matrix.tasks), list[TaskName]()
    while left:
        chosen = max(left, key=lambda i: sum(matrix.effect(i, j) for j in left if j != i))
        order.append(chosen)
        left.remove(chosen)
    return tuple(order)


STRATEGIES: Mapping[str, Callable[[TransferMatrix, Forecaster, MatrixDraws], Order]] = {
    "exact": exact,
    "back_greedy": back_greedy,
    "least_to_most_forgettable": least_to_most_forgettable,
    "front_greedy": front_greedy,
}


def _only_measured(draws: MatrixDraws) -> MatrixDraws:
    return MatrixDraws({k: v[:1] for k, v in draws.start.items()}, {k: v[:1] for k, v in draws.after.items()})


def _macro(forecast: Mapping[TaskName, Array]) -> Array:
    return np.asarray(np.mean(np.stack(list(forecast.values())), axis=0))


def _probability_best(scores: Mapping[Order, Array]) -> dict[Order, float]:
    """Share of the draws in which an order scores highest; ties are shared out."""
    stacked = np.stack(list(scores.values()))
    top = stacked >= stacked.max(axis=0) - 1e-12
    share = (top / top.sum(axis=0)).mean(axis=1)
    return {order: float(value) for order, value in zip(scores, share, strict=True)}


def _describe(order: Order, forecast: Mapping[TaskName, Array], chance: float | None) -> OrderForecast:
    macro = _macro(forecast)
    tasks = {task: Interval.of(values) for task, values in forecast.items()}
    return OrderForecast(order, float(macro[0]), Interval.of(macro), tasks, chance)
