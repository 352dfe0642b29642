"""The trained mix meets the quotas, however many groups are unanimous."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl import loop
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.resample import STEP_DISCOUNT, Resampler
from omni_thinker.rl.stream import make_streams, stable_seed
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.sec import SecConfig
from omni_thinker.types import Group, Problem, Sample, Score
from scripted import Scripted, in_turns, setting

SILENT = {"dull": 0.7, "lively": 0.1}


def told(problem: Problem, n: int) -> float:
    """Says beforehand which problems tell samples apart: a share of each task, spread at random."""
    silent = np.random.default_rng(stable_seed(problem.id)).random() < SILENT[problem.task]
    return 0.0 if silent else in_turns(problem, n)


@pytest.fixture(scope="module")
def policy() -> TorchPolicy:
    return TorchPolicy(ModelSpec(name="tiny", dtype="float32"))


def learner(policy: TorchPolicy, rounds: int) -> Learner:
    pools = {task: [Problem(f"{task}-{n}", task, f"{n}") for n in range(400)] for task in SILENT}
    spec = RlSpec(group_size=2, refill_rounds=rounds, refill_most=8, kl_every=0, lr=1e-6)
    return Learner(
        policy, spec, make_streams(pools, 0), dict.fromkeys(SILENT, Scripted(told)), dict.fromkeys(SILENT, 2)
    )


def shortfalls(policy: TorchPolicy, scheduler: Scheduler, rounds: int, steps: int) -> list[int]:
    """The largest lack of groups of a task, by step."""
    own, found = learner(policy, rounds), []
    for step in range(steps):
        asked = scheduler.quotas(step)
        result = own.step(asked, step)
        scheduler.observe(step, result.metrics)
        trained = {task: result.metrics[f"groups_trained/{task}"] for task in asked}
        assert all(result.metrics[f"groups_asked/{task}"] == count for task, count in asked.items())
        assert all(trained[task] <= count for task, count in asked.items()), "never more than asked"
        found.append(int(max(asked[task] - trained[task] for task in asked)))
        assert result.metrics["groups_short/all"] == found[-1]
    return found


def test_refilled_steps_meet_every_quota_within_one_problem(policy: TorchPolicy) -> None:
    for scheduler in (Mixture({"dull": 3, "lively": 1}, 8), SecConfig().build(setting(list(SILENT), 8))):
        assert max(shortfalls(policy, scheduler, rounds=8, steps=20)) <= 1
    # Without a refill most of what was asked of the dull task is not trained: the check above can fail.
    assert np.mean(shortfalls(policy, Mixture({"dull": 3, "lively": 1}, 8), rounds=0, steps=10)) > 3


def group(task: str, *values: float) -> ScoredGroup:
    own = Group((1,), tuple(Sample((1,), (0.0,), "x", "stop") for _ in values))
    return ScoredGroup(Problem("p", task, "p"), own, tuple(Score.of(value) for value in values))


def groups(task: str, silent: int, telling: int) -> Sequence[ScoredGroup]:
    return [group(task, 0.0, 0.0)] * silent + [group(task, 0.0, 1.0)] * telling


def test_resampler_draws_equal_values_by_hand() -> None:
    refill = Resampler(8)
    assert refill.draws({"a": 3}) == {"a": 3}, "nothing is known yet"
    refill.observe(groups("a", 7, 3))
    assert refill.unanimous_rate("a") == 0.7
    assert refill.draws({"a": 3, "b": 2}) == {"a": 10, "b": 2}
    refill.begin_step()
    refill.observe(groups("a", 0, 2))
    rate = 7 * STEP_DISCOUNT / (10 * STEP_DISCOUNT + 2)
    assert refill.unanimous_rate("a") == pytest.approx(rate)
    assert refill.draws({"a": 3}) == {"a": 7}, f"3 / (1 - {rate}), rounded up"
    for _ in range(50):
        refill.begin_step()
        refill.observe(groups("a", 8, 0))
    assert refill.draws({"a": 3}) == {"a": 3 * 8}, "no task may eat the budget"
    cheap = Resampler(1)
    cheap.observe(groups("a", 7, 3))
    assert cheap.draws({"a": 3}) == {"a": 3}, "each is replaced by one"


def test_restored_resampler_draws_the_same() -> None:
    refill, twin = Resampler(8), Resampler(8)
    refill.observe(groups("a", 7, 3))
    twin.restore(json.loads(json.dumps(refill.state())))
    missing: Mapping[str, int] = {"a": 4}
    for own in (refill, twin):
        own.begin_step()
        own.observe(groups("a", 1, 1))
    assert twin.draws(missing) == refill.draws(missing)
    assert twin.state() == refill.state()


@pytest.mark.parametrize("quota", [1, 2, 8])
def test_learnability_is_unbiased_by_refill(quota: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 3 % of what a task's problems have to teach on average, whatever its quota and however it is refilled."""
    rng = np.random.default_rng(quota)
    own = learner(TorchPolicy(ModelSpec(name="tiny", dtype="float32")), rounds=8)

    def sample(quotas: Mapping[str, int], clock: object, beside: object = None) -> list[ScoredGroup]:
        """Groups as they are drawn from a task of which 70 % says nothing, without the work of a model."""
        return [group(t, 0.0, float(rng.random() < 0.3)) for t, count in quotas.items() for _ in range(count)]

    monkeypatch.setattr(own, "_sample", sample)
    monkeypatch.setattr(own, "_update", lambda *_: {})
    steps = 24_000 // quota
    seen = [own.step({"dull": quota}, step).metrics["advantage/dull"] for step in range(steps)]
    # Two samples, one right: each is half a point from the mean, in units of a deviation of 0.7071.
    assert np.mean(seen) == pytest.approx(0.3 * 0.5 / 0.5**0.5, rel=0.03)


