"""Studies of a shared model: under torchrun, with ranks of their own, and when a rank is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
name = "shared"
[model]
name = "tiny"
dtype = "float32"
{tasks}
[warmup]
steps = 0
check_problems = 2
[rl]
group_size = 4
problems_per_step = 4
lr = 1e-4
refill_rounds = 0
kl_every = 2
[evaluation]
validation_problems = 4
test_problems = 4
samples = 2
keep_samples = 1
[study]
steps = 8
arms = {arms}
checkpoint_steps = 1
bootstrap = 50
"""
TASK = """
[tasks.{name}]
source = "jsonl"
files = ["{file}"]
max_tokens = {tokens}
reward = {{ gate = [], sum = {{ "python:fsdp_parts:Letters" = 1.0 }} }}
"""
CURRICULUM = '["start", "single", "curriculum", "joint", "merge"]'


def recipe(folder: Path, arms: str) -> Path:
    """Two tasks whose rewards a random model gets in part."""
    tasks = []
    for name, tokens in (("short", 5), ("long", 9)):
        rows = [
            {"id": f"{name} {split} {n}", "prompt": f"{name} {split} {n} " * (1 + n % 3), "split": split}
            for split, count in (("train", 16), ("validation", 4), ("test", 4))
            for n in range(count)
        ]
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        tasks.append(TASK.format(name=name, file=file, tokens=tokens))
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(tasks="".join(tasks), arms=arms), "utf-8")
    return path


def environment() -> dict[str, str]:
    tests = Path(__file__).parent
    paths = [str(tests.parent / "src"), str(tests), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(*arguments: object, stderr: Path, torchrun: int = 0) -> subprocess.Popen[bytes]:
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}"] if torchrun else []
    command = [sys.executable, *launch, "-m", "omni_thinker", "study", *map(str, arguments)]
    with stderr.open("ab") as stream:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, env=environment())


def ranks(count: int) -> list[str]:
    return ["--set", 'engine.trainer="fsdp"', "--set", f"engine.fsdp.ranks={count}"]


def wait_for_step(out: Path, process: subprocess.Popen[bytes], step: int) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until and process.poll() is None:
        names = [path.name.split(".") for path in out.glob("models/**/joint.checkpoint.*.state")]
        if any(int(parts[2]) >= step for parts in names):
            return
        time.sleep(0.02)
    raise AssertionError("the study ended, or hung, before it came to be killed")


def followers(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Rank to process id of what a process started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                values = dict(e.split("=", 1) for e in (folder / "environ").read_text().split("\0") if "=" in e)
                if "RANK" in values and "WORLD_SIZE" in values:
                    found[int(values["RANK"])] = int(folder.name)
        except OSError:
            continue
    return found


def said(log: Path) -> list[str]:
    """Lines for the user, without those of progress."""
    return [line for line in log.read_text("utf-8").splitlines() if line.startswith("omni-thinker: ")]


def outcome(out: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """The weights that each arm ended with, and its scores."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted((out / "models").rglob("model.safetensors")):
        weights |= {f"{file.parent.name} {name}": tensor for name, tensor in load_file(file).items()}
    return weights, json.loads((out / "scores.json").read_text("utf-8"))


def assert_same(out: Path, expected: Path) -> None:
    (weights, scores), (others, other_scores) = outcome(out), outcome(expected)
    assert scores == other_scores
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


@pytest.mark.timeout(600)
def test_study_whose_rank_was_killed_resumes_on_any_number_of_ranks_to_the_same_end(tmp_path: Path) -> None:
    file, alone, shared = recipe(tmp_path, '["start", "joint"]'), tmp_path / "alone", tmp_path / "shared"
    one = start(file, "--out", alone, stderr=tmp_path / "alone.log")
    two = start(file, "--out", shared, *ranks(2), stderr=tmp_path / "shared.log")
    wait_for_step(shared, two, 2)
    os.kill(followers(two)[1], signal.SIGKILL)
    assert two.wait(timeout=60) == 1
    assert said(tmp_path / "shared.log") == [
        "omni-thinker: rank 1 of 2 was killed by SIGKILL; once that is fixed, resume with "
        f"`omni-thinker study {shared} --resume`"
    ]
    assert one.wait(timeout=200) == 0
    for count in (1, 2, 4):
        copy = tmp_path / f"on-{count}"
        shutil.copytree(shared, copy)
        log = tmp_path / f"{count}.log"
        assert start(copy, "--resume", *ranks(count)[2:], stderr=log).wait(timeout=200) == 0, log.read_text("utf-8")
        assert_same(copy, alone)


@pytest.mark.timeout(600)
def test_curriculum_study_under_torchrun_ends_as_one_process_does(tmp_path: Path) -> None:
    file, alone, shared = recipe(tmp_path, CURRICULUM), tmp_path / "alone", tmp_path / "shared"
    two = start(file, "--out", shared, stderr=tmp_path / "shared.log", torchrun=2)
    assert two.wait(timeout=300) == 0, (tmp_path / "shared.log").read_text("utf-8")
    assert "trainer fsdp: torchrun started 2 processes" in (tmp_path / "shared.log").read_text("utf-8")
    assert start(file, "--out", alone, stderr=tmp_path / "alone.log").wait(timeout=200) == 0
    assert_same(shared, alone)
    assert (shared / "report.html").is_file()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("killed", [0, 1])
def test_rank_killed_under_torchrun_ends_all_with_one_line(killed: int, tmp_path: Path) -> None:
    file, out, log = recipe(tmp_path, '["start", "joint"]'), tmp_path / "out", tmp_path / "log"
    run = start(file, "--out", out, stderr=log, torchrun=2)
    wait_for_step(out, run, 1)
    of_rank = followers(run)
    os.kill(of_rank[killed], signal.SIGKILL)
    assert run.wait(timeout=60) != 0
    lines = said(log)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"omni-thinker: rank {killed} of 2 ended early; ")
    assert not Path(f"/proc/{of_rank[1 - killed]}").exists()


def test_other_commands_and_refused_recipes_under_torchrun_end_all_ranks(tmp_path: Path) -> None:
    file = recipe(tmp_path, '["start", "joint"]')
    dry = start(file, "--dry-run", stderr=tmp_path / "dry.log", torchrun=2)
    assert dry.wait(timeout=100) == 0, (tmp_path / "dry.log").read_text("utf-8")
    log = tmp_path / "torch.log"
    refused = start(file, "--out", tmp_path / "out", "--set", 'engine.trainer="torch"', stderr=log, torchrun=2)
    assert refused.wait(timeout=100) != 0
    assert [line.partition("engine.")[2] for line in said(log)] == [
        "trainer: 'torch' is one process, but torchrun started 2"
    ]
