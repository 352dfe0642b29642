"""How the changes that several experts made to one weight become one change."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import torch

MergeMethod = Literal["linear", "ties", "dare", "dare_ties"]
_LEAST_WEIGHT = 1e-8
_CHUNK_WEIGHTS = 2**15


@dataclass(frozen=True, slots=True)
class MergeRule:
    """`linear`: the weighted sum (task arithmetic, arXiv 2212.04089). `ties`: the largest `density` of each change, and
    of these those whose sign is that of their weighted sum, averaged by weight (2306.01708). `dare`: a random `density`
    of each change, divided by it, summed (2311.03099). `dare_ties`: the same with signs elected as in `ties`.

    `scale` multiplies the result. `weights`: one for each expert; none: 1 each. Tensors are trimmed one by one, as
    mergekit does; the paper of `ties` trims whole models."""

    method: MergeMethod = "linear"
    scale: float = 1.0
    density: float = 1.0
    weights: tuple[float, ...] = ()
    seed: int = 0

    def combine(self, name: str, changes: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
        """The change of the weight `name`, from those of the experts that have one, at least one: (the expert's place,
        its change in fp32). Raises IndexError where an expert has no weight."""
        weighted = [
            (self.weights[place] if self.weights else 1.0, self._sparse(name, place, change))
            for place, change in changes
        ]
        if self.method in ("ties", "dare_ties"):
            return _elected(weighted).mul_(self.scale)
        total = torch.zeros_like(weighted[0][1])
        for weight, change in weighted:
            total.add_(change, alpha=weight)
        return total.mul_(self.scale)

    def _sparse(self, name: str, place: int, change: torch.Tensor) -> torch.Tensor:
        if self.density >= 1 or self.method == "linear":
            return change
        if self.method == "ties":
            return _largest(change, self.density)
        digest = sha256(f"{self.seed}\x1f{place}\x1f{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        mask = torch.rand(change.shape, generator=generator) < self.density
        return torch.where(mask, change / self.density, 0.0)


def _largest(change: torch.Tensor, density: float) -> torch.Tensor:
    """The largest `density` of the numbers by size, at least one, the first of equal ones; the others become 0."""
    flat = change.reshape(-1)
    if not len(flat):
        return change
    count = max(1, int(density * flat.numel()))
    sizes = flat.abs()
    least = float(np.partition(sizes.numpy(), -count)[-count])  # three times as fast as torch's topk
    mask = sizes >= least
    if spare := int(mask.sum()) - count:
        mask[(sizes == least).nonzero()[-spare:]] = False
    return torch.where(mask, flat, 0.0).view_as(change)


def _elected(changes: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """At each place the mean, by weight, of the changes whose sign is that of the weighted sum."""
    elected = torch.empty(changes[0][1].shape)
    flat = elected.view(-1)
    # In a cache, on one thread: no fresh pages, no waiting for another.
    for begin in range(0, len(flat), _CHUNK_WEIGHTS):
        block = slice(begin, begin + _CHUNK_WEIGHTS)
        flat[block] = _elected_part([(weight, change.reshape(-1)[block]) for weight, change in changes])
    return elected


def _elected_part(changes: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    majority = torch.zeros_like(changes[0][1])
    for weight, change in changes:
        majority.add_(change, alpha=weight)
    majority.sign_()
    majority[majority == 0] = 1  # where they cancel out somebody has to win
    total, share = torch.zeros_like(majority), torch.zeros_like(majority)
    for weight, change in changes:
        agrees = (weight * change).sign() == majority
        total += torch.where(agrees, weight * change, 0.0)
        share += agrees * weight
    share[share.abs() < _LEAST_WEIGHT] = 1.0
    return total.div_(share)