def beside(room: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[int], set[str]]:
    """What steps sampled and trained, how many passes each took, and the problems that were scored."""
    monkeypatch.setattr(loop, "BESIDE", room)
    passes, scored = [0], set[str]()

    def score(problem: Problem, n: int) -> float:
        scored.add(problem.id)
        return told(problem, n)

    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    sample = policy.sample

    def counted(*arguments: Any) -> list[Group]:
        passes[-1] += 1
        return sample(*arguments)

    monkeypatch.setattr(policy, "sample", counted)
    pools = {task: [Problem(f"{task}-{n}", task, f"{n}") for n in range(60)] for task in SILENT}
    spec = RlSpec(group_size=2, refill_rounds=2, refill_most=2, kl_every=0, lr=1e-3)
    rewards = dict.fromkeys(SILENT, Scripted(score))
    own = Learner(policy, spec, make_streams(pools, 0), rewards, dict.fromkeys(SILENT, loop.BESIDE_TOKENS))
    found = []
    for step in range(steps):
        result = own.step({"dull": 4, "lively": 2}, step)
        samples = [(g.problem.id, g.values, [s.tokens for s in g.group.samples]) for g in result.groups]
        found.append((samples, result.tokens_sampled, result.tokens_trained, own.state()))
        passes.append(0)
    return found, passes[:-1], scored


def test_groups_sampled_beside_change_nothing_but_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 8
    apart, passes, scored = beside(0, steps, monkeypatch)
    together, fewer, scored_together = beside(64, steps, monkeypatch)
    assert together == apart
    assert scored_together == scored, "what nobody asks for is never scored"
    assert fewer[0] == passes[0] == 3, "nothing is known before the first step"
    assert sum(fewer[1:]) < 0.6 * sum(passes[1:])


def test_likely_refills_cover_the_mean_and_more_up_to_the_quota() -> None:
    refill = Resampler(1)
    assert refill.likely({"a": 8}) == {}, "nothing is known yet"
    refill.observe(groups("a", 5, 15))
    # A quarter of 16 is 4, with a deviation of 1.732; of 2 it is 0.5 with 0.612.
    assert refill.likely({"a": 16}) == {"a": 7}
    assert refill.likely({"a": 2, "b": 4}) == {"a": 2}


@pytest.mark.parametrize(("old", "clipped"), [("sampler", True), ("trainer", False)])
def test_gspo_in_bf16_clips_rounding_unless_the_trainer_recomputes(old: str, clipped: bool) -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="bfloat16"))
    pools = {"t": [Problem(f"t-{n}", "t", f"{n}") for n in range(100)]}
    spec = RlSpec.model_validate({"loss": "gspo", "group_size": 4, "old_logprobs": old, "kl_every": 0, "lr": 1e-6})
    own = Learner(policy, spec, make_streams(pools, 0), {"t": Scripted(in_turns)}, {"t": 12})
    metrics = own.step({"t": 8}, 0).metrics
    assert (metrics["clip_frac/all"] > 0.02) == clipped
    assert metrics["mismatch_abs/all"] > 1e-4, "what the sampler was off by is still reported"
