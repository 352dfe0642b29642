"""The plan of a study: its units, what each needs, and the work that they add up to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.recipe import Recipe, builtin_recipe
from omni_thinker.studies.units import WORK, plan_work

ARMS = ["start", "single", "curriculum", "reverse", "joint", "joint_planned", "merge", "sec", "round_robin"]


def recipe(**study: Any) -> Recipe:
    return builtin_recipe([f"study.{key}={json.dumps(value)}" for key, value in study.items()])


def test_default_study_has_the_expected_units_needs_and_work() -> None:
    plan = plan_work(recipe())
    assert [unit.name for unit in plan.units] == [
        *("warmup", "start", "single:math", "single:coding", "single:qa", "single:writing"),
        *("plan", "curriculum", "joint", "merge"),
        *("test start", "test single:math", "test single:coding", "test single:qa", "test single:writing"),
        *("test curriculum", "test joint", "test merge"),
    ]
    needs = {unit.name: unit.needs for unit in plan.units}
    singles = ("single:math", "single:coding", "single:qa", "single:writing")
    assert needs["curriculum"] == ("plan",)
    assert needs["joint"] == ("start",)
    assert needs["plan"] == needs["merge"] == singles
    # 6 arms of 48 steps; start, four probes of 12 steps and their whole arms, four stages, joint, merge
    evaluations = {"interim": 0, "validation": 1 + 8 + 4 + 1 + 1, "test": 8}
    assert plan.total == {"warmup": 40, "check": 9, "step": 6 * 48, **evaluations}


@pytest.mark.parametrize(("steps", "checks"), [(0, 1), (1, 2), (5, 2), (6, 3), (12, 4)])
def test_warmup_is_checked_before_it_every_5_steps_and_at_its_end(steps: int, checks: int) -> None:
    plan = plan_work(builtin_recipe([f"warmup.steps={steps}", "warmup.check_every=5"]))
    assert plan.total["check"] == checks


def test_study_with_a_fixed_order_has_no_plan_unit() -> None:
    plan = plan_work(recipe(arms=["start", "curriculum"], order=["qa", "math", "coding", "writing"]))
    assert [unit.name for unit in plan.units] == ["warmup", "start", "curriculum", "test start", "test curriculum"]


def test_lora_probes_are_merge_experts_and_gradient_probes_evaluate_nothing() -> None:
    plan = plan_work(recipe(arms=["start", "curriculum", "merge"], probes=["lora", "gradient"]))
    units = {unit.name: unit for unit in plan.units}
    assert plan.experts == "lora"
    assert units["merge"].needs == ("lora:math", "lora:coding", "lora:qa", "lora:writing")
    assert [unit.evaluations for name, unit in units.items() if name.startswith("gradient:")] == [0] * 4


@settings(max_examples=50, deadline=None)
@given(
    st.sets(st.sampled_from(ARMS), min_size=1),
    st.lists(st.sampled_from(["full", "short", "lora", "gradient"]), unique=True),
    st.integers(4, 60),
    st.integers(1, 3),
)
def test_units_follow_what_they_need_and_their_work_adds_up(
    arms: set[str], probes: list[str], steps: int, seeds: int
) -> None:
    study = recipe(arms=sorted(arms, key=ARMS.index), probes=probes, steps=steps, seeds=list(range(seeds)))
    plan = plan_work(study)
    for seed in range(seeds):
        units = plan.of_seed(seed)
        names = [unit.name for unit in units]
        assert len(set(names)) == len(names)
        for place, unit in enumerate(units):
            assert set(unit.needs) <= set(names[:place])
        tested = {unit.arm for unit in units if unit.kind == "test"}
        assert {arm for arm in tested if ":" not in arm} == {"start", *arms} - {"single"}
    total = dict.fromkeys(WORK, 0)
    for unit in plan.units:
        for kind, count in unit.work.items():
            total[kind] += count
    assert plan.total == total


def test_curriculum_net_with_probes_of_all_steps_is_refused() -> None:
    with pytest.raises(Exception, match="leaves no stage for 'curriculum_net'"):
        plan_work(recipe(arms=["start", "single", "curriculum_net"]))
