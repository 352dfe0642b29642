"""The plan that is forecast to end best, what the named rules would have chosen, and how sure any of it is."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import dump
from omni_thinker.runs.schema.plan import Plan, PlanForecast, Strategy
from omni_thinker.runs.schema.priors import Priors
from omni_thinker.runs.schema.transfer import TransferMatrix
from omni_thinker.transfer.decide import decide, decision_words
from omni_thinker.transfer.forecast import (
    LEVEL,
    Array,
    Forecaster,
    Joint,
    Merge,
    Stage,
    Stages,
    check_order,
    evenly,
    in_order,
    interval,
    measured,
    to_intervals,
)
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.hierarchical import Evidence, Hierarchical
from omni_thinker.transfer.priors.named import HAND
from omni_thinker.transfer.search import (
    EXACT,
    Found,
    Objective,
    Order,
    back_greedy,
    best_order,
    expected_score,
    front_greedy,
    least_to_most_forgettable,
    score_order,
    upper_bound,
)
from omni_thinker.transfer.shares import best_shares
from omni_thinker.types import TaskName

ENUMERATED = 5
"""Up to this many tasks every order is listed, with the probability that it is the best."""
REFRESH_PASSES = 0.25
_FEWER_DRAWS = 400
_CLIMBS, _BOUNDED = 8, 40
"""Rounds of moves, and draws that are bounded, where orders are too many to list."""

STRATEGIES: Mapping[str, Callable[[Array], list[int]] | None] = {
    "exact": None,  # found by search, see `best_order`
    "back_greedy": back_greedy,
    "least_to_most_forgettable": least_to_most_forgettable,
    "front_greedy": front_greedy,
    "reversed": None,  # the exact one, backwards: the control of a study
    "random": None,
}


def make_plan(
    matrix: TransferMatrix,
    *,
    forecaster: str = "hierarchical",
    strategy: str = "exact",
    order: Sequence[TaskName] = (),
    objective: Objective | None = None,
    level: float = LEVEL,
    refresh_cost: float | None = None,
    evidence: Sequence[Evidence] = (),
    shares: Mapping[TaskName, float] | None = None,
    priors: Priors = HAND,
    seed: int = 0,
) -> Plan:
    """Forecast the orders of `matrix` and joint training, and choose; `order` or a named `strategy` fixes the choice.

    `refresh_cost`: what one more pass must gain in the objective for a short refresh stage to be put in (None: none
    is). Joint training is in `shares` (default: like ones) and as long as the sequence; it is chosen only by the
    hierarchical forecaster: the literal ones add up all effects there. So are the shares that end best.
    Raises UserError for unknown names, and where a task's own run wasn't measured."""
    goal = _checked(matrix, objective or Objective(), strategy, order)
    every = len(tasks := matrix.tasks) <= ENUMERATED
    draws = 2000 if every else _FEWER_DRAWS
    predict = make_forecaster(forecaster, matrix, seed=seed, evidence=evidence, draws=draws, priors=priors)

    def score(plan: Stages | Joint) -> float:
        return _score(predict, goal, plan)

    all_orders: list[Order] = [seq for seq in permutations(tasks) if _keeps(seq, goal)] if every else []
    scores = {seq: score(in_order(seq)) for seq in all_orders}
    optimum = _best(predict, goal, scores, score, seed)
    strategies = {name: seq for name, seq in _named(optimum.order, matrix, seed).items() if _keeps(seq, goal)}
    picked = tuple(order) or strategies[strategy]
    for seq in [*strategies.values(), picked]:
        scores.setdefault(seq, score(in_order(seq)))
    orders = _described(predict, goal, scores, all_orders, level)
    refreshes = refresh_cost is not None and not order
    sequence = _refreshed(predict, goal, orders[picked], refresh_cost or 0.0, level) if refreshes else orders[picked]
    mixture = Joint(shares or evenly(tasks).weights, sum(sequence.passes))
    decision = decide(matrix, predict, goal, stages_of(sequence), mixture, seed=seed)
    joint = _jointly(predict, goal, mixture, level, 1 - decision.probability)
    free = not order and strategy == "exact" and isinstance(predict, Hierarchical) and not goal.fixed
    plan = Plan(
        plan=joint if free and decision.gain_over_joint < 0 else sequence,
        sequence=sequence,
        joint=joint,
        mixture=_mixed(predict, goal, mixture, level, seed),
        orders=tuple(sorted(orders.values(), key=lambda seq: (-round(seq.score, 12), seq.order))),
        strategies={n: Strategy(seq, scores[seq], max(scores.values()) - scores[seq]) for n, seq in strategies.items()},
        exact=optimum.exact,
        upper_bound=optimum.bound,
        forecaster=forecaster,
        priors=priors if isinstance(predict, Hierarchical) else None,
        objective=goal.kind if not goal.weights else "weights",
        level=level,
        decision=decision,
        words="",
    )
    return replace(plan, words=_words(plan, free))


def stages_of(forecast: PlanForecast) -> Stages:
    """The stages of a sequence; none of joint training."""
    return tuple(map(Stage, forecast.order, forecast.passes))


def _checked(matrix: TransferMatrix, objective: Objective, strategy: str, order: Sequence[TaskName]) -> Objective:
    """The objective, once everything fits the matrix. Raises UserError for the first thing that doesn't."""
    if strategy not in STRATEGIES:
        raise UserError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}", key="--strategy")
    check_measured(matrix)
    if objective.fixed and (order or strategy != "exact"):
        raise UserError("places can be fixed only with the strategy 'exact'", key="--fix")
    objective.shares(matrix.tasks)
    objective.places(matrix.tasks)
    if order:
        check_order(order, matrix.tasks)
    return objective


