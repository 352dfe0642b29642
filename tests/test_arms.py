"""The table of arms, and how names of arms are built and read."""

from __future__ import annotations

from omni_thinker.arms import (
    ARMS,
    LORA,
    PROBE,
    RANKED,
    RENAMED,
    SHARED,
    SINGLE,
    STAGED,
    colour_of,
    in_order,
    is_scheduled,
    is_single,
    kind_of,
    rivals,
    task_of,
)

TASKS = ["math", "qa"]


def test_arm_names_with_a_prefix_give_their_task_and_kind_back() -> None:
    for mark in (SINGLE, PROBE, LORA):
        assert task_of(mark + "math") == "math"
        assert not is_scheduled(mark + "math")
    assert [is_single(arm) for arm in (SINGLE + "qa", PROBE + "qa", "joint")] == [True, False, False]
    assert kind_of(SINGLE + "qa") is ARMS["single"]
    assert kind_of("sec") is None
    assert [arm for arm in ("sec", "python:mine:Lottery", "start", "merge") if is_scheduled(arm)] == [
        "sec",
        "python:mine:Lottery",
    ]


def test_arm_table_lists_every_kind_with_its_own_colour() -> None:
    assert {*RANKED, "single"} == set(ARMS)
    assert {"curriculum", "curriculum_net", "reverse"} == STAGED
    assert {"curriculum", "curriculum_net", "reverse", "joint", "joint_planned"} == SHARED
    assert len({arm.colour for arm in ARMS.values()}) == len(ARMS)


def test_arms_in_any_order_are_sorted_by_kind_then_task() -> None:
    arms = ["tac", "single:qa", "joint", "single:math", "start", "sec", "curriculum"]
    assert in_order(arms, TASKS) == ["start", "curriculum", "joint", "single:math", "single:qa", "sec", "tac"]
    assert rivals(["start", "joint", "curriculum", "single:qa", "sec"]) == ["curriculum", "sec"]


def test_scheduled_arms_get_distinct_colours() -> None:
    arms = ["joint", "sec", "tac", "dump"]
    assert len({colour_of(arm, arms) for arm in arms}) == 4
    assert colour_of("joint") == ARMS["joint"].colour


def test_arm_names_of_older_runs_map_to_todays_kinds() -> None:
    for old, new in RENAMED.items():
        assert kind_of(old) is ARMS[new]
        assert not is_scheduled(old)
    assert in_order(["joint", "charged", "start", "curriculum"], []) == ["start", "curriculum", "charged", "joint"]
