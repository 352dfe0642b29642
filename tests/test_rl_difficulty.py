"""Difficulty pools inside a task: the rule by hand, states that survive, and where pools come from."""

from __future__ import annotations

import json
from collections import Counter
from math import exp
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, RlSpec, TaskSpec, parse_recipe
from omni_thinker.rl.difficulty import RATE, TEMPERATURE, PooledStream, pool_of, training_streams
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.stream import ProblemStream
from omni_thinker.tasks.registry import check_splits, make_task
from omni_thinker.types import POOL, Problem
from scripted import Scripted, in_turns

PROBLEMS = [Problem(f"{level}-{n}", "t", f"{level} {n}", None, {POOL: level}) for n in range(30) for level in "abc"]


def taken(stream: ProblemStream, count: int) -> Counter[str]:
    return Counter(pool_of(problem) for problem, _ in stream.take(count))


def test_pool_shares_equal_the_rule_by_hand() -> None:
    stream = PooledStream("t", PROBLEMS, 0)
    assert taken(stream, 9) == {"a": 3, "b": 3, "c": 3}
    stream.observe({"a": 0.8, "b": 0.2})
    stream.observe({"a": 0.4})
    values = {"a": RATE * 0.4 + (1 - RATE) * RATE * 0.8, "b": RATE * 0.2, "c": 0.0}
    assert stream.values == pytest.approx(values)
    weights = {name: exp(value / TEMPERATURE) for name, value in values.items()}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    assert stream.shares() == pytest.approx(shares)
    counts = taken(stream, 60)
    assert all(abs(counts[name] - 60 * share) < 2 for name, share in shares.items())


def test_order_within_a_pool_does_not_depend_on_observations() -> None:
    one, other = PooledStream("t", PROBLEMS, 0), PooledStream("t", PROBLEMS, 0)
    other.observe({"a": 1.0})
    order = {
        stream: [problem.id for problem, _ in stream.take(80) if pool_of(problem) == "a"] for stream in (one, other)
    }
    shorter = min(map(len, order.values()))
    assert order[one][:shorter] == order[other][:shorter]
    assert len(set(order[one][:30])) == min(30, len(order[one])), "none again before all have come"


def test_pooled_stream_restored_mid_step_draws_the_same_problems() -> None:
    stream, twin = PooledStream("t", PROBLEMS, 0), PooledStream("t", PROBLEMS, 0)
    stream.take(5)
    stream.observe({"b": 0.9})
    stream.take(3)
    twin.restore(json.loads(json.dumps(stream.state())))
    for _ in range(4):
        assert twin.take(7) == stream.take(7)
        for own in (stream, twin):
            own.observe({"a": 0.3, "c": 0.6})
    assert twin.state() == stream.state()


def only_b(problem: Problem, n: int) -> float:
    """Samples are told apart in pool b alone."""
    return in_turns(problem, n) if pool_of(problem) == "b" else 0.0


def test_learner_draws_most_problems_from_the_only_pool_with_signal() -> None:
    policy = TorchPolicy(ModelSpec(name="tiny", dtype="float32"))
    streams = training_streams({"t": PROBLEMS}, 0)
    spec = RlSpec(group_size=2, kl_every=0, lr=1e-6, refill_rounds=0)
    learner = Learner(policy, spec, streams, {"t": Scripted(only_b)}, {"t": 2})
    seen = [
        Counter(pool_of(group.problem) for group in learner.step({"t": 6}, step).groups)["b"] / 6 for step in range(8)
    ]
    assert seen[0] == pytest.approx(1 / 3)
    assert min(seen[4:]) > 0.6
    learner.restore(json.loads(json.dumps(learner.state())))


def test_tasks_with_fewer_than_two_pools_use_a_plain_stream() -> None:
    plain = [Problem(str(n), "t", str(n)) for n in range(9)]
    found = training_streams({"t": plain, "u": PROBLEMS[::3]}, 3)
    assert type(found["t"]) is type(found["u"]) is ProblemStream, "one pool is none"
    assert found["t"].take(12) == ProblemStream("t", plain, 3).take(12)


@pytest.mark.parametrize("kind", ["math", "coding", "qa", "writing"])
def test_builtin_task_with_pools_has_equal_counts_per_difficulty(kind: str) -> None:
    task = make_task("t", TaskSpec(source=f"builtin:{kind}", pools=(0, 2, 4), train=60, validation=15, test=16))
    check_splits(task)
    counts = Counter(pool_of(problem) for problem in task.problems("train"))
    assert counts == {"0": 20, "2": 20, "4": 20}
    assert len({problem.prompt for problem in task.problems("train")}) == 60
    assert Counter(pool_of(problem) for problem in task.problems("test")).keys() == {"0", "2", "4"}
    alone = make_task("t", TaskSpec(source=f"builtin:{kind}", difficulty=0, train=20, validation=5, test=5))
    easy = {problem.prompt for problem in task.problems("train") if pool_of(problem) == "0"}
    assert {problem.prompt for problem in alone.problems("train")} == easy
    assert len(Counter(pool_of(problem) for problem in task.problems("train")[:15])) == 3, "a part holds every pool"
    assert not any(POOL in problem.data for problem in alone.problems("train"))


def rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [{"prompt": f"p{n}", "answer": str(n), "level": n % 3} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return path


def test_pool_of_a_row_is_read_from_its_field(tmp_path: Path) -> None:
    spec = TaskSpec(source="jsonl", files=(str(rows(tmp_path)),), fields={POOL: "level"})
    assert {pool_of(problem) for problem in make_task("t", spec).problems("train")} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"source": "builtin:math", "pools": [1, 2], "difficulty": 1}, "t.pools: already sets the difficulty; remove"),
        ({"source": "builtin:math", "pools": [1, 1.0]}, "t.pools: names a difficulty twice"),
        ({"source": "builtin:math", "pools": [11]}, "less than or equal to 10"),
        ({"source": "jsonl", "pools": [1, 2]}, "t.pools: applies to generated tasks only; rows use fields"),
    ],
)
def test_inconsistent_pool_settings_are_refused(spec: dict[str, Any], words: str, tmp_path: Path) -> None:
    files = {"files": [str(rows(tmp_path))]} if spec["source"] == "jsonl" else {}

    def made() -> None:
        make_task("t", parse_recipe({"tasks": {"t": {**spec, **files}}}, "r.toml").tasks["t"])

    with pytest.raises(UserError) as refused:
        made()
    assert words in str(refused.value)