def _best(
    predict: Forecaster,
    objective: Objective,
    scores: Mapping[Order, float],
    score: Callable[[Stages | Joint], float],
    seed: int,
) -> Found:
    """The best order, and how far it may be from the best there is. scores: of all orders, or empty."""
    optimum = best_order(predict.set_form(), objective, seed=seed)
    if not isinstance(predict, Hierarchical):
        return optimum
    # The search goes by the means of the draws, the score by the mean of its outcomes.
    top = max(scores, key=lambda candidate: scores[candidate]) if scores else _climb(optimum.order, objective, score)
    best = scores.get(top, score(in_order(top)))
    return Found(top, best, best if scores else _bound(predict, objective, top, best), bool(scores))


def _described(
    predict: Forecaster, objective: Objective, scores: Mapping[Order, float], all_orders: Sequence[Order], level: float
) -> dict[Order, PlanForecast]:
    """Each order with its intervals, and its chance to be the best where `all_orders` are known."""
    truth = {candidate: objective.of(predict(in_order(candidate))) for candidate in scores}
    chances = _probability_best({candidate: truth[candidate] for candidate in all_orders}) if all_orders else {}
    return {
        candidate: _describe(
            predict, in_order(candidate), scores[candidate], truth[candidate], level, chances.get(candidate)
        )
        for candidate in scores
    }


def forecast_json(
    predict: Forecaster, plan: Stages | Joint | Merge, objective: Objective | None = None, level: float = LEVEL
) -> dict[str, Any]:
    """What `omni-thinker forecast --json` prints."""
    accuracy = predict.by_column(plan)
    measured_accuracy = measured(predict, accuracy)
    goal = objective or Objective()
    outcome = goal.of(predict.by_task(accuracy))
    table: dict[str, Any] = {
        "forecaster": predict.name,
        "level": level,
        "kind": "joint" if isinstance(plan, Joint) else "merge" if isinstance(plan, Merge) else "sequence",
        "score": _score(predict, goal, plan),
        "interval": dump(interval(outcome, level)),
        "forecast": to_intervals(predict.by_task(measured_accuracy), level),
    }
    if len(predict.columns) > len(predict.tasks):
        table["evaluations"] = {
            c.name: dump(interval(measured_accuracy[n], level)) for n, c in enumerate(predict.columns)
        }
    return table


def _score(predict: Forecaster, objective: Objective, plan: Stages | Joint | Merge) -> float:
    """The objective of the formulas as measured; where a forecast is a distribution, its mean."""
    if isinstance(predict, Hierarchical):
        return expected_score(predict, objective, plan)
    return float(objective.of(predict.by_task(predict.expected(plan)))[0])


def _climb(order: Order, objective: Objective, score: Callable[[Stages], float]) -> Order:
    """Move one task at a time to where the score gains most, while there are few enough tasks to try all moves."""
    best, top = order, score(in_order(order))
    for _ in range(_CLIMBS if len(order) <= EXACT else 0):
        moves = {
            (*others[:place], task, *others[place:])
            for task in best
            for others in [tuple(other for other in best if other != task)]
            for place in range(len(best))
        }
        scores = {candidate: score(in_order(candidate)) for candidate in moves if _keeps(candidate, objective)}
        chosen = max(scores, key=lambda candidate: scores[candidate])
        if scores[chosen] <= top + 1e-12:
            break
        best, top = chosen, scores[chosen]
    return best


def _bound(predict: Hierarchical, objective: Objective, order: Order, score: float) -> float:
    """What no order's mean can exceed: no draw's best order exceeds that draw's bound. From a few draws, by how far
    their bounds lie above `order` in them, so up to their noise."""
    draws = range(1, 1 + (_BOUNDED if len(order) <= EXACT else 1))
    above = [
        upper_bound(form, objective, order) - score_order(form, objective, order)
        for form in (predict.form_of(draw) for draw in draws)
    ]
    return score + max(0.0, float(np.mean(above)))


