"""Whole studies with vLLM as the sampler, run by the command as users do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from vllm_models import VLLM, save_small

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: `make test-vllm`"),
]
_PATIENCE_S = 1200


def recipe(model: str, **tables: dict[str, Any]) -> dict[str, Any]:
    """Two tasks, whose programs are run in the sandbox, and a few short steps."""
    task = {"difficulty": 0, "train": 16, "validation": 4, "test": 4}
    return {
        "name": "vllm",
        "model": {"name": model, "dtype": "float32"},
        "engine": {"sampler": "vllm", "vllm": VLLM},
        "tasks": {
            "math": {"source": "builtin:math", "max_tokens": 8, **task},
            "coding": {"source": "builtin:coding", "max_tokens": 24, **task},
        },
        "warmup": {"steps": 2, "batch": 4, "check_every": 2, "check_problems": 2},
        "rl": {"group_size": 4, "problems_per_step": 2, "refill_rounds": 0, "kl_every": 0, "lr": 1e-4},
        "evaluation": {"validation_problems": 2, "test_problems": 2, "samples": 1, "temperature": 0.7, "top_p": 0.9},
        "study": {"steps": 2, "arms": ["start", "joint"], "bootstrap": 100, "checkpoint_steps": 1},
    } | tables


def command(file: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "omni_thinker", "study", str(file), "--out", str(out)]


def steps(out: Path) -> list[dict[str, Any]]:
    file = out / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    return [row["metrics"] for row in rows if row["kind"] == "train"]


def engines(session: int) -> list[int]:
    """Engines among the processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = os.getsid(int(folder.name)) == session
            title = (folder / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if own and b"EngineCore" in title:
            found.append(int(folder.name))
    return found


def test_study_of_two_tasks_on_the_builtin_model_runs_to_its_end(builtin_model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.toml", tmp_path / "run"
    study = {"steps": 2, "arms": ["start", "single", "curriculum", "joint"], "bootstrap": 100}
    file.write_text(tomli_w.dumps(recipe("builtin", study=study)), "utf-8")
    done = subprocess.run(command(file, out), capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").exists()
    trained = steps(out)
    assert len(trained) >= 8
    mismatches = [row["mismatch_abs/all"] for row in trained if "mismatch_abs/all" in row]
    print("mean mismatch by step", mismatches)
    assert all(value < 1e-3 for value in mismatches)
    versions = [row["weights_version/all"] for row in trained]
    assert versions == sorted(versions)
    assert all({"seconds/sample", "seconds/score"} <= row.keys() for row in trained)
    assert all(line.startswith("[") for line in done.stderr.splitlines()), "what the engine says is in its log"


def test_engine_that_dies_in_mid_step_is_one_line_and_resume_finishes(tiny_model: Path, tmp_path: Path) -> None:
    model = save_small(tiny_model, tmp_path / "llama", "llama")
    file, out = tmp_path / "recipe.toml", tmp_path / "run"
    study = {"steps": 30, "arms": ["start", "joint"], "bootstrap": 100, "checkpoint_steps": 1}
    file.write_text(tomli_w.dumps(recipe(str(model), study=study)), "utf-8")
    with (tmp_path / "err").open("w+b") as err:
        running = subprocess.Popen(command(file, out), stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)
        end = time.monotonic() + _PATIENCE_S
        while len(steps(out)) < 3 and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        before = len(steps(out))
        [core] = engines(running.pid)  # in a process of its own
        os.kill(core, signal.SIGKILL)
        assert running.wait(300) == 2
        err.seek(0)
        lines = err.read().decode("utf-8").splitlines()
    said = [line for line in lines if not line.startswith("[")]
    assert len(said) == 1, said
    assert "engine.sampler: vLLM is gone: its process ended, by signal 9" in said[0]
    assert 3 <= before < 30
    again = [sys.executable, "-m", "omni_thinker", "study", str(out), "--resume"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert len(steps(out)) == 30
    assert "resumed" in done.stderr
