"""What a service divides losses by, measured: the gradients of one row, of that row twice, and of a longer one."""

from collections.abc import Mapping, Sequence
from math import isclose

from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.losses import Row, Scale, ServiceLoss
from omni_thinker.policy.tinker.moments import FORGET
from omni_thinker.policy.tinker.service import Trainer

_TOKENS = (5, 6, 7, 8, 9, 10)
"""Any: every vocabulary has them."""
_LONGER = 5
"""Tokens more, after the one that is trained on: they change nothing but the row's length."""


def norm_of(metrics: Mapping[str, float]) -> float | None:
    """The norm of the gradient in what a service measures of a step, None where it has none."""
    return next((value for name, value in metrics.items() if "grad_norm" in name), None)


def measure(trainer: Trainer) -> Scale | None:
    """What the service divides by; None where it doesn't report norms. Changes no weights of `trainer`, whose factors
    must be new, but its moments.

    Raises UserError for a scale that is neither of those that we know."""
    short, long = _row(_TOKENS), _row((*_TOKENS, *_TOKENS[:_LONGER]))
    norms = [_norm(trainer, made) for made in ([short], [short, short], [long])]
    one, two, longer = (norm or 0.0 for norm in norms)
    if None in norms or one <= 0.0:
        return None
    length = len(short.inputs) / len(long.inputs)
    found = [
        Scale(tokens, sequences)
        for tokens in (False, True)
        for sequences in (False, True)
        if isclose(two / one, 1.0 if sequences else 2.0, rel_tol=0.01)
        and isclose(longer / one, length if tokens else 1.0, rel_tol=0.01)
    ]
    if not found:
        raise UserError(
            f"the gradient of a row twice is {two / one:.3g} times that of the row, and of one of "
            f"{len(long.inputs)} tokens {longer / one:.3g} times that of {len(short.inputs)}: no scale that we know",
            key="engine.tinker.loss_scale",
        )
    return found[0]


def _row(tokens: Sequence[int]) -> Row:
    count, trained = len(tokens) - 1, len(_TOKENS) - 2
    advantages = [float(place == trained) for place in range(count)]
    numbers = {"advantages": advantages, "logprobs": [0.0] * count}
    return Row(tuple(tokens[:-1]), tuple(tokens[1:]), numbers, answer=0)


def _norm(trainer: Trainer, made: Sequence[Row]) -> float | None:
    trainer.forward_backward(made, ServiceLoss("importance_sampling"))
    return norm_of(trainer.optim_step(FORGET))
