"""Shares of joint training that are forecast to end best.

The forecast of a mixture bends down in each task's share (a learning curve) and counts what tasks do to each other, so
the best shares are neither even nor all on one task. SciPy's L-BFGS searches their logarithms, from several beginnings;
it goes by a few draws, the choice among what it found by all of them."""

from collections.abc import Callable, Sequence

import numpy as np

from omni_thinker.transfer.forecast import Array, Joint, evenly
from omni_thinker.transfer.hierarchical import Hierarchical
from omni_thinker.transfer.search import Objective, expected_score

_NONE = 0.02
"""Shares below this part of an even one are taken to be none."""
_DRAWS, _MANY = 64, 32
"""Draws to search by; beyond so many tasks, their mean alone."""
_BEGINNINGS = 3


def best_shares(predict: Hierarchical, objective: Objective, passes: float, start: Joint, seed: int = 0) -> Joint:
    """The mixture of `passes` passes that ends best by the forecast; never worse than even shares or `start`."""
    from scipy.optimize import minimize

    tasks, rng = predict.tasks, np.random.default_rng([seed, 23])
    few = predict.fewer(_DRAWS if len(tasks) <= _MANY else 1)
    given = np.log(np.maximum([start.weights.get(task, 0.0) for task in tasks], _NONE / len(tasks)))
    beginnings = [given, *(rng.normal(0.0, 1.0, len(tasks)) for _ in range(_BEGINNINGS if len(tasks) <= _MANY else 0))]

    def loss(logs: Array) -> tuple[float, Array]:
        shares = _softmax(logs)
        value, slopes = _sloped(few, objective, Joint(dict(zip(tasks, shares.tolist(), strict=True)), passes))
        return -value, -shares * (slopes - shares @ slopes)

    bounds = [(-8.0, 8.0)] * len(tasks)
    found = [minimize(loss, x - x.mean(), jac=True, method="L-BFGS-B", bounds=bounds).x for x in beginnings]
    known = [Joint(start.weights, passes), Joint(evenly(tasks).weights, passes)]
    return _first_best(
        [*known, *(_joint(tasks, logs, passes) for logs in found)],
        lambda plan: expected_score(predict, objective, plan),
    )


def _sloped(predict: Hierarchical, objective: Objective, plan: Joint) -> tuple[float, Array]:
    """The objective of a mixture, and its slope in each share, [K]."""
    accuracy_C_N, slopes_K_C_N = predict.joint_slopes(plan)
    own_K_C = predict.own_C[None] == np.arange(len(predict.tasks))[:, None]
    part_K_C = own_K_C / own_K_C.sum(axis=1, keepdims=True)  # of a task's accuracy
    of_task_K_N = part_K_C @ accuracy_C_N
    if objective.kind == "worst":
        weight_K_N = (of_task_K_N.argmin(axis=0)[None] == np.arange(len(predict.tasks))[:, None]) * 1.0
    else:
        weight_K_N = np.broadcast_to(objective.shares(predict.tasks)[:, None], of_task_K_N.shape)
    slopes_K = (slopes_K_C_N * (part_K_C.T @ weight_K_N)).mean(axis=2).sum(axis=1)
    return float((of_task_K_N * weight_K_N).sum(axis=0).mean()), slopes_K


def _joint(tasks: Sequence[str], logs: Array, passes: float) -> Joint:
    shares = _softmax(np.asarray(logs))
    shares = np.where(shares < _NONE / len(tasks), 0.0, shares)
    shares /= shares.sum()
    return Joint(dict(zip(tasks, shares.tolist(), strict=True)), passes)


def _softmax(logs: Array) -> Array:
    powers = np.exp(logs - logs.max())
    return np.asarray(powers / powers.sum())


def _first_best(plans: Sequence[Joint], score: Callable[[Joint], float]) -> Joint:
    """The best plan; an earlier one where nothing is gained."""
    best, top = plans[0], score(plans[0])
    for plan in plans[1:]:
        if (value := score(plan)) > top + 1e-9:
            best, top = plan, value
    return best
