"""The plain policy gradient of a task's accuracy, without clip, length weights or a group's spread: what a first-order
estimate of its change is made of."""

from collections.abc import Sequence

import numpy as np
import torch

from omni_thinker.protocol import LossTerms, Policy, TokenBatch
from omni_thinker.rl.advantages import rloo
from omni_thinker.rl.batch import ScoredGroup, train_group, valued


def add_policy_gradient(policy: Policy, groups: Sequence[ScoredGroup], temperature: float) -> int:
    """Add to the policy's gradient that of minus the mean score of `groups`: an unbiased estimate (RLOO's baseline,
    arXiv 2402.14740; whole samples, all groups in the mean). Groups without signal add nothing but count.

    Returns the number of answer tokens that were trained on."""
    scored = sum(len(group.values) for group in groups)
    trainable = [group for group in groups if group.has_signal]
    if not trainable:
        return 0
    advantages = rloo([np.array(group.values) for group in trainable])
    batch = [
        train_group(group, valued(group), list(map(float, values)), lambda _task, _length: 1 / scored)
        for group, values in zip(trainable, advantages, strict=True)
    ]
    policy.forward_backward(batch, _reinforce, temperature=temperature)
    return sum(group.drawn for group in batch)


def _reinforce(batch: TokenBatch) -> LossTerms:
    loss = -(batch.weights_N * batch.advantages_N * batch.logprobs_N).sum()
    return LossTerms(loss, torch.zeros_like(batch.advantages_N, dtype=torch.bool))
