"""A training service with the Tinker API: SkyRL's own server on the tiny model, by `make test-tinker`."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_thinker.baselines.sft import gold_loss
from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.errors import UserError
from omni_thinker.models.load import load_model
from omni_thinker.policy.make import make_policy
from omni_thinker.policy.tinker.losses import SCALES
from omni_thinker.policy.tinker.policy import TinkerPolicy
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import HasForm, OptimParams, TrainGroup
from omni_thinker.recipe import EngineSpec, LoraSpec, ModelSpec, RlSpec
from omni_thinker.recipe.engines.tinker import TinkerSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Group, SampleRequest, SamplingParams
from test_judging_servers import free_port, server

PYTHON = os.environ.get("OMNI_THINKER_TINKER_SERVER", "")
pytestmark = [pytest.mark.tinker, pytest.mark.timeout(1500)]
if not PYTHON:
    pytest.skip("`make test-tinker` names the server's Python", allow_module_level=True)
LAUNCHER = Path(__file__).parents[1] / "scripts" / "skyrl_server.py"
LOSSES = ("grpo", "dapo", "dr_grpo", "cispo")


def command(model: Path, folder: Path, port: int) -> list[str]:
    few = json.dumps({"sample_max_num_sequences": 4, "max_lora_adapters": 32})
    return [
        PYTHON, str(LAUNCHER), str(model), "--port", str(port), "--folder", str(folder), "--backend-config", few
    ]  # fmt: skip


def share_compiled(factory: pytest.TempPathFactory) -> None:
    """Let all servers of a test run share what they compile."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(factory.getbasetemp() / "jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PLATFORMS"] = "cpu"


@pytest.fixture(scope="module")
def service(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinkerSpec]:
    share_compiled(tmp_path_factory)
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    with server(command(tiny_model, folder, port), port, folder / "log", "/api/v1/healthz"):
        yield TinkerSpec(url=f"http://127.0.0.1:{port}", patience_s=300)


def _policy(service: TinkerSpec, model: Path, seed: int = 3) -> TinkerPolicy:
    spec = ModelSpec(name=f"tinker:{model}", lora=LoraSpec(rank=8))
    policy = make_policy(spec, EngineSpec(tinker=service), seed=seed)
    assert isinstance(policy, TinkerPolicy)
    return policy


def _twin(policy: TinkerPolicy, model: Path, folder: Path) -> TorchPolicy:
    """A torch policy with the same factors."""
    policy.export(folder)
    factors = load_file(folder / "adapter_model.safetensors")
    twin = TorchPolicy(ModelSpec(name=str(model), dtype="float32", lora=LoraSpec(rank=8)))
    named = {name.replace(".weight", ".default.weight"): value.contiguous() for name, value in factors.items()}
    save_file(named, folder / "twin.safetensors")
    twin.load_weights(folder / "twin.safetensors")
    return twin


def _groups(policy: TinkerPolicy, count: int = 6, seed: int = 0) -> list[TrainGroup]:
    """Ragged groups of two tasks, with log-probs as of a policy that is some way off."""
    draw = random.Random(seed)
    # Two lengths of answers, and prompts of like length: a server compiles for each.
    prompts = [policy.encode_prompt(f"What is {i}?"[: 5 + i]) for i in range(count)]
    requests = [SampleRequest(prompt, (5, 12)[i % 2], 99 + i) for i, prompt in enumerate(prompts)]
    groups = policy.sample(requests, SamplingParams(4, 1.0))
    return [_training(group, f"task{i % 2}", draw, 4 * count) for i, group in enumerate(groups)]


def _training(group: Group, task: str, draw: random.Random, samples: int) -> TrainGroup:
    moved = [replace(s, logprobs=tuple(x + draw.gauss(0, 0.3) for x in s.logprobs)) for s in group.samples]
    advantages = tuple(draw.uniform(-1, 1) for _ in moved)
    return TrainGroup(task, group.prompt, tuple(moved), advantages, tuple(1 / (samples * s.drawn) for s in moved))


def _loss(name: str) -> HasForm:
    return gold_loss if name == "gold" else make_loss(RlSpec(loss=name))  # type: ignore[arg-type]


