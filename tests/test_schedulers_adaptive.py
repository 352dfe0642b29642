"""Schedulers that learn: their published rules by hand, exact quotas, and states that survive."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import exp, log, sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.rl.shares import softmax
from omni_thinker.schedulers.adaptive import Adaptive
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.schedulers.dump import DumpConfig
from omni_thinker.schedulers.mixture import Mixture
from omni_thinker.schedulers.pac import PacConfig
from omni_thinker.schedulers.phases import Phases
from omni_thinker.schedulers.round_robin import RoundRobin
from omni_thinker.schedulers.sec import SecConfig
from omni_thinker.schedulers.stages import Stages
from omni_thinker.schedulers.tac import TacConfig
from omni_thinker.schedulers.tscl import TsclConfig, slope
from omni_thinker.schedulers.worst_task import WorstTaskConfig
from scripted import setting

TASKS = ("a", "b", "c")
STEP: dict[str, float] = {
    "advantage/a": 0.8, "advantage/b": 0.2, "problems/a": 3.0, "problems/b": 1.0, "reward/a": 0.5, "reward/b": 0.1,
}  # fmt: skip
MAKERS: dict[str, Callable[[], Scheduler]] = {
    "sec": lambda: SecConfig().build(setting(TASKS, 8)),
    "dump": lambda: DumpConfig(window=10).build(setting(TASKS, 8)),
    "tscl": lambda: TsclConfig(window=4).build(setting(TASKS, 8)),
    "pac": lambda: PacConfig(cold_start=3).build(setting(TASKS, 8, seed=1)),
    "tac": lambda: TacConfig().build(setting(TASKS, 8)),
    "worst_task": lambda: WorstTaskConfig().build(setting(TASKS, 8)),
    "phases": lambda: Phases(
        [
            (SecConfig().build(setting(TASKS, 8)), 7),
            (Mixture(dict.fromkeys(TASKS, 1.0), 8), 4),
            (DumpConfig().build(setting(TASKS, 8)), 99),
        ]
    ),
}


def stream(step: int, quotas: Mapping[str, int]) -> dict[str, float]:
    """Results of a scripted learner: only of tasks that were sampled."""
    metrics: dict[str, float] = {}
    for place, task in enumerate(TASKS):
        if count := quotas.get(task, 0):
            metrics |= {
                f"advantage/{task}": 0.1 * ((step * (place + 2)) % 9),
                f"alignment/{task}": 0.1 * ((step * (place + 1)) % 5) - 0.2,
                f"reward/{task}": 0.2 * place + 0.03 * ((step * (place + 1)) % 7),
                f"problems/{task}": float(count + step % 2),
            }
    return metrics


# --- the rules -----------------------------------------------------------------------------------------


def test_sec_equals_its_published_rule_by_hand() -> None:
    sec = SecConfig(rate=0.25, temperature=0.1).build(setting(TASKS, 8))
    assert sec.shares() == pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    sec.update(0, STEP)
    sec.update(1, {"advantage/a": 0.4})
    values = {"a": 0.25 * 0.4 + 0.75 * 0.25 * 0.8, "b": 0.25 * 0.2, "c": 0.0}
    assert sec.values == pytest.approx(values)
    weights = [exp(value / 0.1) for value in values.values()]
    assert list(sec.shares().values()) == pytest.approx([weight / sum(weights) for weight in weights])


def test_tac_equals_its_published_rule_by_hand() -> None:
    tac = TacConfig(rate=0.5, temperature=0.1).build(setting(TASKS, 8))
    tac.update(0, {**STEP, "alignment/a": 0.4, "alignment/b": -0.2})
    tac.update(1, {"advantage/a": 0.4, "alignment/a": -1.0})
    a = (0.5 * 0.4 + 0.25 * 0.8) * (1 + 0.5 * -1.0 + 0.25 * 0.4) / 2
    b = 0.5 * 0.2 * (1 + 0.5 * -0.2) / 2
    assert tac.utilities() == pytest.approx({"a": a, "b": b, "c": 0.0})
    weights = [exp(value / 0.1) for value in (a, b, 0.0)]
    assert list(tac.shares().values()) == pytest.approx([weight / sum(weights) for weight in weights])


def test_dump_equals_its_published_rule_by_hand() -> None:
    dump = DumpConfig(window=5, bonus=0.5, temperature=0.2).build(setting(TASKS, 8))
    assert dump.bounds() == dict.fromkeys(TASKS, 0.0)  # ln 1
    dump.update(0, STEP)
    dump.update(1, {"advantage/a": 0.2, "problems/a": 4.0})
    # Of a the last five problems: four of 0.2 and one of 0.8. In all there were eight.
    bounds = {
        "a": (4 * 0.2 + 0.8) / 5 + 0.5 * sqrt(2 * log(9) / 8),
        "b": 0.2 + 0.5 * sqrt(2 * log(9) / 2),
        "c": 0.5 * sqrt(2 * log(9) / 1),
    }
    assert dump.bounds() == pytest.approx(bounds)
    assert dump.shares() == pytest.approx(softmax(bounds, 0.2))


def test_tscl_equals_its_published_rule_by_hand() -> None:
    tscl = TsclConfig(window=3, explore=0.3).build(setting(TASKS, 8))
    even = pytest.approx(dict.fromkeys(TASKS, 1 / 3))
    assert tscl.shares() == even
    for step, (a, b) in enumerate([(0.1, 0.5), (0.2, 0.4), (0.3, 0.1)]):
        tscl.update(step, {"reward/a": a, "reward/b": b, "reward/c": 0.2})
        if step == 0:
            assert tscl.shares() == even, "no slope has been seen yet"
    # Through (0, .5), (1, .4), (2, .1): -0.2 a step, which is steeper than a's rise.
    assert tscl.slopes() == pytest.approx({"a": 0.1, "b": -0.2, "c": 0.0})
    assert tscl.shares() == pytest.approx({"a": 0.1, "b": 0.8, "c": 0.1})
    tscl.update(4, {"reward/b": 0.1})
    # Around the mean (7/3, .2): -.4 over 42/9.
    assert tscl.slopes()["b"] == pytest.approx(-0.4 / (42 / 9))
    assert slope([(1, 0.4), (2, 0.1), (4, 0.1)]) == pytest.approx(-0.4 / (42 / 9))
    for step in range(5, 9):
        tscl.update(step, dict.fromkeys(("reward/a", "reward/b", "reward/c"), 0.0))
    assert tscl.shares() == even, "nothing changes"


def test_worst_task_weights_stay_finite_and_recover_at_a_large_rate() -> None:
    worst = WorstTaskConfig(rate=100.0, floor=0.0, memory=0.0).build(setting(("a", "b"), 8))
    worst.update(0, {"reward/a": 1.0, "reward/b": 0.0})
    for step in range(1, 40):
        worst.update(step, {"reward/a": float(step % 2 == 0), "reward/b": float(step % 2)})
        assert sum(worst.shares().values()) == pytest.approx(1.0)
        assert all(0.0 <= share <= 1.0 for share in worst.shares().values())
    for step in range(40, 60):
        worst.update(step, {"reward/a": 1.0 - (step - 40) / 20, "reward/b": 1.0})
    assert worst.shares()["a"] > 0.99, "a task that falls comes back"


def test_worst_task_equals_its_rule_by_hand() -> None:
    worst = WorstTaskConfig(rate=2.0, floor=0.2, level=0.5, memory=0.5).build(setting(("a", "b"), 8))
    worst.update(0, {"reward/a": 0.3, "reward/b": 0.3})
    assert worst.shares() == {"a": 0.5, "b": 0.5}, "neither is worse"
    worst.update(1, {"reward/a": 0.5, "reward/b": 0.2})
    # Averages: 0.4 and 0.25, so improvements 0.1 and -0.05.
    up, down = exp(-2 * (0.1 + 0.5 * 0.4)), exp(-2 * (-0.05 + 0.5 * 0.25))
    assert worst.shares()["b"] == pytest.approx(0.1 + 0.8 * down / (up + down))
    before = worst.shares()["b"]
    worst.update(2, {"reward/a": 0.4})
    assert worst.shares()["b"] > before, "a task that isn't sampled keeps its logit, while the other's falls"


def test_worst_task_gives_a_stuck_worst_task_nearly_everything() -> None:
    worst = WorstTaskConfig().build(setting(("low", "high"), 8))
    for step in range(30):
        worst.update(step, {"reward/low": 0.05, "reward/high": 0.95})
    assert worst.shares()["low"] > 0.9


def test_worst_task_hardly_moves_equal_tasks_by_noise() -> None:
    rng = np.random.default_rng(0)
    tasks = ("a", "b", "c", "d")
    spans = []
    for _ in range(50):
        worst = WorstTaskConfig().build(setting(tasks, 8))
        for step in range(30):
            worst.update(step, {f"reward/{task}": rng.binomial(16, 0.4) / 16 for task in tasks})
        spans.append(max(worst.shares().values()) - min(worst.shares().values()))
    assert np.median(spans) < 0.15


def test_pac_equals_its_published_rule_by_hand() -> None:
    pac = PacConfig(cold_start=0, window=3, drift=0.1, noise=0.5).build(setting(("a", "b"), 8, seed=0))
    pac.observe(0, {"advantage/a": 0.6, "reward/a": 0.2, "advantage/b": 0.3, "reward/b": 0.5})
    trust = 1.1 / 1.6
    assert pac.mean == pytest.approx({"a": trust * 0.6, "b": trust * 0.3}), "no slope yet"
    assert pac.variance == pytest.approx(dict.fromkeys("ab", 1.1 * (1 - trust)))
    before = dict(pac.mean)
    pac.observe(1, {"advantage/a": 0.6, "reward/a": 0.4, "advantage/b": 0.3, "reward/b": 0.4})
    # Slopes 0.2 and -0.1; the steepest counts as 1.
    variance = 1.1 * (1 - trust) + 0.1
    trust = variance / (variance + 0.5)
    assert pac.mean["a"] == pytest.approx(before["a"] + trust * (0.6 * 2.0 - before["a"]))
    assert pac.mean["b"] == pytest.approx(before["b"] + trust * (0.3 * 0.5 - before["b"]))
    pac.observe(2, {"advantage/a": 0.0, "reward/a": 0.4})
    assert pac.variance["b"] == pytest.approx(variance * (1 - trust) + 0.1), "what isn't seen grows uncertain"


def test_pac_quotas_follow_its_posterior_and_the_step() -> None:
    pac = PacConfig(cold_start=1).build(setting(("a", "b"), 1000, seed=5))
    assert pac.quotas(0) == {"a": 500, "b": 500}
    pac.mean, pac.variance = {"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}
    # a wins where N(1, 1) is above 0: 84 of 100.
    assert pac.quotas(7)["a"] == pytest.approx(841, abs=50)
    assert pac.quotas(7) == pac.quotas(7)
    assert len({pac.quotas(step)["a"] for step in range(7, 17)}) > 5


def test_round_robin_and_phases_quotas_equal_values_by_hand() -> None:
    robin = RoundRobin(("a", "b"), 5)
    assert [robin.quotas(step) for step in range(3)] == [{"a": 5}, {"b": 5}, {"a": 5}]
    both = Phases([(Stages([("a", 2)], 4), 2), (Mixture({"a": 1, "b": 1}, 4), 3)])
    assert [both.stage(step) for step in range(5)] == ["a", "a", None, None, None]
    assert [both.quotas(step) for step in (1, 2)] == [{"a": 4}, {"a": 2, "b": 2}]
    with pytest.raises(IndexError):
        both.quotas(5)


# --- what holds for all -----------------------------------------------------------------------------------------


class Given(Adaptive):
    """Shares that are said, not learned."""

    def __init__(self, rows: Sequence[Mapping[str, float]], per_step: int) -> None:
        super().__init__(tuple(rows[0]), per_step)
        self.rows, self.at = rows, 0

    def shares(self) -> Mapping[str, float]:
        return self.rows[self.at]

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.at = min(self.at + 1, len(self.rows) - 1)

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


@given(
    weights=st.lists(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), min_size=1, max_size=40),
    per_step=st.integers(1, 16),
)
def test_quotas_differ_from_any_shares_by_less_than_two_problems(weights: list[list[float]], per_step: int) -> None:
    rows = [dict(zip(TASKS, [own / sum(row) for own in row], strict=True)) for row in weights]
    scheduler = Given(rows, per_step)
    asked, given_ = Counter[str](), Counter[str]()
    for step, row in enumerate(rows):
        quotas = scheduler.quotas(step)
        assert sum(quotas.values()) == per_step
        scheduler.observe(step, {})
        given_.update(quotas)
        asked.update({task: share * per_step for task, share in row.items()})
        # Of three tasks the one that waits longest is owed less than two problems, whatever the shares were.
        assert all(abs(asked[task] - given_[task]) < 2 for task in TASKS)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("cut", [0, 1, 5, 9, 17])
def test_state_restored_at_any_step_continues_the_same(name: str, cut: int) -> None:
    whole, begun = MAKERS[name](), MAKERS[name]()
    for step in range(cut):
        for scheduler in (whole, begun):
            scheduler.observe(step, stream(step, scheduler.quotas(step)))
    other = MAKERS[name]()
    other.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    for step in range(cut, 30):
        assert other.quotas(step) == whole.quotas(step)
        for scheduler in (whole, other):
            scheduler.observe(step, stream(step, scheduler.quotas(step)))
    assert other.state_dict() == whole.state_dict()


@pytest.mark.parametrize("name", MAKERS)
def test_quotas_sum_to_the_step_size_with_or_without_observations(name: str) -> None:
    scheduler = MAKERS[name]()
    for step in range(40):
        quotas = scheduler.quotas(step)
        assert quotas == scheduler.quotas(step)
        assert sum(quotas.values()) == 8
        assert all(count > 0 for count in quotas.values())
        scheduler.observe(step, {} if step % 3 else stream(step, quotas))
