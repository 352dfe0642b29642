"""Units side by side end as units one after another; kills and signals cost nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.studies.crews.processes import Processes
from omni_thinker.studies.dispatch.crew import Broke, Order, Told
from omni_thinker.studies.units import Unit
from test_faults_study import QUICK, begin, journalled, wait_for
from test_resume import traces

SEEDS = (*QUICK, "--set", "study.seeds=[0, 3]", "--set", "study.steps=8")


def journal(out: Path) -> list[tuple[str, str, str]]:
    """All lines but those of the study, unit by unit."""
    rows = [json.loads(line.partition(" ")[2]) for line in (out / "journal.jsonl").read_text("utf-8").splitlines()]
    return sorted((row["unit"], row["key"], row["kind"]) for row in rows if row["unit"] and row["kind"] != "checkpoint")


def again(out: Path) -> list[str]:
    """Units that were worked on more than once."""
    rows = [json.loads(line.partition(" ")[2]) for line in (out / "journal.jsonl").read_text("utf-8").splitlines()]
    return [row["key"].removeprefix("again ") for row in rows if row["key"].startswith("again ")]


def commands() -> Iterator[Path]:
    """Of all processes: files with their command lines."""
    return Path("/proc").glob("[0-9]*/cmdline")


def at_work(out: Path) -> list[int]:
    """Workers of a run: processes whose log is in its directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        try:
            if path.readlink().parent == out / "workers":
                found.append(int(path.parts[2]))
        except OSError:
            continue
    return found


def uncounted(found: dict[str, Any]) -> dict[str, Any]:
    """Without what the judge has counted so far: over the whole run, in the order that it was worked on."""
    for row in found["metrics"]:
        row["metrics"] = {name: value for name, value in row["metrics"].items() if not name.startswith("judge/")}
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to look for processes in")
@pytest.mark.timeout(600)
def test_parallel_units_killed_and_resumed_end_as_serial_units(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums in another order would be other numbers
    recipe, errors = repo / "recipes" / "tiny.toml", tmp_path / "err"
    calm, out = tmp_path / "calm", tmp_path / "run"
    assert begin(errors, recipe, "--out", calm, *SEEDS).wait(280) == 0, errors.read_text("utf-8")[-2000:]

    process = begin(errors, recipe, "--out", out, *SEEDS, "--jobs", "2")
    wait_for(process, journalled(out, '"kind": "checkpoint"'))
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
    wait_for(process, journalled(out, "train joint"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert begin(errors, out, "--resume").wait(280) == 0, errors.read_text("utf-8")[-2000:]
    assert uncounted(traces(out)) == uncounted(traces(calm))
    assert journal(out) == journal(calm)
    assert not (out / "workers").exists()
    assert begin(errors, out, "--resume", "--jobs", "2").wait(100) == 0
    assert "nothing is left to do" in errors.read_text("utf-8")


@pytest.mark.timeout(200)
def test_failing_unit_exits_2_and_stops_the_others(repo: Path, tmp_path: Path) -> None:
    recipe, errors, out = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "run"
    options = ("--set", "rl.lr=1e30", "--set", "rl.max_grad_norm=1e30", "--jobs", "2")
    assert begin(errors, recipe, "--out", out, *SEEDS, *options).wait(180) == 2
    line = errors.read_text("utf-8").splitlines()[-1]
    assert "ended early" in line
    assert "rl.lr" in line
    assert not at_work(out)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to look for processes in")
@pytest.mark.timeout(280)
def test_killed_worker_costs_its_unit_since_the_last_checkpoint(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe, errors, calm = repo / "recipes" / "tiny.toml", tmp_path / "err", tmp_path / "calm"
    one = (*QUICK, "--set", "study.steps=8")
    assert begin(errors, recipe, "--out", calm, *one).wait(280) == 0, errors.read_text("utf-8")[-2000:]
    for number, words in ((signal.SIGKILL, "killed by SIGKILL"), (signal.SIGTERM, "SystemExit: 143")):
        errors, out = tmp_path / f"{number} err", tmp_path / f"{number} run"
        process = begin(errors, recipe, "--out", out, *one, "--jobs", "2")
        wait_for(process, journalled(out, '"key": "0 train joint", "kind": "checkpoint"'))
        for worker in at_work(out):
            os.kill(worker, number)
        assert process.wait(200) == 0, errors.read_text("utf-8")[-2000:]
        assert words in errors.read_text("utf-8")
        assert "attempt 3" not in errors.read_text("utf-8"), "a worker that ends was handed another order"
        assert "0 joint" in again(out), "it was made again"
        assert uncounted(traces(out)) == uncounted(traces(calm))


def test_what_a_worker_failed_with_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statistics.py").write_text("raise RuntimeError('not that of Python')", "utf-8")
    monkeypatch.chdir(tmp_path)  # whose files stand in for nothing
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "1.log").write_text("of a life before\n", "utf-8")
    hello = {"run": str(tmp_path), "problems": {}, "recipe": {}, "judged": False, "weak": False}
    crew, unit = Processes(hello, tmp_path, 1), Unit(0, "start", "start")
    crew.start(Order(unit, 1, (), {}))
    told = list[Told]()
    while not told:
        told = crew.wait()
    crew.close()
    assert isinstance(told[0].message, Broke)
    assert told[0].message.final is None
    assert "ended with code 1; omni_thinker.errors.UserError" in told[0].message.why


def test_workers_are_spread_evenly_over_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    crew, taken = Processes({}, tmp_path, 4), list[str]()
    for _ in range(4):
        taken.append(crew.next_device(taken))
    assert taken == ["4", "6", "4", "6"]
    assert crew.next_device(["4", "6", "4"]) == "6", "in the place of a worker that was lost"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert not Processes({}, tmp_path, 3).next_device([])
