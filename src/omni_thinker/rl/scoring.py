"""Scoring groups, each by its own task's reward, while others are still being sampled."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Future
from math import isfinite
from types import TracebackType
from typing import Any, TypeVar

from omni_thinker.errors import UserError
from omni_thinker.portal import open_portal
from omni_thinker.protocol import TakesCores
from omni_thinker.rewards.base import Reward, Weighed
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.types import Group, Problem, Sample, Score, TaskName

T = TypeVar("T")

_PATIENCE_S = 5.0
"""Wait for a reward that can't be cancelled, after the others have ended."""


class Scoring:
    """Takes groups as they are finished and scores them in a thread of its own; a context manager.

    A reward that computes with the policy's cores or device (`local`) waits for `results`. One slow call delays its
    own group alone, as long as it awaits: a reward that blocks its thread blocks all."""

    def __init__(self, rewards: Mapping[TaskName, Reward], policy: object = None) -> None:
        """policy: who samples meanwhile. If it takes all cores, rewards that run programs (`uses_cores`) wait, too: a
        decoding step on two cores, one of which is busy, takes three times as long."""
        self._rewards = rewards
        taken = isinstance(policy, TakesCores) and policy.takes_cores
        self._waiting = ("local", "uses_cores") if taken else ("local",)
        self._taken: list[tuple[Problem, Group]] = []
        self._futures: dict[int, Future[list[Score]]] = {}
        self._places: dict[int, int] = {}

    def __enter__(self) -> "Scoring":
        portal, self._end = open_portal("omni-scoring")
        self._loop = portal.call(asyncio.get_running_loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel what isn't done. A reward that blocks the thread is left behind, and ends with the process."""
        end = threading.Thread(target=self._end, daemon=True)
        end.start()
        end.join(_PATIENCE_S)

    def run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Let `work` be done beside the scores, in the same event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def submit(self, place: int, problem: Problem, group: Group) -> None:
        """Take a group; `place` is where its scores stand in `results`. Raises ValueError for a place that is taken."""
        if place in self._places:
            raise ValueError(f"place {place} is taken")
        self._places[place] = len(self._taken)
        self._taken.append((problem, group))
        if not any(getattr(self._rewards[problem.task], name, False) for name in self._waiting):
            self._start(place)

    def results(self, deadline_s: float | None = None) -> list[ScoredGroup]:
        """All groups in the order of their places. Scores that take longer than `deadline_s` from now are errors.

        Raises what a reward raises (none may, for what a model wrote)."""
        left = [place for place in self._places if place not in self._futures]
        together = asyncio.Event()
        for place in left:
            self._start(place, together)
        self._loop.call_soon_threadsafe(together.set)  # in one turn of the loop: a local judge answers all at once
        until = None if deadline_s is None else time.monotonic() + deadline_s
        return [self._result(place, until, deadline_s) for place in sorted(self._places)]

    def _start(self, place: int, after: asyncio.Event | None = None) -> None:
        problem, group = self._taken[self._places[place]]
        work = self._score(self._rewards[problem.task], group, problem, after)
        self._futures[place] = asyncio.run_coroutine_threadsafe(work, self._loop)

    @staticmethod
    async def _score(reward: Reward, group: Group, problem: Problem, after: asyncio.Event | None = None) -> list[Score]:
        if after is not None:
            await after.wait()
        try:
            scores = list(await reward.score(group, problem))
        except (SystemExit, KeyboardInterrupt) as exc:  # these would end the loop that all others wait for
            raise RuntimeError(f"a reward raised {type(exc).__name__}") from exc
        if len(scores) != len(group.samples):
            raise ValueError(f"a reward gave {len(scores)} scores for {len(group.samples)} samples of {problem.id!r}")
        return [_failed(sample) or score for sample, score in zip(group.samples, scores, strict=True)]

    def _result(self, place: int, until: float | None, deadline_s: float | None) -> ScoredGroup:
        problem, group = self._taken[self._places[place]]
        try:
            left = None if until is None else max(0.0, until - time.monotonic())
            scores = self._futures[place].result(left)
        except TimeoutError:
            if not self._futures[place].cancel():  # done in this very moment, or raised a TimeoutError of its own
                scores = self._futures[place].result()
            else:
                late = Score.error(f"not scored within {deadline_s:g} s of the last sample")
                scores = [late] * len(group.samples)
        reward: object = self._rewards[problem.task]
        return ScoredGroup(problem, group, tuple(scores), weights=reward.weights if isinstance(reward, Weighed) else {})


def _failed(sample: Sample) -> Score | None:
    """An error where a sample's conversation could not go on as it should have."""
    failure = None if sample.dialogue is None else sample.dialogue.failure
    return None if failure is None else Score.error(failure)


def stop_on_errors(groups: Iterable[ScoredGroup], most: float) -> None:
    """Raises UserError where more than `most` of a task's scores are errors: neither training nor a mean may be made
    of the rest."""
    scores: dict[TaskName, list[Score]] = {}
    for group in groups:
        scores.setdefault(group.problem.task, []).extend(group.scores)
    for task, task_scores in scores.items():
        errors = [score for score in task_scores if score.status == "error"]
        if len(errors) > most * len(task_scores):
            raise UserError(
                f"{len(errors)} of {len(task_scores)} scores are errors (rl.max_error_rate = {most:g}); "
                f"the first: {errors[0].reason}",
                key=f"tasks.{task}.reward",
            )


def stop_on_nonsense(groups: Iterable[Group]) -> None:
    """Raises UserError where what was sampled has log-probs that aren't finite: such weights draw anything, score
    alike, and would go on to the end without an error."""
    if not all(isfinite(sum(sample.logprobs)) for group in groups for sample in group.samples):
        raise UserError(
            "log-probs of the model's own samples aren't finite: it has diverged; a lower lr helps", key="rl.lr"
        )
