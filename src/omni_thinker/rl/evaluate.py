"""Accuracy on held-out problems: the mean score of a few answers to each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omni_thinker.errors import UserError
from omni_thinker.protocol import Policy
from omni_thinker.rewards.base import Reward
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.metrics import Metrics, group_metrics, sampled_entropy
from omni_thinker.rl.requests import request_for
from omni_thinker.rl.scoring import Scoring, stop_on_errors
from omni_thinker.rl.stream import stable_seed
from omni_thinker.rl.turns.converse import Talks, sample_scored
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.tasks.environments.base import Turns
from omni_thinker.types import Problem, SamplingParams, TaskName, Thinking

Measures = Mapping[TaskName, Mapping[str, Mapping[str, float]]]
"""task -> measure, such as `pass@4` -> problem id -> its value in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`values[task][problem id]` is the mean score of a problem's answers; problems without one are left out. `tokens`
    were sampled for it. `groups` is what was sampled, empty where only the rest was kept. `measures`: what else was
    asked for (`compare.at_k`)."""

    values: Mapping[TaskName, Mapping[str, float]]
    metrics: Metrics
    tokens: int
    groups: tuple[ScoredGroup, ...] = ()
    measures: Measures = field(default_factory=dict)

    def estimate(self, task: TaskName) -> Estimate:
        return estimate(list(self.values[task].values()))

    def estimates(self) -> dict[TaskName, Estimate]:
        return {task: self.estimate(task) for task in self.values}

    def measured(self) -> dict[TaskName, dict[str, Estimate]]:
        """`measures` as means over problems."""
        tasks = self.measures.items()
        return {task: {name: estimate(list(values.values())) for name, values in own.items()} for task, own in tasks}

    def entropy(self) -> dict[TaskName, float]:
        prefix = "entropy/"
        return {k.removeprefix(prefix): v for k, v in self.metrics.items() if k.startswith(prefix)}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error; NaN where there is no value, infinite error where there is only one."""
    n = len(values)
    if n < 2:
        return Estimate(float(values[0]) if n else float("nan"), n, float("inf"))
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    if max(values) - min(values) < 1e-9:
        # All alike: n problems can't know that there are no others. One half of a success and of a failure more.
        shrunk = (mean * n + 0.5) / (n + 1)
        spread = float(np.sqrt(shrunk * (1 - shrunk)))
    return Estimate(mean, n, spread / float(np.sqrt(n)))


def evaluate(
    policy: Policy,
    problems: Mapping[TaskName, Sequence[Problem]],
    rewards: Mapping[TaskName, Reward],
    max_tokens: Mapping[TaskName, int],
    *,
    params: SamplingParams,
    seed: int,
    stops: Mapping[TaskName, tuple[str, ...]] | None = None,
    thinking: Mapping[TaskName, Thinking] | None = None,
    turns: Mapping[TaskName, Turns] | None = None,
    max_error_rate: float = 1.0,
) -> Evaluation:
    """Answer each problem `params.group_size` times. The same seed draws with the same random numbers for every policy.

    Raises UserError where a task has no scored answer at all, or more than `max_error_rate` of its scores are errors.
    """
    flat = [problem for of_task in problems.values() for problem in of_task]
    requests = [
        request_for(
            policy,
            problem,
            stable_seed(seed, "evaluate", problem.task, problem.id),
            max_tokens[problem.task],
            (stops or {}).get(problem.task, ()),
            (thinking or {}).get(problem.task, "auto"),
        )
        for problem in flat
    ]
    with Scoring(rewards, policy) as scoring:
        sample_scored(policy, flat, requests, params, scoring, Talks(turns or {}, thinking or {}))
        scored = scoring.results()
    stop_on_errors(scored, max_error_rate)
    values: dict[TaskName, dict[str, float]] = {task: {} for task in problems}
    for group in scored:
        if group.values:
            values[group.problem.task][group.problem.id] = float(np.mean(group.values))
    for task, own_values in values.items():
        if not own_values:
            raise UserError(f"no answer could be scored; the first: {_first_reason(scored, task)}", key=f"tasks.{task}")
    metrics = group_metrics(scored)
    for task in problems:
        entropy = sampled_entropy(group for group in scored if group.problem.task == task)
        if entropy is not None and params.temperature > 0:  # what is always drawn has no surprise
            metrics[f"entropy/{task}"] = entropy
    tokens = sum(sample.length for group in scored for sample in group.group.samples)
    return Evaluation(values, metrics, tokens, tuple(scored))


def _first_reason(groups: Sequence[ScoredGroup], task: TaskName) -> str:
    reasons = (score.reason for group in groups if group.problem.task == task for score in group.scores)
    return next((reason for reason in reasons if reason), "no reason given")
