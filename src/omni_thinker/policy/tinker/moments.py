"""AdamW (arXiv 1711.05101) at a service that can't be told to forget its moments.

A step with both betas 0, without gradient and rate, leaves both moments 0. But the service goes on counting steps, and
corrects the bias of its moments by that count. The rate and epsilon of each later step are chosen such that the update
is that of a new optimiser; both corrections are factors of these, so this is exact but for rounding."""

from dataclasses import dataclass
from math import sqrt

from omni_thinker.engine.optimizer import BETAS, EPS
from omni_thinker.protocol import OptimParams


@dataclass(frozen=True, slots=True)
class Adam:
    """Settings of one step at the service."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


FORGET = Adam(learning_rate=0.0, beta1=0.0, beta2=0.0, eps=EPS, weight_decay=0.0, grad_clip_norm=0.0)
"""A step that changes no weights and leaves the moments as they are in the gradient: 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Steps that the service's optimiser has counted, and those since its moments were last 0."""

    counted: int = 0
    since: int = 0

    def stepped(self) -> "Moments":
        return Moments(self.counted + 1, self.since + 1)

    def forgotten(self) -> "Moments":
        return Moments(self.counted + 1, 0)

    def step(self, optim: OptimParams) -> Adam:
        """The settings with which the service's next step is the one that `optim` asks of a new optimiser."""
        (first, second), (own_first, own_second) = _bias(self.counted + 1), _bias(self.since + 1)
        spread = sqrt(own_second / second)
        factor = first / own_first * spread
        return Adam(
            learning_rate=optim.lr * factor,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS * spread,
            weight_decay=optim.weight_decay / factor,
            grad_clip_norm=optim.max_grad_norm,
        )


def _bias(step: int) -> tuple[float, float]:
    return 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
