"""Five steps of sampling and training give what they gave before tokens were shared, batched and ordered for speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OptimParams, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Group, SampleRequest, SamplingParams

RECORDED = Path(__file__).with_name("five-steps.json")
"""What commit 9b8a2db gives."""
PROMPTS = ["Add 2 and 3.", "Add 2 and 35.", "Name a bird that cannot fly.", "Name a bird."]
GROUP, TEMPERATURE = 6, 1.0
MOST_ALIKE = 0.97
"""Share of the samples that are the recorded ones: all on the kind of processor that they were recorded on."""


def five_steps(policy: Any, folder: Path, known: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Samples and updates of a policy whose weights are numbers from a generator that is the same everywhere.

    known: of each step the tokens of all samples, which are trained on in place of those that were drawn. A draw at the
    edge between two tokens falls to the other one on another kind of processor."""
    path = folder / "weights.safetensors"
    policy.save_weights(path)
    weights, rng = load_file(path), np.random.default_rng(0)
    for name, weight in sorted(weights.items()):
        noise = torch.from_numpy(rng.standard_normal(weight.numel())).view(weight.shape)
        size = 1.0 if "embed" in name or "lm_head" in name else 0.2
        weights[name] = (1 + 0.1 * noise if weight.dim() == 1 else size * noise).float()
    save_file(weights, path)
    policy.load_weights(path)
    steps = []
    for step in range(5):
        requests = [SampleRequest(policy.encode_prompt(p), 6 + 3 * n, 10 * step + n) for n, p in enumerate(PROMPTS)]
        groups = drawn = policy.sample(requests, SamplingParams(GROUP, TEMPERATURE))
        if known:
            groups = [_with_tokens(policy, *each) for each in zip(groups, known[step], strict=True)]
        batch = [_trained(group, f"task {n // 2}") for n, group in enumerate(groups)]
        report = policy.forward_backward(batch, make_loss(RlSpec()), temperature=TEMPERATURE)
        optim = policy.optim_step(OptimParams(1e-3))
        steps.append(
            {
                "tokens": [[list(sample.tokens) for sample in group.samples] for group in drawn],
                "logprobs": [round(sum(sample.logprobs), 5) for group in groups for sample in group.samples],
                "loss": report.loss,
                "grad_norm": optim.grad_norm,
                "sketches": {task: float(sketch.norm()) for task, sketch in report.sketches.items()},
            }
        )
    policy.save_weights(path)
    steps.append({"weights": {name: float(w.double().square().sum()) for name, w in load_file(path).items()}})
    return steps


def _with_tokens(policy: Any, group: Group, known: Sequence[Sequence[int]]) -> Group:
    """The group with these tokens; log-probs of others than were drawn are the trainer's."""
    samples = []
    for sample, tokens in zip(group.samples, known, strict=True):
        if list(sample.tokens) != tokens:
            sample = replace(sample, tokens=tuple(tokens), logprobs=(0.0,) * len(tokens))
            alone = _trained(replace(group, samples=(sample,)), "other")
            logprobs = policy.logprobs([alone], temperature=TEMPERATURE)
            sample = replace(sample, logprobs=tuple(logprobs.tolist()))
        samples.append(sample)
    return replace(group, samples=tuple(samples))


def _trained(group: Group, task: str) -> TrainGroup:
    """An advantage for even sums of tokens."""
    advantages = tuple(1.0 if sum(sample.tokens) % 2 == 0 else -0.5 for sample in group.samples)
    return TrainGroup(task, tuple(group.prompt), group.samples, advantages, (1 / 64,) * len(advantages))


def test_five_steps_equal_those_of_earlier_code(tiny_model: Path, tmp_path: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32", device="cpu"))
    *known, known_end = json.loads(RECORDED.read_text("utf-8"))
    *steps, end = five_steps(policy, tmp_path, [step["tokens"] for step in known])
    drawn, same = 0, 0
    for step, expected in zip(steps, known, strict=True):
        for own, recorded in zip(step["tokens"], expected["tokens"], strict=True):
            drawn += len(own)
            same += sum(ours == theirs for ours, theirs in zip(own, recorded, strict=True))
        for key in ("logprobs", "loss", "grad_norm", "sketches"):
            assert step[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-4), key
    assert same >= MOST_ALIKE * drawn, f"{drawn - same} of {drawn} samples are others"
    assert end["weights"] == pytest.approx(known_end["weights"], rel=1e-5)


def test_many_tokens_of_the_five_steps_are_shared() -> None:
    """Else the test above would say nothing about it."""
    shared = total = 0
    for step in json.loads(RECORDED.read_text("utf-8"))[:-1]:
        for group in step["tokens"]:
            beginnings = {tuple(tokens[: n + 1]) for tokens in group for n in range(len(tokens))}
            total += sum(map(len, group))
            shared += sum(map(len, group)) - len(beginnings)
    assert shared > total / 5
