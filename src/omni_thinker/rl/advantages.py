"""Advantages from the rewards of groups: who did better than the siblings, and by how much."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.float64]

STD_EPS = 1e-4
"""Added to a group's standard deviation, as TRL does."""
ZERO_VARIANCE = 1e-9
"""Groups whose rewards spread less than this carry no gradient."""


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether a group tells its samples apart."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > ZERO_VARIANCE


def grpo(groups: Sequence[Rewards]) -> list[Rewards]:
    """(r - mean) / (std + eps) within each group, std with n - 1 (arXiv 2402.03300)."""
    return [(r - r.mean()) / (_std(r) + STD_EPS) for r in groups]


def dr_grpo(groups: Sequence[Rewards]) -> list[Rewards]:
    """r - mean: no division, so that hard and easy groups are not blown up (arXiv 2503.20783)."""
    return [r - r.mean() for r in groups]


def rloo(groups: Sequence[Rewards]) -> list[Rewards]:
    """r - mean of the other samples (arXiv 2402.14740)."""
    return [(r - r.mean()) * len(r) / (len(r) - 1) if len(r) > 1 else np.zeros_like(r) for r in groups]


def reinforce_pp(groups: Sequence[Rewards]) -> list[Rewards]:
    """Group mean as baseline, scaled by the whole batch's standard deviation (arXiv 2501.03262)."""
    centred = dr_grpo(groups)
    scale = float(np.concatenate(centred).std()) + STD_EPS if centred else 1.0
    return [c / scale for c in centred]


def _std(rewards: Rewards) -> float:
    return float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0


ADVANTAGES: Mapping[str, Callable[[Sequence[Rewards]], list[Rewards]]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
}