def test_losses_log_probs_and_gradients_are_those_of_the_torch_policy(
    service: TinkerSpec, tiny_model: Path, tmp_path: Path, record_property: Any
) -> None:
    policy = _policy(service, tiny_model)
    assert policy._scale == SCALES["mean"], "SkyRL on JAX divides by tokens and sequences"
    twin = _twin(policy, tiny_model, tmp_path)
    groups = _groups(policy)
    apart = (policy.logprobs(groups) - twin.logprobs(groups)).abs().max().item()
    assert apart < 1e-3
    record_property("logprobs", apart)
    for name in (*LOSSES, "gold"):
        theirs, ours = (p.forward_backward(groups, _loss(name)) for p in (policy, twin))
        assert theirs.loss == pytest.approx(ours.loss, abs=1e-3)
        for task, stats in ours.stats.items():
            assert theirs.stats[task].tokens == stats.tokens
            assert theirs.stats[task].clipped == stats.clipped
        assert name == "gold" or ours.stats["task0"].clipped > 0
        # Norms before any clip: the scale of the whole gradient.
        norms = [p.optim_step(OptimParams(lr=0.0, max_grad_norm=1e9)).grad_norm for p in (policy, twin)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
        record_property(name, [theirs.loss - ours.loss, norms[0] / norms[1] - 1])


def test_steps_and_forgotten_moments_are_those_of_the_torch_policy(
    service: TinkerSpec, tiny_model: Path, tmp_path: Path, record_property: Any
) -> None:
    policy = _policy(service, tiny_model)
    twin = _twin(policy, tiny_model, tmp_path)
    batches = [_groups(policy, seed=seed) for seed in range(2)]
    apart = []

    def train(steps: int) -> None:
        for step in range(steps):
            for one in (policy, twin):
                one.forward_backward(batches[step % 2], _loss("grpo"))
                # Our own optimiser would clip the norm, which SkyRL's doesn't.
                one.optim_step(OptimParams(lr=2e-3, weight_decay=0.1, max_grad_norm=1e9))
            apart.append((policy.logprobs(batches[0]) - twin.logprobs(batches[0])).abs().max().item())

    train(3)
    for one in (policy, twin):
        one.save_weights(tmp_path / f"{type(one).__name__}.safetensors")
        one.reset_optimizer()
    train(2)
    for one in (policy, twin):
        one.load_weights(tmp_path / f"{type(one).__name__}.safetensors")
    train(2)
    record_property("apart", apart)
    assert max(apart) < 1e-3, apart


def test_a_state_goes_on_in_a_new_policy_as_if_nothing_had_been(
    service: TinkerSpec, tiny_model: Path, tmp_path: Path
) -> None:
    policy = _policy(service, tiny_model)
    groups = _groups(policy)

    def steps(one: TinkerPolicy, count: int) -> torch.Tensor:
        for _ in range(count):
            one.forward_backward(groups, _loss("grpo"))
            one.optim_step(OptimParams(2e-3))
        return one.logprobs(groups)

    policy.reset_optimizer()
    steps(policy, 2)
    policy.mark_start()
    start_N = policy.logprobs(groups)
    policy.save_state(tmp_path / "state.safetensors")
    end_N = steps(policy, 2)
    assert (end_N - start_N).abs().max() > 1e-2
    assert torch.equal(policy.logprobs(groups, reference=True), start_N)
    other = _policy(service, tiny_model, seed=4)
    assert (other.logprobs(groups) - start_N).abs().max() > 1e-2
    other.load_state(tmp_path / "state.safetensors")
    torch.testing.assert_close(other.logprobs(groups), start_N, rtol=0, atol=1e-6)
    torch.testing.assert_close(steps(other, 2), end_N, rtol=0, atol=1e-5)


def test_an_exported_adapter_is_the_model_that_the_service_has(
    service: TinkerSpec, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    policy = _policy(service, tiny_model)
    groups = _groups(policy)
    policy.forward_backward(groups, _loss("grpo"))
    policy.optim_step(OptimParams(1e-2))
    policy.export(tmp_path)
    model: Any = PeftModel.from_pretrained(load_model(str(tiny_model), torch.float32), str(tmp_path))
    with torch.no_grad():
        local_N = answer_logprobs(model, groups, temperature=1.0, layout="single").logprobs_N
    torch.testing.assert_close(local_N, policy.logprobs(groups), rtol=0, atol=1e-3)


def test_samples_come_with_log_probs_of_the_weights_of_now(service: TinkerSpec, tiny_model: Path) -> None:
    policy = _policy(service, tiny_model)
    groups = _groups(policy)
    for step in range(2):
        policy.forward_backward(groups, _loss("grpo"))
        policy.optim_step(OptimParams(5e-3))
        requests = [SampleRequest(groups[0].prompt, 12, 7 + step, stop=("e",))]
        [drawn] = policy.sample(requests, SamplingParams(4, 1.0))
        one = TrainGroup("a", drawn.prompt, drawn.samples, (1.0,) * 4, (0.25,) * 4)
        said = torch.tensor([x for sample in drawn.samples for x in sample.logprobs])
        torch.testing.assert_close(policy.logprobs([one]), said, rtol=0, atol=1e-3)
        assert all("e" not in sample.text for sample in drawn.samples)


def test_a_model_that_the_service_lacks_is_one_line(service: TinkerSpec, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")  # the service knows the tiny model by its folder
    with pytest.raises(UserError, match="the service has no model 'tiny'; it has") as error:
        make_policy(
            ModelSpec(name="tinker:tiny"), EngineSpec(tinker=service.model_copy(update={"tokenizer": str(other)}))
        )
    assert "\n" not in str(error.value)
