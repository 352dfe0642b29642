"""The same with a vLLM server that was started by somebody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.vllm.server import ServerEngine
from omni_thinker.policy.vllm.worker import EXTENSION
from omni_thinker.protocol import OptimParams
from omni_thinker.recipe import LoraSpec
from omni_thinker.recipe.engines.vllm import VllmSpec
from omni_thinker.types import Group, Mark, SampleRequest, SamplingParams, ThoughtRule
from vllm_models import mismatch, policy_loss, save_small, training_batch, vllm_policy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here: `make test-vllm`"),
]
_PATIENCE_S = 900


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tiny_model, tmp_path_factory.mktemp("llama"), "llama")


def start(model: Path, log: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)),
        *("--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "100000000"),
        *("--max-model-len", "512", "--generation-config", "vllm", *options),
    ]
    switches = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "TORCH_COMPILE_DISABLE": "1"}
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | switches, start_new_session=True
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + _PATIENCE_S
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return server, url
        except OSError:
            time.sleep(1)
    stop(server)
    raise RuntimeError(log.read_text("utf-8", "replace")[-3000:])


def stop(server: subprocess.Popen[bytes]) -> None:
    """It and all that it started, which share a session of their own."""
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    server.wait()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    log = tmp_path_factory.mktemp("server") / "log"
    options = ("--logprobs-mode", "processed_logprobs", "--worker-extension-cls", EXTENSION)
    started, url = start(model, log, *options, "--enable-lora", "--max-lora-rank", "8")
    yield started, url
    stop(started)


def requests(policy: Any, first: int = 0, most: int = 24) -> list[SampleRequest]:
    prompts = [policy.encode_prompt("What is the capital of France? " * (n + 1)) for n in range(3)]
    return [SampleRequest(prompt, most, first + n) for n, prompt in enumerate(prompts)]


# Adapters first: whole weights take the place of those that adapters are added to.
@pytest.mark.parametrize("lora", [LoraSpec(rank=4, alpha=12), None])
def test_server_draws_with_the_weights_of_each_update(
    lora: LoraSpec | None, server: tuple[subprocess.Popen[bytes], str], model: Path
) -> None:
    policy = vllm_policy(model, lora, url=server[1])
    differences, ends = list[float](), list[int]()
    for step in range(5):
        groups = policy.sample(requests(policy, 10 * step), SamplingParams(4, 0.8), lambda place, _: ends.append(place))
        assert {s.version for g in groups for s in g.samples} == {policy.version}
        differences.append(mismatch(policy, groups, 0.8))
        policy.forward_backward(training_batch(groups), policy_loss, temperature=0.8)
        policy.optim_step(OptimParams(3e-3))
    print(f"server {'LoRA' if lora else 'full'}: largest difference by step {[f'{x:.1e}' for x in differences]}")
    assert max(differences) < 1e-3
    assert sorted(ends) == sorted([0, 1, 2] * 5)


def test_adapter_on_other_weights_than_its_own_is_one_line(
    server: tuple[subprocess.Popen[bytes], str], model: Path
) -> None:
    """Whole weights of another study are there."""
    policy = vllm_policy(model, LoraSpec(rank=4), url=server[1])
    with pytest.raises(UserError, match=r"model\.lora: .*other weights than the adapters are trained on"):
        policy.sample(requests(policy), SamplingParams(2))


def test_update_that_a_server_drops_is_noticed(
    server: tuple[subprocess.Popen[bytes], str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = vllm_policy(model, url=server[1])
    engine: Any = policy.sampler.engine  # type: ignore[attr-defined]
    called = engine.call
    monkeypatch.setattr(engine, "call", lambda m, *a: [None] if m == "omni_load" else called(m, *a))
    with pytest.raises(UserError, match="the sampler holds weights of version 0"):
        policy.sample(requests(policy), SamplingParams(2))


def test_stops_and_budgets_of_a_server_are_our_own(server: tuple[subprocess.Popen[bytes], str], model: Path) -> None:
    policy = vllm_policy(model, url=server[1])
    trainer: Any = policy.trainer
    greedy, asked = SamplingParams(2, 0.0), requests(policy, most=40)
    plain = trainer.sample(asked, greedy)
    rule = ThoughtRule(Mark("[", (509,), True), Mark("]", (508,), True), (510, 508, 511), "open", 5)
    stopped = [SampleRequest(r.prompt, 40, r.seed, (plain[0].samples[0].text[9:12],)) for r in asked]
    for some in (asked, stopped, [SampleRequest(r.prompt, 12, r.seed, (), rule) for r in asked]):
        ours, theirs = trainer.sample(some, greedy), policy.sample(some, greedy)
        assert [_shown(group) for group in ours] == [_shown(group) for group in theirs]


def _shown(group: Group) -> list[tuple[object, ...]]:
    return [(s.tokens, s.text, s.stop, s.thoughts) for s in group.samples]


def test_adapter_that_a_server_has_no_room_for_is_one_line(
    server: tuple[subprocess.Popen[bytes], str], model: Path
) -> None:
    with pytest.raises(UserError, match=r"room for adapters of rank 8; .*--max-lora-rank 64"):
        vllm_policy(model, LoraSpec(rank=64), url=server[1])


def test_server_that_dies_in_mid_step_is_one_line(server: tuple[subprocess.Popen[bytes], str], model: Path) -> None:
    """The last of those that need the server."""
    policy = vllm_policy(model, url=server[1])
    asked = [*requests(policy, most=2)[:1], *requests(policy, 9, most=400)]
    with pytest.raises(UserError, match=r"vLLM is gone: .*--resume") as caught:
        policy.sample(asked, SamplingParams(2), lambda place, group: stop(server[0]) if place == 0 else None)
    assert "\n" not in str(caught.value)


def test_server_without_our_class_is_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    plain, url = start(model, tmp_path / "log")
    try:
        with pytest.raises(UserError, match=r"engine\.vllm\.url: .*--worker-extension-cls") as caught:
            ServerEngine(VllmSpec(url=url))
        assert "\n" not in str(caught.value)
    finally:
        stop(plain)
