"""Groups to train on, for tests of losses."""

from __future__ import annotations

import torch

from omni_thinker.protocol import TrainGroup
from omni_thinker.types import Sample


def mixed_groups() -> list[TrainGroup]:
    """Four ragged groups of two tasks, always the same."""
    rng = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(t) for t in torch.randint(3, 512, (count,), generator=rng))

    groups = []
    for task, prompt, lengths in (("a", 6, (3, 5)), ("b", 3, (1, 1, 4)), ("a", 9, (2,)), ("b", 2, (8, 1))):
        # The sampler's log-probs lie about where a random model's do, so that ratios are neither 0 nor huge.
        old = [tuple(float(x) for x in torch.randn(n, generator=rng) * 0.3 - 6.2) for n in lengths]
        answers = tuple(Sample(ids(n), o, "", "stop") for n, o in zip(lengths, old, strict=True))
        advantages = tuple(float(x) for x in torch.randn(len(lengths), generator=rng))
        groups.append(TrainGroup(task, ids(prompt), answers, advantages, tuple(0.1 / n for n in lengths)))
    return groups
