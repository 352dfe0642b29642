"""Studies at a training service: SkyRL's own server on the tiny model, killed and started again in mid-run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from judge_server import JudgeServer
from omni_thinker.policy.make import make_policy
from omni_thinker.recipe import load_recipe
from omni_thinker.rl.difficulty import training_streams
from omni_thinker.rl.loop import Learner
from omni_thinker.studies.setup import prepare
from omni_thinker.types import Group
from test_judging_servers import free_port, server
from test_tinker_server import LAUNCHER, PYTHON, command, share_compiled

pytestmark = [pytest.mark.tinker, pytest.mark.timeout(1800)]
PART = """
from omni_thinker.rewards import SamplePart
from omni_thinker.types import Score


class Vowels(SamplePart):
    async def score_sample(self, sample, problem):
        return Score.of(sum(char in "aeiou" for char in sample.text) / max(1, len(sample.text)))
"""
STUDY = """
name = "served"
model = {{ name = "tinker:{model}", lora = {{ rank = 8 }} }}
engine = {{ tinker = {{ url = "{url}", patience_s = 120 }} }}
warmup = {{ steps = 3, batch = 4, lr = 1e-3, check_every = 3, check_problems = 2 }}
evaluation = {{ validation_problems = 4, test_problems = 4, samples = 1 }}
[rl]
group_size = 4
problems_per_step = 2
lr = 1e-3
refill_rounds = 0
kl_every = 2
[study]
arms = ["start", "curriculum", "joint"]
steps = 4
bootstrap = 50
checkpoint_steps = 1
[tasks.math]
source = "builtin:math"
max_tokens = 12
reward = {{ sum = {{ "python:vowels:Vowels" = 1.0 }} }}
[tasks.qa]
source = "builtin:qa"
max_tokens = 12
reward = {{ sum = {{ "python:vowels:Vowels" = 1.0 }} }}
"""


def _rows(out: Path) -> list[dict[str, Any]]:
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _updates(out: Path, arm: str) -> int:
    """Steps of an arm that had something to teach, by its log."""
    return sum(row["arm"] == arm and "grad_norm" in row["metrics"] for row in _rows(out) if row["kind"] == "train")


def _depths(folder: Path) -> dict[str, int]:
    """Steps that changed weights in the past of every saved state, counted from the requests that the server kept."""
    database = sqlite3.connect(folder / "requests.db")
    asked = database.execute(
        "select request_type, model_id, request_data, status from futures order by request_id"
    ).fetchall()
    now: dict[str, int] = {}
    saved: dict[str, int] = {}
    for kind, model, data, status in asked:
        request = json.loads(data)
        if status.lower() != "completed":
            continue
        if kind.lower() == "optim_step":
            now[model] = now.get(model, 0) + (request["adam_params"]["learning_rate"] > 0)
        elif kind.lower() == "save_weights":
            saved[f"{model}/{request['path']}"] = now.get(model, 0)
        elif kind.lower() == "load_weights":
            now[model] = saved[f"{request['source_model_id']}/{request['checkpoint_id']}"]
    return saved


def _study(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(folder)])}
    started = [sys.executable, "-m", "omni_thinker", "study", *arguments]
    return subprocess.Popen(started, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def _kill_server(folder: Path) -> None:
    """At once, with what computes for it."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        if str(LAUNCHER).encode() in (said := entry.read_bytes()) and str(folder).encode() in said:
            os.killpg(int(entry.parent.name), signal.SIGKILL)


def _wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not what():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.2)


