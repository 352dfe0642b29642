"""Sampling in turns: an environment speaks to answers, and the policy answers again.

Each turn is a round of requests whose prompt is all that was said so far, token by token as it was sampled. What the
environment wrote stands in the sample as tokens that the model didn't draw: no loss, ratio or mean sees them. A later
answer has random numbers of its own sample and turn, so it depends on nothing else. So the policy needs nothing but
`sample` and words for the marks between turns (`Converses`)."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.protocol import Converses, Policy
from omni_thinker.rl.scoring import Scoring, stop_on_nonsense
from omni_thinker.rl.stream import stable_seed
from omni_thinker.tasks.environments.base import Turns
from omni_thinker.types import (
    Dialogue,
    Exchange,
    Group,
    Problem,
    Sample,
    SampleRequest,
    SamplingParams,
    TaskName,
    Thinking,
    ThoughtRule,
)


@dataclass(frozen=True, slots=True)
class Talks:
    """How tasks talk: `turns` of those that do, and what becomes of thoughts. `deadline_s`: for the replies of a round,
    counted from the end of its sampling."""

    turns: Mapping[TaskName, Turns]
    thinking: Mapping[TaskName, Thinking]
    deadline_s: float | None = None


def sample_scored(
    policy: Policy,
    problems: Sequence[Problem],
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    scoring: Scoring,
    talks: Talks,
    places: Sequence[int | None] | None = None,
) -> list[Group]:
    """Draw one group per request, in order, with all turns of its task, and hand each to `scoring` by its number in
    `places`: as soon as it is finished, or where its task has turns, when all have ended. None: it isn't to be scored.

    Raises UserError for log-probs that aren't finite, and where a task has turns and the policy can't take any."""
    numbers: Sequence[int | None] = range(len(requests)) if places is None else places
    conversations: dict[int, list[_Conversation]] = {}

    def first(place: int, group: Group) -> None:
        problem, number = problems[place], numbers[place]
        if number is None:
            return
        if (turns := talks.turns.get(problem.task)) is None:
            scoring.submit(number, problem, group)
            return
        conversations[place] = [
            _Conversation(turns, problem, requests[place], of_group, sample)
            for of_group, sample in enumerate(group.samples)
        ]
        for conversation in conversations[place]:
            conversation.listen(scoring)

    groups = policy.sample(requests, params, first)
    stop_on_nonsense(groups)
    if not conversations:
        return groups
    if not isinstance(policy, Converses):
        task = problems[min(conversations)].task
        raise UserError("this policy can't be spoken to again: it lacks follow", key=f"tasks.{task}.turns")
    while going := _going(policy, conversations, talks):
        again = replace(params, group_size=1)

        def answered(place: int, group: Group, going: Sequence[_Conversation] = going) -> None:
            going[place].answers.append(group.samples[0])
            going[place].listen(scoring)

        stop_on_nonsense(policy.sample([conversation.request for conversation in going], again, answered))
    for place, own in sorted(conversations.items()):
        groups[place] = Group(groups[place].prompt, tuple(conversation.sample() for conversation in own))
        if (number := numbers[place]) is not None:
            scoring.submit(number, problems[place], groups[place])
    return groups


class _Conversation:
    """One sample and what was said to it. `request`: for its next answer."""

    def __init__(self, turns: Turns, problem: Problem, request: SampleRequest, number: int, answer: Sample) -> None:
        self.request = self._first = request
        self.answers = [answer]
        self._turns, self._problem, self._number = turns, problem, number
        self._replies = list[tuple[str, tuple[int, ...]]]()
        self._memory: dict[str, Any] = {}
        self._failure: str | None = None
        self._pending: Future[Any] | None = None

    @property
    def task(self) -> TaskName:
        return self._problem.task

    def listen(self, scoring: Scoring) -> None:
        """Ask the environment what it says to the last answer, unless that is the last of all. An answer that was cut
        off at the token limit has no end to speak after."""
        last = self.answers[-1]
        self._pending = None
        if len(self.answers) < self._turns.most and last.stop == "stop":
            self._pending = scoring.run(self._asked([answer.text for answer in self.answers]))

    async def _asked(self, answers: Sequence[str]) -> str | None:
        try:
            return await self._turns.environment.reply(self._problem, answers, self._memory)
        except (SystemExit, KeyboardInterrupt) as exc:  # these would end the loop that all others wait for
            raise RuntimeError(f"an environment raised {type(exc).__name__}") from exc

    def goes_on(self, policy: Converses, thinking: Thinking, until: float | None) -> bool:
        """Whether there is another answer to draw: by `request` then."""
        pending, self._pending = self._pending, None
        if pending is None or (words := self._heard(pending, until)) is None:
            return False
        words, tokens, thoughts = self._bounded(policy, words, thinking)
        self._replies.append((words, tokens))
        turn = len(self.answers)
        self.request = replace(
            self._first,
            prompt=(*self.request.prompt, *self.answers[-1].tokens, *tokens),
            seed=stable_seed(self._first.seed, "turn", turn, self._number),
            thoughts=thoughts,
        )
        return True

    def _heard(self, pending: Future[Any], until: float | None) -> str | None:
        try:
            words = pending.result(None if until is None else max(0.0, until - time.monotonic()))
        except TimeoutError:
            pending.cancel()
            self._failure = "the environment gave no reply in time"
            return None
        except Exception as exc:  # its bug is an error of the task, never a 0 for the model
            self._failure = f"the environment failed: {type(exc).__name__}: {exc}"[:300]
            return None
        if words is not None and not isinstance(words, str):
            self._failure = f"the environment replied with {type(words).__name__}, not text"
            return None
        return words

    def _bounded(
        self, policy: Converses, words: str, thinking: Thinking
    ) -> tuple[str, tuple[int, ...], ThoughtRule | None]:
        """A message, cut at its end where it is too long, and its tokens."""
        answer, most = self.answers[-1], self._turns.message_tokens
        tokens, thoughts = policy.follow(answer, words, thinking)
        while len(tokens) > most and words:
            words = words[: min(len(words) - 1, len(words) * most // len(tokens))]
            tokens, thoughts = policy.follow(answer, words, thinking)
        return words, tokens, thoughts

    def sample(self) -> Sample:
        """All turns as one sample."""
        tokens, logprobs, written = list[int](), list[float](), list[int]()
        exchanges = []
        for turn, answer in enumerate(self.answers):
            words, reply = self._replies[turn] if turn < len(self._replies) else (None, ())
            written += [len(tokens) + place for place in answer.forced]
            tokens += answer.tokens
            written += range(len(tokens), len(tokens) + len(reply))
            tokens += reply
            logprobs += (*answer.logprobs, *(0.0 for _ in reply))
            exchanges.append(Exchange(answer, words, len(reply)))
        return replace(
            self.answers[-1],
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            written=tuple(written),
            dialogue=Dialogue(tuple(exchanges), self._memory, self._failure),
        )


def _going(
    policy: Converses, conversations: Mapping[int, Sequence[_Conversation]], talks: Talks
) -> list[_Conversation]:
    """The conversations that have another answer, in the order of their problems and samples."""
    until = None if talks.deadline_s is None else time.monotonic() + talks.deadline_s
    return [
        conversation
        for _, own in sorted(conversations.items())
        for conversation in own
        if conversation.goes_on(policy, talks.thinking.get(conversation.task, "auto"), until)
    ]
