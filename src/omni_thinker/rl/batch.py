"""From scored groups to a training batch: who is trained, with which advantage and token weight."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import RlSpec
from omni_thinker.rl.advantages import ADVANTAGES, Parts, Rewards, gdpo, has_signal
from omni_thinker.types import Group, Problem, Sample, Score, TaskName


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with one score per sample. `penalties`: what training takes off each score; empty where nothing.

    `weights`: of the parts that scores are weighed means of; empty where the reward says none. `apart`: whether
    training takes these one by one."""

    problem: Problem
    group: Group
    scores: tuple[Score, ...]
    penalties: tuple[float, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    apart: bool = False

    @property
    def values(self) -> list[float]:
        """The scores that are values; abstentions and errors are no part of the baseline."""
        return [score.value for score in self.scores if score.value is not None]

    @property
    def rewards(self) -> list[float]:
        """`values` less their penalties: what is trained on."""
        if not self.penalties:
            return self.values
        pairs = zip(self.scores, self.penalties, strict=True)
        return [score.value - penalty for score, penalty in pairs if score.value is not None]

    @property
    def parts(self) -> dict[str, list[float]]:
        """Each weighed part of the samples that have a value; 0 where a gate was closed before it."""
        scored = [score for score in self.scores if score.value is not None]
        return {part: [score.parts.get(part, 0.0) for score in scored] for part in self.weights}

    @property
    def has_signal(self) -> bool:
        """Whether it tells its samples apart; taken apart, by any part."""
        if has_signal(self.rewards):
            return True
        return self.apart and any(map(has_signal, self.parts.values()))


def build_batches(
    groups: Sequence[ScoredGroup],
    spec: RlSpec,
    max_tokens: int,
    order: Sequence[TaskName] = (),
    drawn: int | None = None,
    own: Mapping[TaskName, RlSpec] | None = None,
) -> list[list[TrainGroup]]:
    """Deal the groups with signal out to `spec.minibatches` batches that hold every task in like shares, or, given an
    `order` of tasks, to a batch for each task.

    Advantages are taken over everything, token weights within each batch. `max_tokens` is the longest answer
    allowed (for the constant normaliser). `drawn`: samples that the step drew for all batches, those of groups without
    signal and of refills too (for the normaliser "drawn"; by default those of `groups`). `own`: the settings of tasks,
    by default `spec`.
    """
    specs = own or {}
    trainable = [group for group in groups if group.has_signal]
    paired = list(zip(trainable, _advantages(trainable, spec, specs), strict=True))
    batches = []
    if drawn is None:
        drawn = sum(len(group.scores) for group in groups)
    per_batch = drawn / max(1, len(order) or spec.minibatches)
    normaliser = spec.preset.normaliser if spec.normaliser == "auto" else spec.normaliser
    by_task = [[pair for pair in paired if pair[0].problem.task == task] for task in order]
    for pairs in by_task or [paired[i :: spec.minibatches] for i in range(spec.minibatches)]:
        kept = [
            (group, *_kept(group, list(map(float, values)), specs.get(group.problem.task, spec)))
            for group, values in pairs
        ]
        weigh = _Weigher(
            normaliser, [(group.problem.task, samples) for group, samples, _ in kept], max_tokens, per_batch
        )
        batches.append([train_group(group, samples, values, weigh) for group, samples, values in kept if samples])
    return [batch for batch in batches if batch]


def _advantages(groups: Sequence[ScoredGroup], spec: RlSpec, own: Mapping[TaskName, RlSpec]) -> list[Rewards]:
    """Of each group, by its task's estimator. What one takes over the batch, it takes over its own groups there."""
    by_estimator: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        by_estimator.setdefault(own.get(group.problem.task, spec).estimator, []).append(place)
    advantages: dict[int, Rewards] = {}
    for estimator, places in by_estimator.items():
        chosen = [groups[place] for place in places]
        if estimator == "gdpo":
            values = gdpo(*zip(*map(_columns, chosen), strict=True)) if chosen else []
        else:
            values = ADVANTAGES[estimator]([np.array(group.rewards) for group in chosen])
        advantages |= dict(zip(places, values, strict=True))
    return [advantages[place] for place in range(len(groups))]


def _columns(scored: ScoredGroup) -> tuple[Parts, Rewards]:
    """A group's parts and their weights, which add up to 1; what it loses for length is a part as heavy as all others.
    The reward as a whole is the only part where it has none."""
    parts, total = scored.parts, sum(scored.weights.values())
    columns, weights = list(parts.values()), [scored.weights[part] / total for part in parts]
    if not columns:
        columns, weights = [scored.values], [1.0]
    if scored.penalties:
        pairs = zip(scored.scores, scored.penalties, strict=True)
        columns.append([-penalty for score, penalty in pairs if score.value is not None])
        weights.append(1.0)
    return np.array(columns).T, np.array(weights)


def _kept(scored: ScoredGroup, advantages: Sequence[float], spec: RlSpec) -> tuple[list[Sample], list[float]]:
    """The samples that are trained on, with their advantages."""
    pairs = zip(valued(scored), advantages, strict=True)
    kept = [(s, a) for s, a in pairs if spec.truncated == "keep" or s.stop != "length"]
    return [sample for sample, _ in kept], [advantage for _, advantage in kept]


def learnability(
    groups: Sequence[ScoredGroup],
    spec: RlSpec,
    by: Callable[[Problem], str] = lambda problem: problem.task,
    own: Mapping[TaskName, RlSpec] | None = None,
) -> dict[str, float]:
    """Mean absolute advantage of each task's samples (or of what `by` says), of groups without signal too, where it is
    0: what a task's problems have to teach this policy (arXiv 2505.14970)."""
    scored = [group for group in groups if group.values]
    advantages = _advantages(scored, spec, own or {})
    by_name: dict[str, list[float]] = {}
    for group, values in zip(scored, advantages, strict=True):
        by_name.setdefault(by(group.problem), []).extend(map(float, np.abs(values) if group.has_signal else 0 * values))
    return {task: float(np.mean(values)) for task, values in by_name.items()}


class _Weigher:
    """Token weight of a sample: 1 over what the normaliser counts."""

    def __init__(
        self, kind: str, groups: Sequence[tuple[TaskName, Sequence[Sample]]], max_tokens: int, drawn: float
    ) -> None:
        self.kind, self.max_tokens, self.drawn = kind, max_tokens, drawn
        lengths = [(task, sample.drawn) for task, samples in groups for sample in samples]
        self.samples = len(lengths)
        self.tokens = sum(length for _, length in lengths)
        self.task_tokens: Counter[str] = Counter()
        for task, length in lengths:
            self.task_tokens[task] += length

    def __call__(self, task: str, length: int) -> float:
        if self.kind == "sample":
            return 1.0 / (self.samples * length)
        if self.kind == "drawn":
            return 1.0 / (self.drawn * length)
        if self.kind == "token":
            return 1.0 / self.tokens
        if self.kind == "task_token":
            return 1.0 / (len(self.task_tokens) * self.task_tokens[task])
        return 1.0 / (self.samples * self.max_tokens)


def valued(scored: ScoredGroup) -> list[Sample]:
    """The samples whose scores are values."""
    return [s for s, score in zip(scored.group.samples, scored.scores, strict=True) if score.value is not None]


def train_group(
    scored: ScoredGroup, samples: Sequence[Sample], advantages: Sequence[float], weigh: Callable[[TaskName, int], float]
) -> TrainGroup:
    """Some samples of a group that have a score; `weigh` gives the token weight for a task and a length."""
    return TrainGroup(
        task=scored.problem.task,
        prompt=scored.group.prompt,
        samples=tuple(replace(sample, dialogue=None) if sample.dialogue else sample for sample in samples),
        advantages=tuple(advantages),
        weights=tuple(weigh(scored.problem.task, sample.drawn) for sample in samples),
    )