def test_a_server_that_is_killed_in_mid_run_costs_a_resume_and_no_step_is_made_twice(
    tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    share_compiled(tmp_path_factory)
    folder, port = tmp_path / "service", free_port()
    (tmp_path / "vowels.py").write_text(PART)
    (tmp_path / "study.toml").write_text(STUDY.format(model=tiny_model, url=f"http://127.0.0.1:{port}"))
    out, start = tmp_path / "out", command(tiny_model, folder, port)
    with ExitStack() as stack:
        stack.enter_context(server(start, port, tmp_path / "log1", "/api/v1/healthz"))
        study = _study(tmp_path, "study.toml", "--out", "out")
        _wait_for(lambda: any(out.rglob("curriculum.checkpoint.*")), study)
        _kill_server(folder)
        said = study.communicate(timeout=600)[1]
    assert study.returncode == 2, said
    [line] = [line for line in said.splitlines() if line.startswith("omni-thinker: ")]
    assert "the training service failed to" in line
    assert "--resume" in line
    assert "Traceback" not in said
    with server(start, port, tmp_path / "log2", "/api/v1/healthz"):
        study = _study(tmp_path, "out", "--resume")
        said = study.communicate(timeout=1200)[1]
    assert study.returncode == 0, said
    assert (out / "report.html").is_file()
    warmup = sum(row["arm"] == "warmup" and row["kind"] == "warmup" for row in _rows(out))
    assert warmup == 3
    depths = _depths(folder)
    for arm in ("curriculum", "joint"):
        steps = [row["step"] for row in _rows(out) if row["arm"] == arm and row["kind"] == "train"]
        assert steps == sorted(set(steps)), "each step is logged once"
        assert len(steps) == 4
        # The last state is the arm's end, whether it was saved as a checkpoint or as the arm's weights.
        ends = [depth for name, depth in depths.items() if name.partition("/")[2].startswith(f"{arm}-")]
        assert max(ends) == warmup + _updates(out, arm)
        assert _updates(out, arm) >= 2
    assert len({name.partition("/")[0] for name in depths}) == 2, "a second adapter went on with the first one's states"


HYBRID = """
model = {{ name = "tinker:{model}" }}
engine = {{ tinker = {{ url = "{url}" }} }}
rl = {{ group_size = 4, refill_rounds = 0, kl_every = 0 }}
warmup = {{ steps = 0 }}
study = {{ arms = ["joint"] }}
[judge]
kind = "endpoint"
endpoint = {{ base_url = "{judge}", model = "longer", cache = "none" }}
[tasks.math]
source = "builtin:math"
max_tokens = 40
[tasks.coding]
source = "builtin:coding"
max_tokens = 40
[tasks.writing]
source = "builtin:writing"
max_tokens = 40
reward = {{ gate = [], sum = {{ ranking = 1.0 }} }}
"""


def test_verifier_sandbox_and_judge_score_while_the_service_samples(
    tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, record_property: Any
) -> None:
    share_compiled(tmp_path_factory)
    folder, port, judge = tmp_path / "service", free_port(), JudgeServer()
    with server(command(tiny_model, folder, port), port, tmp_path / "log", "/api/v1/healthz"):
        url = f"http://127.0.0.1:{port}"
        (tmp_path / "hybrid.toml").write_text(HYBRID.format(model=tiny_model, url=url, judge=judge.url))
        recipe = load_recipe(tmp_path / "hybrid.toml")
        setup = prepare(recipe)
        policy: Any = make_policy(recipe.model, recipe.engine)
        told, sample = list[float](), policy.sample

        def timed(requests: Any, params: Any, on_group: Any) -> list[Group]:
            def tell(place: int, group: Group) -> None:
                told.append(time.monotonic())
                on_group(place, group)

            return list(sample(requests, params, tell))

        policy.sample = timed
        learner = Learner(policy, recipe.rl, training_streams(setup.pools["train"], 1), setup.rewards, setup.max_tokens)
        result = learner.step({"writing": 6, "coding": 6, "math": 6}, 0)
    judge.close()
    assert PYTHON
    assert len(told) == 18
    # Requests are served four at a time: the first groups are scored while the last are drawn.
    assert any(told[0] <= asked < told[-1] for asked in judge.times), (told, judge.times)
    seconds = {name: result.metrics[f"seconds/{name}"] for name in ("sample", "score", "train")}
    record_property("seconds", seconds)
    assert seconds["score"] < seconds["sample"]
    assert {group.problem.task for group in result.groups} == {"math", "coding", "writing"}
    assert all(score.status == "value" for group in result.groups for score in group.scores)
