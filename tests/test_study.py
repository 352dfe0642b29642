"""Whole studies, through the command that users type."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

TASKS = ["math", "coding", "qa", "writing"]


def study(*arguments: object, timeout: float = 280) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "omni_thinker", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.fixture(scope="module")
def tiny(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("tiny") / "run"
    return out, study("study", repo / "recipes" / "tiny.toml", "--out", out)


def test_tiny_study_ends_within_90_seconds(tiny: tuple[Path, dict[str, Any]]) -> None:
    assert tiny[1]["seconds"] < 90


def test_a_run_directory_is_complete(tiny: tuple[Path, dict[str, Any]]) -> None:
    out, _ = tiny
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "recipe.toml",
        "metrics.jsonl",
        "transfer.json",
        "plan.json",
        "result.json",
        "samples.jsonl",
        "references.jsonl",
        "report.html",
        "models",
    }
    models = {path.name for path in (out / "models" / "seed-0").iterdir()}
    assert models == {"start", "curriculum", "joint", "merge", *(f"single-{task}" for task in TASKS)}


def test_arms_have_equal_budgets_and_every_pair_is_compared(tiny: tuple[Path, dict[str, Any]]) -> None:
    out, printed = tiny
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert result["arms"] == printed["arms"]
    names = ["start", *(f"single:{task}" for task in TASKS), "curriculum", "joint", "merge"]
    assert list(result["arms"]) == names
    steps = {name: entries[0]["steps"] for name, entries in result["arms"].items()}
    assert steps.pop("start") == 0
    assert set(steps.values()) == {8}
    for entries in result["arms"].values():
        for split in ("test", "validation"):
            assert set(entries[0][split]) == set(TASKS)
            assert all(0 <= row["mean"] <= 1 and row["n"] > 0 for row in entries[0][split].values())
    pairs = len(names) * (len(names) - 1) // 2
    assert len(result["comparisons"]) == pairs * (len(TASKS) + 1)
    for row in result["comparisons"]:
        assert row["low"] <= row["difference"] <= row["high"]
    assert [stage["task"] for stage in result["arms"]["curriculum"][0]["stages"]] == json.loads(
        (out / "plan.json").read_text("utf-8")
    )["plan"]["order"]


def test_transfer_and_plan_cover_all_tasks_and_orders(tiny: tuple[Path, dict[str, Any]]) -> None:
    out, _ = tiny
    matrix = json.loads((out / "transfer.json").read_text("utf-8"))
    assert matrix["tasks"] == TASKS
    assert all(set(matrix["after"][trained]) == set(TASKS) for trained in TASKS)
    plan = json.loads((out / "plan.json").read_text("utf-8"))
    assert {tuple(row["order"]) for row in plan["orders"]} == set(permutations(TASKS))
    assert sum(row["probability_best"] for row in plan["orders"]) == pytest.approx(1)


def test_every_step_logs_metrics_for_all_and_per_task(tiny: tuple[Path, dict[str, Any]]) -> None:
    out, _ = tiny
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    joint = [row for row in rows if row["arm"] == "joint" and row["kind"] == "train"]
    assert [row["step"] for row in joint] == list(range(1, 9))
    for row in joint:
        metrics = row["metrics"]
        for name in (
            "reward",
            "accuracy",
            "completion_length",
            "truncated",
            "zero_variance",
            "abstain_rate",
            "error_rate",
        ):
            assert f"{name}/all" in metrics
            assert all(f"{name}/{task}" in metrics for task in TASKS)
        assert {"tokens_sampled/all", "seconds/sample", "seconds/score", "lr"} <= set(metrics)
        assert all(math.isfinite(value) for value in metrics.values())
    trained = [row["metrics"] for row in rows if row["kind"] == "train" and row["metrics"]["groups_trained/all"] > 0]
    # A random model is rarely right, but where a group had signal, everything about its update is logged.
    for metrics in trained:
        assert {"loss", "grad_norm", "entropy/all", "clip_frac/all", "mismatch_abs/all"} <= set(metrics)
        assert metrics["mismatch_abs/all"] < 0.1


def test_test_split_is_evaluated_last(tiny: tuple[Path, dict[str, Any]]) -> None:
    out, _ = tiny
    kinds = [json.loads(line)["kind"] for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    first = kinds.index("test")
    assert set(kinds[first:]) == {"test"}


def test_the_same_seed_gives_the_same_numbers(repo: Path, tmp_path: Path) -> None:
    def lines(name: str) -> list[dict[str, Any]]:
        small = ["study.steps=4", 'study.arms=["start", "joint"]', "warmup.steps=2", "rl.refill_rounds=0"]
        options = [part for key in small for part in ("--set", key)]
        study("study", repo / "recipes" / "tiny.toml", "--out", tmp_path / name, *options)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text("utf-8").splitlines()]
        for row in rows:
            row.pop("seconds")
            row["metrics"] = {k: v for k, v in row["metrics"].items() if not k.startswith("seconds/")}
        return rows

    assert lines("a") == lines("b")


def test_eval_of_a_trained_arm_gives_its_test_accuracies(repo: Path, tmp_path: Path) -> None:
    options = ["--arm", "single:qa", "--steps", 4, "--set", "warmup.steps=2"]
    result = study("train", repo / "recipes" / "tiny.toml", "--out", tmp_path / "one", *options)
    assert list(result["arms"]) == ["start", "single:qa"]
    assert result["arms"]["single:qa"][0]["steps"] == 4
    folder = tmp_path / "one" / "models" / "seed-0" / "single-qa"
    references = tmp_path / "one" / "references.jsonl"
    again = study("eval", folder, "--recipe", repo / "recipes" / "tiny.toml", "--references", references)
    expected = result["arms"]["single:qa"][0]["test"]
    assert {task: row["mean"] for task, row in again["tasks"].items()} == {
        task: pytest.approx(row["mean"], abs=1e-6) for task, row in expected.items()
    }


@pytest.mark.timeout(900)  # a processor without bf16 takes minutes
def test_short_study_with_the_builtin_model_earns_rewards_and_updates(
    repo: Path, tmp_path: Path, builtin_model: Path
) -> None:
    """Two tasks, few steps: the real model answers, is rewarded, and is updated."""
    small = [
        'study.arms=["start", "joint"]',
        "study.steps=4",
        "warmup.steps=10",
        "warmup.check_every=10",
        "warmup.check_problems=8",
        "evaluation.validation_problems=8",
        "evaluation.test_problems=8",
        "rl.problems_per_step=4",
        "rl.group_size=4",
    ]
    options = [part for key in small for part in ("--set", key)]
    out = tmp_path / "run"
    study("study", repo / "recipes" / "quickstart.toml", "--out", out, *options, timeout=850)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    trained = [row["metrics"] for row in rows if row["kind"] == "train"]
    assert any(metrics["reward/all"] > 0 for metrics in trained)
    updated = [metrics for metrics in trained if metrics["groups_trained/all"] > 0]
    assert updated
    assert all(0 < metrics["grad_norm"] < 1e4 for metrics in updated)
    # bf16 sampling against bf16 training: close, but not the same kernels.
    assert all(metrics["mismatch_abs/all"] < 0.1 for metrics in updated)
    losses = [row["metrics"]["loss/all"] for row in rows if row["kind"] == "warmup"]
    assert losses[-1] < losses[0]


@pytest.mark.timeout(1300)  # two minutes on two free cores, many where they are shared or know no bf16
def test_real_data_recipe_runs_to_a_report(repo: Path, tmp_path: Path, shared_data: Path, builtin_model: Path) -> None:
    small = [
        "study.steps=4",
        "warmup.steps=4",
        "warmup.check_every=4",
        "warmup.check_problems=4",
        "evaluation.validation_problems=4",
        "evaluation.test_problems=4",
        "evaluation.samples=1",
        "rl.problems_per_step=2",
        "rl.group_size=4",
        "rl.refill_rounds=0",
        "tasks.coding.max_tokens=64",
        "tasks.writing.max_tokens=32",
        "tasks.writing.train=40",
        "study.single_budget=stage",
    ]
    options = [part for key in small for part in ("--set", key)]
    data = ["--set", f"data_root={shared_data}"]
    result = study(
        "study", repo / "recipes" / "real-data.toml", "--out", tmp_path / "run", *data, *options, timeout=1250
    )
    assert set(result["tasks"]) == set(TASKS)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert all(row["n"] == 4 for row in result["arms"]["joint"][0]["test"].values())


@pytest.fixture(scope="module")
def planned(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Short probes, a plan that is made anew after each stage, and its reverse."""
    out = tmp_path_factory.mktemp("planned") / "run"
    settings = ['study.arms=["start", "curriculum", "reverse", "joint"]', "study.replan=true", "study.steps=16"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    return out, study("study", repo / "recipes" / "tiny.toml", "--out", out, *chosen)


def test_short_probes_take_at_most_15_percent_of_the_steps(planned: tuple[Path, dict[str, Any]]) -> None:
    out, _ = planned
    result = json.loads((out / "result.json").read_text("utf-8"))
    [probes] = result["probes"]
    # 4 n of 3 arms x 16 steps and themselves.
    assert probes["steps"] == 4
    assert probes["steps"] / (3 * 16 + probes["steps"]) <= 0.15
    assert not any(name.startswith("single:") for name in result["arms"])


def test_planned_study_has_forecasts_and_assumptions_for_every_arm(planned: tuple[Path, dict[str, Any]]) -> None:
    out, _ = planned
    result = json.loads((out / "result.json").read_text("utf-8"))
    assert {(row["arm"], row["task"]) for row in result["forecasts"]} == {
        (arm, task) for arm in ("curriculum", "reverse", "joint") for task in TASKS
    }
    assert [row["assumption"] for row in result["assumptions"]] == ["A1", "A2"]
    assert len(result["assumptions"][0]["cells"]) == 2 * 3 * 3
    assert len(result["assumptions"][1]["cells"]) == 2 * 3
    assert set(result["entropy"]["by_task"]) <= set(TASKS)
    order = [stage["task"] for stage in result["arms"]["curriculum"][0]["stages"]]
    assert sorted(order) == sorted(TASKS)
    assert [stage["task"] for stage in result["arms"]["reverse"][0]["stages"]] == json.loads(
        (out / "plan.json").read_text("utf-8")
    )["sequence"]["order"][::-1]


def test_lora_probes_save_adapters_that_the_merge_arm_uses(repo: Path, tmp_path: Path) -> None:
    """LoRA probes serve as experts of the arm `merge`, and gradients are measured beside them."""
    settings = ['study.arms=["start", "curriculum", "merge"]', 'study.probes=["lora", "gradient"]']
    chosen = [word for setting in settings for word in ("--set", setting)]
    out = tmp_path / "run"
    result = study("study", repo / "recipes" / "tiny.toml", "--out", out, *chosen)
    lora, gradient = result["probes"]
    assert (lora["kind"], lora["planned_with"], lora["steps"]) == ("lora", True, 8), "two steps a task: a whole stage"
    assert (gradient["kind"], gradient["planned_with"], gradient["tokens_evaluated"]) == ("gradient", False, 0)
    assert 0 < gradient["tokens_sampled"] < lora["tokens_sampled"]
    assert lora["tokens_evaluated"] > 0
    assert result["arms"]["merge"][0]["tokens_sampled"] == lora["tokens_sampled"]
    for task in TASKS:
        assert (out / "models" / "seed-0" / f"lora-{task}" / "adapter_model.safetensors").stat().st_size > 1000
    for name in ("transfer.json", "transfer-gradient.json"):
        assert json.loads((out / name).read_text("utf-8"))["tasks"] == TASKS
    assert set(json.loads((out / "transfer.json").read_text("utf-8"))["entropy"]["after"]) == set(TASKS)


def test_probe_kinds_are_compared_and_evidence_changes_the_forecast(
    repo: Path, tmp_path: Path, planned: tuple[Path, Any]
) -> None:
    out = tmp_path / "probed"
    settings = ["--set", "study.steps=16", "--kinds", "short,full"]
    result = study("probe", repo / "recipes" / "tiny.toml", "--out", out, *settings)
    short, full = result["probes"]
    assert (short["steps"], full["steps"]) == (4, 16)
    assert (short["planned_with"], full["planned_with"]) == (True, False)
    assert short["against_full"]["cells"] == 16
    assert full["against_full"] is None
    assert list(result["arms"]) == ["start"]
    told = study("transfer", out / "transfer-full.json", "--csv", out / "cells.csv", "--plot", out / "matrix.svg")
    assert set(told) == {"start", "transfer", "shared", "specific"}
    assert len((out / "cells.csv").read_text("utf-8").splitlines()) == 1 + 4 * 5
    assert "<svg" in (out / "matrix.svg").read_text("utf-8")[:1000]
    before = study("plan", "--matrix", out / "transfer.json")
    after = study("plan", "--matrix", out / "transfer.json", "--evidence", planned[0])
    assert after["plan"]["forecast"] != before["plan"]["forecast"]
