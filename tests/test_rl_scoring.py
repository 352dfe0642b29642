"""Scores are taken while others are still being sampled, and one slow call delays its own group alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest

from judge_server import JudgeServer
from omni_thinker.judging.make import make_endpoint_judge
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OnGroup
from omni_thinker.recipe import EndpointSpec, ModelSpec, RewardSpec, RlSpec
from omni_thinker.rewards import make_reward
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.scoring import Scoring
from omni_thinker.rl.stream import make_streams
from omni_thinker.types import Group, Problem, Sample, SampleRequest, SamplingParams, Score


class Slow:
    """Takes as long as the problem says, and remembers on which thread and when it began."""

    def __init__(self, local: bool = False) -> None:
        self.local = local
        self.began: dict[str, float] = {}
        self.threads: set[int] = set()

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        self.began[problem.id] = time.monotonic()
        self.threads.add(threading.get_ident())
        await asyncio.sleep(problem.data["seconds"])
        return [Score.of(0.25)] * len(group.samples)

    def check(self, problem: Problem) -> str | None:
        return None

    def wrong_answer(self, problem: Problem) -> str:
        return ""


def group(count: int = 2) -> Group:
    return Group((1,), tuple(Sample((1,), (0.0,), "x", "stop") for _ in range(count)))


def problems(*seconds: float) -> list[Problem]:
    return [Problem(str(n), "t", "p", None, {"seconds": s}) for n, s in enumerate(seconds)]


def test_scoring_starts_on_submit_and_returns_scores_in_order() -> None:
    reward = Slow()
    with Scoring({"t": reward}) as scoring:
        asked = problems(0.2, 0.0, 0.1)
        for place in (2, 0, 1):
            scoring.submit(place, asked[place], group())
        time.sleep(0.1)
        assert len(reward.began) == 3, "before results are asked for"
        found = scoring.results()
    assert [own.problem.id for own in found] == ["0", "1", "2"]
    assert reward.threads != {threading.get_ident()}


def test_local_reward_is_scored_only_after_sampling() -> None:
    reward = Slow(local=True)
    with Scoring({"t": reward}) as scoring:
        scoring.submit(0, problems(0.0)[0], group())
        time.sleep(0.1)
        assert not reward.began
        assert scoring.results()[0].values == [0.25, 0.25]


def test_local_rewards_of_all_groups_start_in_one_loop_turn() -> None:
    """A judge in this process can then answer all of them in one batch."""

    class Counting(Slow):
        async def score(self, group: Group, problem: Problem) -> list[Score]:
            self.began[problem.id] = 0.0
            await asyncio.sleep(0)
            return [Score.of(len(self.began) / 50)] * len(group.samples)

    with Scoring({"t": Counting(local=True)}) as scoring:
        for place, problem in enumerate(problems(*[0.0] * 50)):
            scoring.submit(place, problem, group())
        assert [own.values for own in scoring.results()] == [[1.0, 1.0]] * 50


def test_slow_reward_makes_its_own_group_an_error_at_the_deadline() -> None:
    with Scoring({"t": Slow()}) as scoring:
        for place, problem in enumerate(problems(0.0, 60.0, 0.1)):
            scoring.submit(place, problem, group())
        began = time.monotonic()
        first, late, last = scoring.results(deadline_s=0.5)
        assert time.monotonic() - began < 2
    assert first.values == last.values == [0.25, 0.25]
    assert {score.status for score in late.scores} == {"error"}
    assert late.scores[0].reason == "not scored within 0.5 s of the last sample"


def test_interrupt_cancels_scoring_and_ends_its_thread() -> None:
    began = time.monotonic()

    def interrupted() -> None:
        with Scoring({"t": Slow()}) as scoring:
            scoring.submit(0, problems(60.0)[0], group())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "omni-scoring"]


def test_submitting_twice_to_a_place_raises() -> None:
    with Scoring({"t": Slow()}) as scoring:
        scoring.submit(0, problems(0.0)[0], group())
        with pytest.raises(ValueError, match="place 0 is taken"):
            scoring.submit(0, problems(0.0)[0], group())
        assert len(scoring.results()) == 1


class Odd(Slow):
    """Exits, or gives too few scores."""

    async def score(self, group: Group, problem: Problem) -> list[Score]:
        if problem.data["seconds"] < 0:
            raise SystemExit(3)
        return [Score.of(1.0)]


@pytest.mark.parametrize(("seconds", "words"), [(-1.0, "raised SystemExit"), (0.0, "gave 1 scores for 2 samples")])
def test_reward_that_exits_or_miscounts_raises(seconds: float, words: str) -> None:
    def scored() -> None:
        with Scoring({"t": Odd()}) as scoring:
            scoring.submit(0, problems(seconds)[0], group())
            scoring.results(5)

    with pytest.raises((RuntimeError, ValueError), match=words):
        scored()


class Blocking(Slow):
    async def score(self, group: Group, problem: Problem) -> list[Score]:
        time.sleep(problem.data["seconds"])  # noqa: ASYNC251 - that is what is wrong with it
        return [Score.of(1.0)] * len(group.samples)


def test_blocking_reward_is_an_error_at_the_deadline() -> None:
    began = time.monotonic()
    with Scoring({"t": Blocking()}) as scoring:
        scoring.submit(0, problems(15.0)[0], group())
        assert scoring.results(deadline_s=0.3)[0].scores[0].status == "error"
    assert time.monotonic() - began < 14


@pytest.fixture(scope="module")
def policy() -> TorchPolicy:
    return TorchPolicy(ModelSpec(name="tiny", dtype="float32"))


def test_sample_reports_each_group_when_it_ends(policy: TorchPolicy) -> None:
    requests = [SampleRequest(policy.encode_prompt(f"say {n}"), 3 if n % 2 else 60, n) for n in range(6)]
    told: list[tuple[int, Group]] = []
    groups = policy.sample(requests, SamplingParams(group_size=3), lambda place, own: told.append((place, own)))
    assert sorted(place for place, _ in told) == list(range(6))
    assert all(own is groups[place] for place, own in told)
    short = [place for place, _ in told[:3]]
    assert short == [1, 3, 5] or max(len(s.tokens) for s in groups[short[0]].samples) <= 3


def test_judge_is_asked_before_the_last_sample_is_drawn(policy: TorchPolicy) -> None:
    """A real server, a real policy: the first question arrives before the last sample is drawn."""
    server = JudgeServer(delay=0.05)
    judge = make_endpoint_judge(EndpointSpec(base_url=server.url, model="long", cache="none"))
    own = [Problem(str(n), "t", f"write {n}", None, {"reference": "ten words"}) for n in range(8)]
    reward = make_reward(RewardSpec(gate=(), sum={"preference": 1.0}), judge=judge)
    spec = RlSpec(group_size=4, problems_per_step=8, refill_rounds=0, kl_every=0)
    ends: list[float] = []

    class Timed(TorchPolicy):
        def sample(
            self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
        ) -> list[Group]:
            requests = [
                SampleRequest(request.prompt, 4 if n % 2 else 400, request.seed) for n, request in enumerate(requests)
            ]
            groups = super().sample(requests, params, on_group)
            ends.append(time.monotonic())
            return groups

    timed = Timed(ModelSpec(name="tiny", dtype="float32"))
    try:
        result = Learner(timed, spec, make_streams({"t": own}, 0), {"t": reward}, {"t": 400}).step({"t": 8}, 0)
    finally:
        judge.close()
        server.close()
    assert server.times[0] < ends[0]
    assert set(result.metrics) >= {"seconds/sample", "seconds/score"}
    assert {score.status for found in result.groups for score in found.scores} == {"value"}
