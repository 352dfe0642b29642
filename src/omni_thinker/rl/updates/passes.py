"""A batch in as many passes as its tasks have settings: each pass has one loss and one temperature.

Token weights are set over the whole batch and every loss is a sum, so gradients of passes add up to the batch's. Where
all tasks have the same settings there is one pass, and policies need to know nothing of this."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from math import ceil
from operator import add

import torch

from omni_thinker.errors import UserError
from omni_thinker.protocol import LossReport, Policy, SeesEntropy, TrainGroup
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.losses import PolicyLoss
from omni_thinker.types import TaskName


def add_gradient(
    policy: Policy, batch: Sequence[TrainGroup], specs: Mapping[TaskName, RlSpec], *, measure_kl: bool
) -> LossReport:
    """Add a batch's gradient to the policy's, each task by its settings. `measure_kl`: also where no loss needs it."""
    reports = []
    for spec, groups in _passes(batch, specs):
        loss = PolicyLoss(spec, None if spec.top_entropy == 1 else _least_entropy(policy, groups, spec))
        reference = spec.kl_beta > 0 or measure_kl
        for part in _cut(groups, spec.accumulate):
            reports.append(policy.forward_backward(part, loss, temperature=spec.temperature, reference=reference))
    return reduce(add, reports)


def _cut(groups: Sequence[TrainGroup], parts: int) -> list[Sequence[TrainGroup]]:
    """So many parts of like length, in order; fewer where there are fewer groups."""
    ends = [len(groups) * number // parts for number in range(parts + 1)]
    return [groups[begin:end] for begin, end in pairwise(ends) if end > begin]


def _passes(batch: Sequence[TrainGroup], specs: Mapping[TaskName, RlSpec]) -> list[tuple[RlSpec, list[TrainGroup]]]:
    """Groups by what their loss and temperature depend on; tasks whose entropies are ranked have a pass of their own,
    or those that are sure of themselves would not be trained beside others."""
    by_settings: dict[object, tuple[RlSpec, list[TrainGroup]]] = {}
    for group in batch:
        spec = specs[group.task]
        settings = (spec.loss_settings, group.task if spec.top_entropy < 1 else None)
        by_settings.setdefault(settings, (spec, []))[1].append(group)
    return list(by_settings.values())


def _least_entropy(policy: Policy, groups: Sequence[TrainGroup], spec: RlSpec) -> float:
    """The entropy from which on a pass's tokens are in the top share. One forward pass: micro-batches must agree on it.

    Raises UserError where the policy doesn't know entropies."""
    if not isinstance(policy, SeesEntropy):
        raise UserError("this policy can't say the entropy of tokens", key="rl.top_entropy")
    drawn = [own for group in groups for sample in group.samples for own in sample.chosen]
    entropies = policy.entropies(groups, temperature=spec.temperature).float()
    return threshold(entropies[torch.tensor(drawn, device=entropies.device)], spec.top_entropy)


def threshold(values: torch.Tensor, share: float) -> float:
    """What the top `share` of values, [N], are at least: as the quantile 1 - share has it, but halfway between two
    values and a little below, so that rounding moves none across."""
    ordered = values.sort().values
    below = ceil((len(ordered) - 1) * (1 - share) - 1e-9)
    return float(ordered[below - 1] + ordered[below]) / 2 - 1e-6 if below else float("-inf")
