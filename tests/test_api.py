"""The Python API: what the commands do, in five lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import omni_thinker as ot
from timing import quickest

SMALL = {
    "model": {"name": "tiny"},
    "tasks": {name: {"source": f"builtin:{name}", "train": 16, "validation": 4, "test": 4} for name in ("math", "qa")},
    "warmup": {"steps": 1, "batch": 4},
    "rl": {"group_size": 2, "problems_per_step": 2},
    "evaluation": {"validation_problems": 4, "test_problems": 4, "samples": 1},
    "study": {"steps": 2, "arms": ["start", "single", "joint"], "bootstrap": 50},
}


def test_study_plan_forecast_load_run_and_evaluate_work_from_python(tmp_path: Path) -> None:
    result = ot.study(SMALL, tmp_path / "run")
    assert set(result["arms"]) == {"start", "single:math", "single:qa", "joint"}
    assert (tmp_path / "run" / "report.html").is_file()
    made = ot.plan(tmp_path / "run" / "transfer.json")
    assert sorted(made.orders[0].order) == ["math", "qa"]
    forecast = ot.forecast(tmp_path / "run" / "transfer.json", order=["math", "qa:0.5"])
    assert set(forecast["forecast"]) == {"math", "qa"}
    assert ot.forecast(tmp_path / "run" / "transfer.json", joint={"math": 0.5, "qa": 0.5})["forecast"]
    assert list(ot.load_run(tmp_path / "run").tasks) == ["math", "qa"]
    with pytest.raises(ot.UserError, match="holds a run"):
        ot.study(SMALL, tmp_path / "run")
    model = tmp_path / "run" / "models" / "seed-0" / "joint"
    assert set(ot.evaluate(model, SMALL)["tasks"]) == {"math", "qa"}


def test_train_runs_one_arm_for_the_given_steps(tmp_path: Path) -> None:
    result = ot.train(SMALL, "single:qa", tmp_path / "one", steps=3)
    assert list(result["arms"]) == ["start", "single:qa"]
    assert result["arms"]["single:qa"][0]["steps"] == 3


def test_score_values_rows_and_names_bad_rows_and_unknown_rewards() -> None:
    rows = [{"id": 1, "response": "so it is 12", "answer": "12"}, {"id": 2, "response": "13", "answer": "12"}]
    assert [row["value"] for row in ot.score("math", rows)] == [1.0, 0.0]
    with pytest.raises(ot.UserError, match="rows: line 1"):
        ot.score("math", [{"id": 1}])
    with pytest.raises(ot.UserError, match="did you mean 'math'"):
        ot.score("mth", rows)


def test_importing_the_package_loads_neither_pydantic_nor_torch() -> None:
    code = (
        "import sys, omni_thinker as ot\n"
        "assert 'pydantic' not in sys.modules\n"
        "ot.Recipe\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(ot.__all__) <= set(dir(ot))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ot.nothing


def test_help_ends_within_600_ms() -> None:
    command = [sys.executable, "-m", "omni_thinker", "--help"]
    assert quickest(lambda: subprocess.run(command, capture_output=True, check=True), within=0.6) < 0.6
