"""Multi-task GRPO: one step, read from top to bottom.

quotas -> problems -> groups -> scores -> advantages -> gradient -> update -> metrics"""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

import numpy as np

from omni_thinker.engine.task_gradients import Sketches, alignments, norms
from omni_thinker.errors import UserError
from omni_thinker.protocol import OptimParams, OptimReport, Policy, TokenStats, TrainGroup
from omni_thinker.recipe import RlSpec, TaskRlSpec
from omni_thinker.rewards.base import Reward
from omni_thinker.rl.batch import ScoredGroup, build_batches, learnability
from omni_thinker.rl.difficulty import pool_of
from omni_thinker.rl.metrics import Metrics, group_metrics, token_metrics
from omni_thinker.rl.requests import request_for
from omni_thinker.rl.resample import Resampler
from omni_thinker.rl.scoring import Scoring, stop_on_errors
from omni_thinker.rl.shaping import shaped
from omni_thinker.rl.stream import ProblemStream, stable_seed
from omni_thinker.rl.turns.converse import Talks, sample_scored
from omni_thinker.rl.updates.balance import Balance, weighed
from omni_thinker.rl.updates.mismatch import mismatch_sums, samples_elsewhere, stop_on_mismatch, trainer_logprobs
from omni_thinker.rl.updates.passes import add_gradient
from omni_thinker.rl.updates.schedule import learning_rate_of
from omni_thinker.tasks.environments.base import Turns
from omni_thinker.types import Group, SamplingParams, TaskName, Thinking

MOST_SKIPPED = 3
"""Updates in a row that may be skipped for a loss or gradient that isn't finite."""
BESIDE = 128
"""Sequences of a step, up to which those are sampled along that are likely to be asked for right after."""
BESIDE_TOKENS = 12
"""Tokens of an answer, below which a pass of its own takes less than prompts that nobody may ask for."""
_log = logging.getLogger(__name__)


