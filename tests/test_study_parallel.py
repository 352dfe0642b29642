"""Seeds side by side end as seeds one after another; kills and signals cost nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.recipe import builtin_recipe
from omni_thinker.runs.join import join_runs
from omni_thinker.studies.parallel import _Processes, drop_parts
from test_faults_study import QUICK, begin, journalled, wait_for
from test_resume import traces

SEEDS = (*QUICK, "--set", "study.seeds=[0, 3]", "--set", "study.steps=8")


def journal(out: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line.partition(" ")[2]) for line in (out / "journal.jsonl").read_text("utf-8").splitlines()]
    return [(row["key"], row["kind"]) for row in rows if not row["key"].startswith("result")]


def commands() -> Iterator[Path]:
    """Of all processes: files with their command lines."""
    return Path("/proc").glob("[0-9]*/cmdline")


def at_work(out: Path) -> list[str]:
    """Processes that name the directory."""
    found = []
    for path in commands():
        try:
            found.append(path.read_text("utf-8", "replace"))
        except OSError:
            continue
    return [command for command in found if str(out) in command]


def uncounted(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the judge has counted so far: over the whole run, or over each process."""
    for row in found["metrics"]:
        row["metrics"] = {name: value for name, value in row["metrics"].items() if not name.startswith("judge/")}
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to look for processes in")
@pytest.mark.timeout(600)
def test_parallel_seeds_killed_and_resumed_end_as_serial_seeds(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order would be other numbers
    recipe, errors = repo / "recipes" / "tiny.toml", tmp_path / "err"
    calm, out = tmp_path / "calm", tmp_path / "run"
    assert begin(errors, recipe, "--out", calm, *SEEDS).wait(280) == 0, errors.read_text("utf-8")[-2000:]

    process = begin(errors, recipe, "--out", out, *SEEDS, "--jobs", "2")
    wait_for(process, journalled(out / "seeds" / "3", '"kind": "checkpoint"'))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "result.json" not in os.listdir(out)
    assert not at_work(out)

    for change, words in (
        (("--set", "rl.lr=0.5"), "rl.lr was 0.001, is 0.5"),
        (("--seeds", "1"), "study.seeds was [0, 3]"),
    ):
        assert begin(errors, out, "--resume", "--jobs", "2", *change).wait(100) == 2
        assert words in errors.read_text("utf-8").splitlines()[-1]
    process = begin(errors, out, "--resume", "--jobs", "2")
    wait_for(process, journalled(out / "seeds" / "0", "train joint"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert begin(errors, out, "--resume").wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert uncounted(traces(out)) == uncounted(traces(calm))
    assert journal(out) == journal(calm)
    assert not (out / "seeds").exists()
    assert begin(errors, out, "--resume", "--jobs", "2").wait(100) == 0
    assert "nothing is left to do" in errors.read_text("utf-8")
    assert "--jobs is ignored" in errors.read_text("utf-8")


@pytest.mark.timeout(200)
def test_failing_seed_exits_2_and_stops_the_others(repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    options = ("--set", "rl.lr=1e30", "--set", "rl.max_grad_norm=1e30", "--jobs", "2")
    assert begin(errors, recipe, "--out", out, *SEEDS, *options).wait(180) == 2
    line = errors.read_text("utf-8").splitlines()[-1]
    assert "ended early" in line
    assert ".log" in line
    assert not at_work(out)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc to look for processes in")
@pytest.mark.timeout(200)
def test_killed_seed_is_reported_and_stops_the_others(repo: Path, tmp_path: Path) -> None:
    errors, out = tmp_path / "err", tmp_path / "run"
    process = begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *SEEDS, "--jobs", "2")
    wait_for(process, journalled(out / "seeds" / "3", '"kind": "checkpoint"'))
    own = [int(path.parent.name) for path in commands() if f"{out}/seeds/3" in path.read_text("utf-8", "replace")]
    os.kill(min(own), signal.SIGKILL)
    assert process.wait(60) == 2
    assert "seed 3 ended early: killed by SIGKILL" in errors.read_text("utf-8").splitlines()[-1]
    assert not at_work(out)


def test_devices_are_assigned_to_jobs_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    recipe = builtin_recipe(["study.seeds=[0, 1, 2, 3]"])
    assert _Processes(recipe, tmp_path, 3, ()).devices == ["4", "6", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert _Processes(recipe, tmp_path, 3, ()).devices == []


def test_seed_folders_are_removed_once_joined(tmp_path: Path) -> None:
    recipe = builtin_recipe(["study.seeds=[0, 1]"])
    for seed in ("0", "1"):
        (tmp_path / "seeds" / seed).mkdir(parents=True)
    (tmp_path / "seeds" / "1" / "journal.jsonl").write_text("")
    (tmp_path / "seeds" / "1.log").write_text("log")
    drop_parts(recipe, tmp_path)
    assert (tmp_path / "seeds" / "1").exists(), "they aren't one yet"
    (tmp_path / "journal.jsonl").write_text("")
    drop_parts(recipe, tmp_path)
    assert [path.name for path in (tmp_path / "seeds").iterdir()] == ["0"], "without a journal: somebody's own"
    (tmp_path / "seeds" / "0" / "journal.jsonl").write_text("")
    drop_parts(recipe, tmp_path)
    assert not (tmp_path / "seeds").exists()


def test_adapters_name_their_base_where_it_lies_after_joining(tmp_path: Path) -> None:
    seed = tmp_path / "seeds" / "0"
    for name, base in (("ours", seed / "models" / "seed-0" / "start"), ("hub", Path("org/model"))):
        (seed / "models" / "seed-0" / name).mkdir(parents=True)
        config = {"base_model_name_or_path": str(base), "r": 8}
        (seed / "models" / "seed-0" / name / "adapter_config.json").write_text(json.dumps(config))
    (seed / "journal.jsonl").write_text("")
    join_runs([seed], tmp_path, [], {})
    models = tmp_path / "models" / "seed-0"
    read = {name: json.loads((models / name / "adapter_config.json").read_text("utf-8")) for name in ("ours", "hub")}
    assert read["ours"] == {"base_model_name_or_path": str(models / "start"), "r": 8}
    assert read["hub"]["base_model_name_or_path"] == "org/model"


def test_existing_seeds_folder_exits_2_and_is_left_alone(repo: Path, tmp_path: Path) -> None:
    errors, out = tmp_path / "err", tmp_path / "run"
    (out / "seeds").mkdir(parents=True)
    (out / "seeds" / "mine").write_text("kept", "utf-8")
    assert begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *SEEDS, "--jobs", "2").wait(100) == 2
    assert "exists already" in errors.read_text("utf-8")
    assert [path.name for path in (out / "seeds").iterdir()] == ["mine"]


def test_judge_budget_with_several_jobs_is_refused(repo: Path, tmp_path: Path) -> None:
    endpoint = 'judge.endpoint={base_url="http://127.0.0.1:9/v1", model="m", budget={requests=5}}'
    options = ("--set", 'judge.kind="endpoint"', "--set", endpoint, "--jobs", "2")
    errors, out = tmp_path / "err", tmp_path / "run"
    assert begin(errors, repo / "recipes" / "tiny.toml", "--out", out, *options).wait(100) == 2
    assert "judge.endpoint.budget: can't be split among processes" in errors.read_text("utf-8")
    assert not out.exists()
