"""Advantages from the rewards of groups: who did better than the siblings, and by how much."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rewards = NDArray[np.float64]
Parts = NDArray[np.float64]
"""[samples, parts] of a group."""

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


def rank(groups: Sequence[Rewards]) -> list[Rewards]:
    """The share of the other samples that a sample beats less the share that beat it, in [-1, 1]: what a group's order
    says alone, however far rewards lie apart."""
    return [np.sign(r[:, None] - r[None, :]).sum(axis=1) / max(1, len(r) - 1) for r in groups]


def preference(groups: Sequence[Rewards]) -> list[Rewards]:
    """2 r - 1: a reward that is a share of wins, as judges' are, is an advantage as it stands (1 always wins, 0 ties,
    -1 always loses). Nothing is taken off, so that of a reference it says how the policy compares with it."""
    return [2 * r - 1 for r in groups]


def gdpo(groups: Sequence[Parts], weights: Sequence[NDArray[np.float64]]) -> list[Rewards]:
    """GDPO (arXiv 2601.05242): each part is centred and scaled within its group by itself, so that parts that differ in
    spread or in difficulty keep their weight; the weighed sums are scaled over the batch.

    `groups`: [samples, parts] each; `weights`: of the parts of each group."""
    sums = [
        (p - p.mean(axis=0)) / (np.array([_std(column) for column in p.T]) + STD_EPS) @ w
        for p, w in zip(groups, weights, strict=True)
    ]
    if not sums:
        return []
    whole = np.concatenate(sums)
    return [(one - whole.mean()) / (_std(whole) + STD_EPS) for one in sums]


def _std(rewards: Rewards) -> float:
    return float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0


ADVANTAGES: Mapping[str, Callable[[Sequence[Rewards]], list[Rewards]]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp": reinforce_pp,
    "rank": rank,
    "preference": preference,
}
"""Estimators that look at rewards; `gdpo` looks at their parts."""
