"""Which task next, and in which order a task's problems come: exact, and pure functions of their arguments."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.rl.stream import ProblemStream, make_streams, stable_seed
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.stages import Stages
from omni_thinker.studies.units import even_stages
from omni_thinker.types import Problem

weights = st.lists(st.floats(0.05, 10), min_size=1, max_size=6).map(lambda own: {f"t{i}": w for i, w in enumerate(own)})


def _totals(mixture: Mixture, steps: int) -> Counter[str]:
    total: Counter[str] = Counter()
    for step in range(steps):
        total.update(mixture.quotas(step))
    return total


@given(weights=weights, per_step=st.integers(1, 9), steps=st.integers(1, 30))
def test_mixture_meets_its_shares_at_every_prefix(weights: dict[str, float], per_step: int, steps: int) -> None:
    mixture = Mixture(weights, per_step)
    given_so_far: Counter[str] = Counter()
    for step in range(steps):
        quotas = mixture.quotas(step)
        assert sum(quotas.values()) == per_step
        assert all(count > 0 for count in quotas.values())
        given_so_far.update(quotas)
        for task, weight in weights.items():
            share = weight / sum(weights.values()) * per_step * (step + 1)
            assert abs(given_so_far[task] - share) < 2


@given(weights=weights, per_step=st.integers(1, 5), order=st.permutations(range(8)))
def test_mixture_quotas_depend_on_the_step_alone(weights: dict[str, float], per_step: int, order: list[int]) -> None:
    forward, jumping = Mixture(weights, per_step), Mixture(weights, per_step)
    expected = [forward.quotas(step) for step in range(8)]
    assert {step: jumping.quotas(step) for step in order} == dict(enumerate(expected))


def test_mixture_quotas_equal_values_by_hand() -> None:
    even = Mixture({"a": 1.0, "b": 1.0, "c": 1.0}, 2)
    assert [even.quotas(step) for step in range(3)] == [{"a": 1, "b": 1}, {"a": 1, "c": 1}, {"b": 1, "c": 1}]
    assert _totals(Mixture({"a": 3.0, "b": 1.0}, 1), 40) == {"a": 30, "b": 10}
    # Behind by .75/.25, .5/.5 (a tie goes to the first), .25/.75, 1/0.
    uneven = Mixture({"a": 3.0, "b": 1.0}, 1)
    assert [next(iter(uneven.quotas(step))) for step in range(4)] == ["a", "a", "b", "a"]
    rare = Mixture({"a": 9.0, "b": 1.0}, 2)
    assert _totals(rare, 5) == {"a": 9, "b": 1}, "a task due less than one problem a step gets its turn"


def test_mixture_quotas_depend_on_weights_only_in_proportion() -> None:
    one, other = Mixture({"a": 0.1, "b": 0.2}, 4), Mixture({"a": 10.0, "b": 20.0}, 4)
    assert [one.quotas(s) for s in range(20)] == [other.quotas(s) for s in range(20)]


def test_stages_equal_values_by_hand() -> None:
    stages = Stages([("a", 2), ("b", 0), ("c", 1), ("a", 1)], 5)
    assert stages.steps == 4
    assert [stages.stage(step) for step in range(4)] == ["a", "a", "c", "a"]
    assert [stages.quotas(step) for step in (0, 2)] == [{"a": 5}, {"c": 5}]
    with pytest.raises(IndexError):
        stages.stage(4)


@given(tasks=st.integers(1, 6), steps=st.integers(0, 50))
def test_even_stages_share_all_steps(tasks: int, steps: int) -> None:
    order = [f"t{i}" for i in range(tasks)]
    stages = even_stages(order, steps)
    counts = [count for _, count in stages]
    assert [task for task, _ in stages] == order
    assert sum(counts) == steps
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True), "what is left over goes to the first"


@pytest.mark.parametrize("scheduler", [Mixture({"a": 1.0, "b": 2.0}, 3), Stages([("a", 3), ("b", 6)], 3)])
def test_fixed_schedulers_ignore_observations(scheduler: Mixture | Stages) -> None:
    before = [dict(scheduler.quotas(step)) for step in range(9)]
    scheduler.observe(0, {"reward/a": 1.0})
    scheduler.load_state_dict(scheduler.state_dict())
    assert [dict(scheduler.quotas(step)) for step in range(9)] == before


# -- the stream of problems ---------------------------------------------------------------------------------


def _pool(size: int, task: str = "t") -> list[Problem]:
    return [Problem(f"{task}{i}", task, str(i)) for i in range(size)]


@given(size=st.integers(1, 12), seed=st.integers(0, 2**63), epochs=st.integers(1, 4))
def test_every_pass_of_a_stream_is_a_permutation_of_its_problems(size: int, seed: int, epochs: int) -> None:
    stream = ProblemStream("t", _pool(size), seed)
    drawn = stream.take(size * epochs)
    for epoch in range(epochs):
        own = [problem.id for problem, _ in drawn[epoch * size : (epoch + 1) * size]]
        assert sorted(own) == sorted(p.id for p in _pool(size))
    assert len({draw for _, draw in drawn}) == len(drawn), "every draw has a seed of its own"


@given(cuts=st.lists(st.integers(0, 7), max_size=6), seed=st.integers(0, 1000))
def test_stream_item_depends_on_its_number_alone(cuts: list[int], seed: int) -> None:
    """Covers any division into calls, and resuming at any number."""
    total = sum(cuts)
    whole = ProblemStream("t", _pool(5), seed).take(total)
    cut = ProblemStream("t", _pool(5), seed)
    assert [item for count in cuts for item in cut.take(count)] == whole
    assert cut.taken == total
    assert [cut.at(number) for number in range(total)] == whole
    resumed = ProblemStream("t", _pool(5), seed)
    resumed.taken = total
    assert resumed.take(4) == cut.take(4)


def test_passes_seeds_and_tasks_have_different_orders() -> None:
    def ids(task: str, seed: int, begin: int) -> list[int]:
        stream = ProblemStream(task, _pool(40, task), seed)
        return [int(stream.at(number)[0].prompt) for number in range(begin, begin + 40)]

    orders = [ids("t", 0, 0), ids("t", 0, 40), ids("t", 1, 0), ids("u", 0, 0), list(range(40))]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_new_streams_start_at_their_first_problem() -> None:
    pools = {"a": _pool(3, "a"), "b": _pool(4, "b")}
    streams = make_streams(pools, 7)
    streams["a"].take(2)
    assert make_streams(pools, 7)["a"].taken == 0
    assert streams["b"].take(2) == ProblemStream("b", pools["b"], 7).take(2)


def test_stable_seed_has_a_fixed_value_and_few_collisions() -> None:
    assert stable_seed(0, "draw", 1) == 85_536_066_439_106_961, "finished studies would not repeat"
    assert stable_seed("ab", "c") != stable_seed("a", "bc")
    assert 0 <= stable_seed(*range(5)) < 2**63
    assert len({stable_seed(0, n) for n in range(1000)}) == 1000