def _keeps(order: Order, objective: Objective) -> bool:
    return all(order[place - 1] == task for task, place in objective.fixed.items())


def check_measured(matrix: TransferMatrix) -> None:
    """Raises UserError where a task's own run is missing: without it nothing can be said of the task."""
    for column in matrix.columns():
        if column.task in matrix.tasks and column.task not in column.after:
            raise UserError(f"{column.name!r} was not measured after training on its own task", key="after")


def _named(best: Order, matrix: TransferMatrix, seed: int) -> dict[str, Order]:
    """The order of every strategy."""
    tasks = matrix.tasks
    effects = np.array([[matrix.effect(i, j) for j in tasks] for i in tasks])
    shuffled = list(tasks)
    random.Random(seed).shuffle(shuffled)
    fixed = {"exact": best, "reversed": best[::-1], "random": tuple(shuffled)}
    return {
        name: fixed[name] if rule is None else tuple(tasks[k] for k in rule(effects))
        for name, rule in STRATEGIES.items()
    }


def _describe(
    predict: Forecaster, plan: Stages | Joint, score: float, truth: Array, level: float, chance: float | None
) -> PlanForecast:
    shown = predict.by_task(measured(predict, predict.by_column(plan)))
    stages: Stages = () if isinstance(plan, Joint) else plan
    ends = interval(truth, level)
    return PlanForecast(
        kind="joint" if isinstance(plan, Joint) else "sequence",
        order=tuple(stage.task for stage in stages),
        passes=tuple(stage.passes for stage in stages),
        shares=dict(plan.weights) if isinstance(plan, Joint) else {},
        score=score,
        low=ends.low,
        high=ends.high,
        probability_best=chance,
        forecast={task: interval(draws, level) for task, draws in shown.items()},
    )


def _mixed(predict: Forecaster, objective: Objective, like: Joint, level: float, seed: int) -> PlanForecast | None:
    """Joint training as long as `like` in the shares that end best; None where the forecaster is a formula."""
    if not isinstance(predict, Hierarchical):
        return None
    passes = float(len(predict.tasks)) if like.passes is None else like.passes
    return _jointly(predict, objective, best_shares(predict, objective, passes, like, seed), level, None)


def _jointly(
    predict: Forecaster, objective: Objective, plan: Joint, level: float, chance: float | None
) -> PlanForecast:
    return _describe(predict, plan, _score(predict, objective, plan), objective.of(predict(plan)), level, chance)


def _probability_best(scores: Mapping[Order, Array]) -> dict[Order, float]:
    """Share of the draws in which a plan scores highest; ties are shared out."""
    stacked = np.stack(list(scores.values()))
    top = stacked >= stacked.max(axis=0) - 1e-12
    share = (top / top.sum(axis=0)).mean(axis=1)
    return {order: float(value) for order, value in zip(scores, share, strict=True)}


def _refreshed(
    predict: Forecaster, objective: Objective, plan: PlanForecast, cost: float, level: float
) -> PlanForecast:
    """Put in short stages, one at a time where it helps most, while one gains more than it costs."""
    best = plan

    for _ in predict.tasks:
        before = stages_of(best)
        now = expected_score(predict, objective, before)
        options = []
        for task in predict.tasks:
            for place in range(1, len(before) + 1):
                stages = (*before[:place], Stage(task, REFRESH_PASSES), *before[place:])
                options.append((expected_score(predict, objective, stages) - now, stages))
        gain, stages = max(options, key=lambda option: option[0])
        if gain <= cost * REFRESH_PASSES + 1e-6:
            break
        truth = objective.of(predict(stages))
        best = _describe(predict, stages, now + gain, truth, level, None)
    return best


def _words(plan: Plan, free: bool) -> str:
    """One paragraph in plain words."""
    best = plan.sequence
    order = " -> ".join(
        task if passes == 1 else f"{task}:{passes:g}" for task, passes in zip(best.order, best.passes, strict=True)
    )
    goal = {"mean": "a mean accuracy", "worst": "a worst task's accuracy"}.get(plan.objective, "a weighted mean")
    said = [
        f"By the {plan.forecaster} forecast the order {order} ends at {goal} of {best.score:.3f} "
        f"[{best.low:.3f}, {best.high:.3f}] ({plan.level:.0%} interval)."
    ]
    if not plan.exact:
        said.append(f"Not every order was tried; none can exceed {plan.upper_bound:.3f}.")
    if plan.forecaster == "hierarchical":
        said.append(decision_words(plan.decision))
    if free and plan.plan.kind == "joint":
        said.append("Train jointly.")
    return " ".join(said)