class Diverged(UserError):
    """Updates had to be skipped, too many in a row. `evidence`: the last of them, of JSON."""

    def __init__(self, message: str, evidence: Mapping[str, Any]) -> None:
        super().__init__(message, key="rl.lr")
        self.evidence = evidence


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. `groups` holds everything sampled, refills included."""

    metrics: Metrics
    groups: tuple[ScoredGroup, ...]
    tokens_sampled: int
    tokens_trained: int


class Learner:
    """Trains one policy on several tasks with one hybrid reward each."""

    def __init__(
        self,
        policy: Policy,
        spec: RlSpec,
        streams: Mapping[TaskName, ProblemStream],
        rewards: Mapping[TaskName, Reward],
        max_tokens: Mapping[TaskName, int],
        stops: Mapping[TaskName, tuple[str, ...]] | None = None,
        thinking: Mapping[TaskName, Thinking] | None = None,
        own: Mapping[TaskName, TaskRlSpec] | None = None,
        turns: Mapping[TaskName, Turns] | None = None,
    ) -> None:
        """`stops`: texts that end an answer, `thinking`: what becomes of thoughts, `own`: settings of its own,
        `turns`: who speaks to answers; by task."""
        self.policy, self.spec = policy, spec.between(samples_elsewhere(policy))
        self.streams, self.rewards, self.max_tokens = streams, rewards, max_tokens
        self.stops, self.thinking = stops or {}, thinking or {}
        self._talks = Talks(turns or {}, self.thinking, spec.score_deadline_s)
        self._specs = {task: self.spec.of_task((own or {}).get(task, TaskRlSpec())) for task in streams}
        self._balance = Balance(spec.balance)
        self._refill = Resampler(spec.refill_most)
        self._beside: dict[int, Group] = {}
        """Groups that were sampled in case they are asked for, by the seeds of their draws."""
        self._skipped = 0

    def step(self, quotas: Mapping[TaskName, int], number: int, rate: float | None = None) -> StepResult:
        """One step of `quotas` problems. `number` counts the arm's steps from 0. `rate`: the learning rate, by default
        that of a constant schedule.

        Raises UserError where too many scores are errors: a broken reward must not train anything."""
        clock = _Clock()
        groups, first = self._sample_quotas(quotas, clock)
        stop_on_errors(groups, self.spec.max_error_rate)
        trained = _fill(groups, quotas)
        # Of all tasks, thoughts included: a constant, whatever a step is made of.
        longest = max(self._longest(task) for task in self.max_tokens)
        order = self._order(quotas) if self.spec.update == "task" else ()
        drawn = sum(len(group.scores) for group in groups)
        batches = build_batches(trained, self.spec, longest, order, drawn, self._specs)
        batch = [group for minibatch in batches for group in minibatch]
        mismatch: Metrics = {}
        if temperatures := self._recomputed(len(batches) * self.spec.epochs):
            with clock("train"):
                batches, mismatch = self._recompute(batches, temperatures)
        learning_rate = learning_rate_of(self.spec, number) if rate is None else rate
        measure = self.spec.kl_every > 0 and number % self.spec.kl_every == 0
        metrics = self._update(batches, quotas, learning_rate, measure, clock) | mismatch
        metrics |= group_metrics(groups)
        # Of the first draws alone: refills go on until there is signal, and would make every task look learnable.
        metrics |= {
            f"advantage/{task}": value for task, value in learnability(first, self.spec, own=self._specs).items()
        }
        for task in quotas:
            drawn_first = [group for group in first if group.problem.task == task]
            self.streams[task].observe(learnability(drawn_first, self.spec, pool_of, self._specs))
        counts = {task: sum(group.task == task for group in batch) for task in quotas}
        metrics |= {f"groups_trained/{task}": float(count) for task, count in counts.items()}
        metrics |= {f"groups_asked/{task}": float(count) for task, count in quotas.items()}
        metrics["groups_short/all"] = float(max(quotas[task] - count for task, count in counts.items()))
        metrics["groups_trained/all"] = float(len(batch))
        metrics |= {f"seconds/{phase}": seconds for phase, seconds in clock.seconds.items()}
        sampled = sum(sample.length for group in groups for sample in group.group.samples)
        return StepResult(metrics, tuple(groups), sampled, self.spec.epochs * sum(group.drawn for group in batch))

    def state(self) -> dict[str, Any]:
        """The state outside the policy as plain JSON, for `restore`."""
        return {
            "streams": {task: stream.state() for task, stream in self.streams.items()},
            "skipped": self._skipped,
            "refill": self._refill.state(),
            **({"balance": self._balance.state()} if self.spec.balance == "gradient" else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        for task, stream_state in state["streams"].items():
            self.streams[task].restore(stream_state)
        self._skipped = state["skipped"]
        self._refill.restore(state["refill"])
        self._balance.restore(state.get("balance", {}))

    def draw(self, quotas: Mapping[TaskName, int]) -> list[ScoredGroup]:
        """Sample and score the next problems, and train nothing. Raises UserError where too many scores are errors."""
        groups = self._sample(quotas, _Clock())
        stop_on_errors(groups, self.spec.max_error_rate)
        return groups

    def _sample_quotas(
        self, quotas: Mapping[TaskName, int], clock: "_Clock"
    ) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """Sample each task's quota, then replace groups without signal by fresh problems, a few times. Returns all
        groups, and those of the quota."""
        self._refill.begin_step()
        self._beside.clear()
        first = self._sample(quotas, clock, self._likely_refills(quotas))
        groups = list(first)
        self._refill.observe(groups)
        for _ in range(self.spec.refill_rounds):
            usable = Counter(group.problem.task for group in groups if group.has_signal)
            missing = {task: quota - usable[task] for task, quota in quotas.items() if quota > usable[task]}
            if not missing:
                break
            fresh = self._sample(self._refill.draws(missing), clock)
            self._refill.observe(fresh)
            groups += fresh
        return groups, first

    def _likely_refills(self, quotas: Mapping[TaskName, int]) -> dict[TaskName, int]:
        """Problems that are sampled beside a step's own, since they are likely to be asked for right after.

        Few sequences decode no faster than many, so a pass of their own would take as long as the first one. Another
        engine may ask for money, or have others to serve, and an environment is spoken to once."""
        if not self.spec.refill_rounds or samples_elsewhere(self.policy):
            return {}
        long = [task for task in quotas if task not in self._talks.turns and self.max_tokens[task] >= BESIDE_TOKENS]
        likely = self._refill.likely({task: quotas[task] for task in long})
        left = BESIDE - sum(count * self._specs[task].group_size for task, count in quotas.items())
        for task, count in likely.items():
            size = self._specs[task].group_size
            likely[task] = min(count, max(0, left) // size)
            left -= likely[task] * size
        return likely

    def _sample(
        self, quotas: Mapping[TaskName, int], clock: "_Clock", beside: Mapping[TaskName, int] | None = None
    ) -> list[ScoredGroup]:
        """Sample and score the next problems, and sample those after them, `beside`, for later."""
        wanted = [item for task, count in quotas.items() for item in self.streams[task].take(count)]
        later = [item for task, count in (beside or {}).items() for item in self.streams[task].ahead(count)]
        ready = {place: group for place, (_, seed) in enumerate(wanted) if (group := self._beside.pop(seed, None))}
        drawn = [item for place, item in enumerate(wanted) if place not in ready] + later
        numbers: list[int | None] = [place for place in range(len(wanted)) if place not in ready]
        numbers += [None] * len(later)
        requests = [
            request_for(
                self.policy,
                problem,
                seed,
                self.max_tokens[problem.task],
                self.stops.get(problem.task, ()),
                self.thinking.get(problem.task, "auto"),
            )
            for problem, seed in drawn
        ]
        specs = [self._specs[problem.task] for problem, _ in drawn]
        by_params: dict[SamplingParams, list[int]] = {}
        for place, spec in enumerate(specs):
            by_params.setdefault(SamplingParams(spec.group_size, spec.temperature), []).append(place)
        with Scoring(self.rewards, self.policy) as scoring:
            for place, group in ready.items():
                scoring.submit(place, wanted[place][0], group)
            for params, places in by_params.items():
                asked = [requests[place] for place in places]
                problems = [drawn[place][0] for place in places]
                own = [numbers[place] for place in places]
                with clock("sample"):
                    groups = sample_scored(self.policy, problems, asked, params, scoring, self._talks, own)
                for place, number, group in zip(places, own, groups, strict=True):
                    if number is None:
                        self._beside[drawn[place][1]] = group
            with clock("score"):  # what is left of it
                return [self._shaped(group) for group in scoring.results(self.spec.score_deadline_s)]

    def _longest(self, task: TaskName) -> int:
        """The most tokens that answers to a problem of the task have together, thoughts included."""
        turns = self._talks.turns[task].most if task in self._talks.turns else 1
        return turns * (self.max_tokens[task] + _budget(self.thinking.get(task, "auto")))

    def _shaped(self, group: ScoredGroup) -> ScoredGroup:
        task = group.problem.task
        budget = _budget(self.thinking.get(task, "auto"))
        return shaped(group, self._specs[task], self.max_tokens[task], of_answer=budget > 0)

    def _order(self, quotas: Mapping[TaskName, int]) -> list[TaskName]:
        """A random order of this step's tasks. It is the same whenever the step is repeated."""
        taken = [f"{task} {stream.seed} {stream.taken}" for task, stream in sorted(self.streams.items())]
        order = np.random.default_rng(stable_seed("serial", *taken)).permutation(len(quotas))
        return [list(quotas)[int(place)] for place in order]

    def _recomputed(self, updates: int) -> dict[TaskName, float]:
        """The tasks whose log-probs the trainer computes again before a step's updates, and their temperatures."""
        # A step's only update needs no second pass for importance weights: the log-probs before it are those of it.
        every = self.spec.old_logprobs == "trainer"
        weighed_ = {task for task, spec in self._specs.items() if spec.importance_cap and updates > 1}
        return {task: spec.temperature for task, spec in self._specs.items() if every or task in weighed_}

    def _recompute(
        self, batches: list[list[TrainGroup]], temperatures: Mapping[TaskName, float]
    ) -> tuple[list[list[TrainGroup]], Metrics]:
        """The batches with log-probs as the trainer has them, and how far the sampler's were from these."""
        recomputed = [trainer_logprobs(self.policy, batch, temperatures) for batch in batches]
        sums = mismatch_sums([group for batch in recomputed for group in batch])
        stop_on_mismatch(sums, self.spec.max_mismatch)
        names = {"all", *sums} if len(temperatures) == len(self._specs) else {*sums}
        metrics = token_metrics(sums)
        return recomputed, {key: metrics[key] for name in names if (key := f"mismatch_abs/{name}") in metrics}

    def _update(
        self,
        batches: list[list[TrainGroup]],
        quotas: Mapping[TaskName, int],
        learning_rate: float,
        measure: bool,
        clock: "_Clock",
    ) -> Metrics:
        spec = self.spec
        metrics: Metrics = {"lr": learning_rate}
        stats: dict[TaskName, TokenStats] = {}
        sketches: Sketches = {}
        losses, norms_, applied = list[float](), list[float](), list[bool]()
        # None where every group was unanimous: such a step has nothing to teach.
        for place, batch in enumerate(batches * spec.epochs):
            factors = self._balance.factors(batch, quotas)
            with clock("train"):
                report = add_gradient(
                    self.policy, weighed(batch, factors), self._specs, measure_kl=measure and place < len(batches)
                )
                if not applied:
                    stop_on_mismatch(report.stats, spec.max_mismatch)
                optim = self.policy.optim_step(OptimParams(learning_rate, spec.weight_decay, spec.max_grad_norm))
            self._balance.observe(norms(report.sketches), factors)
            if spec.balance != "none":
                metrics |= {f"balance/{task}": factor for task, factor in factors.items()}
            for task, task_stats in report.stats.items():
                stats[task] = stats.get(task, TokenStats()) + task_stats
            for task, sketch in report.sketches.items():
                sketches[task] = sketches[task] + sketch if task in sketches else sketch
            self._stop_on_divergence(batch, report.loss, optim, learning_rate)
            losses.append(report.loss)
            norms_.append(optim.grad_norm)
            applied.append(optim.applied)
        if batches:
            metrics |= {"loss": fmean(losses), "grad_norm": fmean(norms_), "update_applied": float(all(applied))}
        metrics |= {f"gradient/{task}": value for task, value in norms(sketches).items()}
        metrics |= {f"alignment/{task}": value for task, value in alignments(sketches).items()}
        return metrics | token_metrics(stats)

    def _stop_on_divergence(self, batch: list[TrainGroup], loss: float, optim: OptimReport, rate: float) -> None:
        """Raises Diverged after a few updates in a row that had to be skipped: such weights don't come back."""
        if optim.applied and isfinite(loss):
            self._skipped = 0
            return
        self._skipped += 1
        _log.warning("an update was skipped: loss %g, norm of its gradient %g", loss, optim.grad_norm)
        if self._skipped >= MOST_SKIPPED:
            raise Diverged(
                f"loss or gradient were not finite in {self._skipped} updates in a row; a lower rl.lr helps",
                {
                    "loss": str(loss),
                    "grad_norm": str(optim.grad_norm),
                    "lr": rate,
                    "groups": [_evidence(group) for group in batch],
                },
            )


def _evidence(group: TrainGroup) -> dict[str, Any]:
    samples = zip(group.samples, group.advantages, group.weights, strict=True)
    return {
        "task": group.task,
        "prompt": list(group.prompt),
        "samples": [
            {
                "text": sample.text,
                "stop": sample.stop,
                "tokens": list(sample.tokens),
                "logprobs": list(sample.logprobs),
                "advantage": advantage,
                "weight": weight,
            }
            for sample, advantage, weight in samples
        ],
    }


def _budget(thinking: Thinking) -> int:
    return thinking if isinstance(thinking, int) else 0


def _fill(groups: list[ScoredGroup], quotas: Mapping[TaskName, int]) -> list[ScoredGroup]:
    """The first groups with signal of each task, up to its quota, so that the trained mix is the asked one."""
    return [
        group
        for task, quota in quotas.items()
        for group in [g for g in groups if g.problem.task == task and g.has_signal][:quota]
    ]


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase = ""
        self._begin = 0.0

    def __call__(self, phase: str) -> "_Clock":
        self._phase = phase
        return self

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + time.perf_counter() - self._begin
