"""`omni-thinker plan` and `forecast`: from a file and a few words to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.transfer.forecast import Joint, Merge, Stage
from omni_thinker.transfer.forecasters import make_forecaster
from omni_thinker.transfer.matrix import load_matrix
from omni_thinker.transfer.plan import Plan, check_measured, forecast_json, make_plan
from omni_thinker.transfer.search import Objective
from omni_thinker.types import TaskName

_MOST_PASSES = 1000
_MOST_SCALE = 10


def plan_file(
    path: Path,
    *,
    forecaster: str,
    strategy: str,
    order: Sequence[TaskName],
    objective: str,
    fixed: str,
    refresh_cost: float | None,
    level: float,
) -> Plan:
    """The plan for the matrix at `path`. Raises UserError for a bad file and for words that can't be read."""
    places = _numbers(fixed, "--fix")
    if bad := [task for task, place in places.items() if place != int(place)]:
        raise UserError(f"a place is a whole number, got {bad[0]}={places[bad[0]]:g}", key="--fix")
    goal = _objective(objective)
    return make_plan(
        load_matrix(path),
        forecaster=forecaster,
        strategy=strategy,
        order=order,
        objective=Objective(goal.kind, goal.weights, {task: int(place) for task, place in places.items()}),
        level=level,
        refresh_cost=refresh_cost,
    )


def forecast_file(
    path: Path,
    *,
    joint: str,
    order: str,
    merge: float | None,
    passes: float | None,
    forecaster: str,
    objective: str,
    level: float,
) -> dict[str, Any]:
    """The forecast of one plan for the matrix at `path`. Raises UserError as `plan_file` does."""
    if sum((bool(joint), bool(order), merge is not None)) != 1:
        raise UserError("give one of --joint, --order and --merge", key="--joint")
    if passes is not None and not joint:
        raise UserError("is for a joint run; a stage's passes are given as task:passes", key="--passes")
    if passes is not None and not 0 < passes <= _MOST_PASSES:
        raise UserError(f"takes more than 0 and at most {_MOST_PASSES}, got {passes:g}", key="--passes")
    if merge is not None and not 0 <= merge <= _MOST_SCALE:
        raise UserError(f"takes a scale from 0 to {_MOST_SCALE}, got {merge:g}", key="--merge")
    matrix = load_matrix(path)
    check_measured(matrix)
    predict = make_forecaster(forecaster, matrix)
    plan: tuple[Stage, ...] | Joint | Merge
    if joint:
        plan = Joint(_numbers(joint, "--joint"), passes)
    elif order:
        plan = tuple(_stage(word) for word in order.split(","))
    else:
        plan = Merge(merge or 0.0)
    return forecast_json(predict, plan, _objective(objective), level)


def _objective(text: str) -> Objective:
    if text in ("mean", "worst"):
        return Objective(text)
    if "=" not in text:
        raise UserError(f"takes mean, worst or task=weight,..., got {text!r}", key="--objective")
    return Objective("mean", _numbers(text, "--objective"))


def _stage(word: str) -> Stage:
    task, colon, passes = word.strip().rpartition(":")
    if not colon:
        return Stage(word.strip())
    try:
        length = float(passes)
    except ValueError:
        raise UserError(f"{passes!r} is no number of passes", key="--order") from None
    if not 0 < length <= _MOST_PASSES:
        raise UserError(f"a stage takes more than 0 and at most {_MOST_PASSES} passes, got {passes}", key="--order")
    return Stage(task, length)


def _numbers(text: str, key: str) -> dict[TaskName, float]:
    """`a=1,b=2` as a table."""
    found: dict[TaskName, float] = {}
    for word in text.split(",") if text.strip() else ():
        name, equals, value = word.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or not name.strip() or not abs(number) < 1e300:
            raise UserError(f"takes task=number,..., got {word.strip()!r}", key=key)
        if name.strip() in found:
            raise UserError(f"names {name.strip()!r} twice", key=key)
        found[name.strip()] = number
    return found
