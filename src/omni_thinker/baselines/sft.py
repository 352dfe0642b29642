"""Supervised fine-tuning on gold answers: the warm-up that RL starts from, and the SFT baseline.

A small instruct model rambles; RL has nothing to reinforce until some samples are right, and nothing to tell apart
once all are. The warm-up stops in between."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from omni_thinker.errors import UserError
from omni_thinker.protocol import FormedLoss, LossForm, LossTerms, OptimParams, Policy, Thinks, TokenBatch, TrainGroup
from omni_thinker.recipe import WarmupSpec
from omni_thinker.rl.stream import ProblemStream
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.types import Problem, Sample, TaskName, Thinking

Check = Callable[[int], Mapping[TaskName, Estimate]]
"""Measures every task on validation after a step."""


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """`inside[task]`: whether the score that was reached lies in the target band."""

    steps: int
    tokens: int
    reached: Mapping[TaskName, Estimate]
    inside: Mapping[TaskName, bool]


@dataclass(slots=True)
class WarmupState:
    """Where a warm-up is, beside the policy. `taken`: problems of each stream."""

    step: int
    tokens: int
    reached: dict[TaskName, Estimate]
    taken: dict[TaskName, int]


def _likelihood(batch: TokenBatch) -> LossTerms:
    clipped_N = batch.logprobs_N.detach() > 0  # none: a log-prob is never positive
    return LossTerms(-(batch.logprobs_N * batch.weights_N).sum(), clipped_N)


gold_loss = FormedLoss(LossForm("likelihood"), _likelihood)
"""Weighted negative log-likelihood."""


def gold_batch(
    policy: Policy, problems: Sequence[Problem], thinking: Mapping[TaskName, Thinking] | None = None
) -> list[TrainGroup]:
    """Gold answers as groups of one sample. Every answer weighs the same, however long.

    Problems without a gold answer are left out. Where a prompt ends within thoughts, these are closed before the
    answer, which is no part of the loss."""
    gold = [problem for problem in problems if problem.answer is not None]
    samples = [_gold_sample(policy, problem, (thinking or {}).get(problem.task, "auto")) for problem in gold]
    return [
        TrainGroup(
            task=problem.task,
            prompt=prompt,
            samples=(sample,),
            advantages=(1.0,),
            weights=(1.0 / (len(gold) * sample.drawn),),
        )
        for problem, (prompt, sample) in zip(gold, samples, strict=True)
    ]


def _gold_sample(policy: Policy, problem: Problem, thinking: Thinking) -> tuple[tuple[int, ...], Sample]:
    answer = problem.answer or ""
    if isinstance(policy, Thinks):
        return policy.gold(problem.chat, answer, thinking)
    tokens = policy.encode_answer(answer)
    return policy.encode_prompt(problem.chat), Sample(tokens, (0.0,) * len(tokens), answer, "stop")


def warm_up(
    policy: Policy,
    streams: Mapping[TaskName, ProblemStream],
    spec: WarmupSpec,
    check: Check,
    on_step: Callable[[int, float, list[TaskName]], None],
    *,
    thinking: Mapping[TaskName, Thinking] | None = None,
    begun: WarmupState | None = None,
    keep: Callable[[WarmupState], None] = lambda _: None,
) -> WarmupReport:
    """Train until every task scores in `spec.target`, or for `spec.steps` steps.

    A task rests while it scores at least a quarter into the band, so that an easy one isn't drilled to 1 while
    a hard one still learns its form; it is taken up again should it fall out. `keep` is told after every step where
    it is; with `begun` and the policy of that moment it goes on from there. Raises UserError where it diverges."""
    low, high = spec.target
    enough = low + (high - low) / 4
    if begun is None:
        reached, tokens, step = dict(check(0)), 0, 0
    else:
        reached, tokens, step = dict(begun.reached), begun.tokens, begun.step
        for task, stream in streams.items():
            stream.taken = begun.taken[task]
    while step < spec.steps:
        active = [task for task in streams if reached[task].mean < enough]
        if not active:
            break
        problems = [
            problem
            for i, task in enumerate(active)
            # What is left over goes round, so that no task has to wait for another to rest.
            for problem, _ in streams[task].take(
                spec.batch // len(active) + ((i - step) % len(active) < spec.batch % len(active))
            )
        ]
        batch = gold_batch(policy, problems, thinking)
        report = policy.forward_backward(batch, gold_loss)
        optim = policy.optim_step(OptimParams(spec.lr * min(1.0, (step + 1) / 3)))
        if not (optim.applied and isfinite(report.loss)):
            raise UserError("the loss or its gradient is not finite; a lower rate helps", key="warmup.lr")
        tokens += report.tokens_computed
        step += 1
        on_step(step, report.loss, active)
        if step % spec.check_every == 0 or step == spec.steps:
            reached = dict(check(step))
        keep(WarmupState(step, tokens, dict(reached), {task: stream.taken for task, stream in streams.items()}))
    return WarmupReport(step, tokens, reached, {task: low <= e.mean <= high for task, e in reached.items()})
