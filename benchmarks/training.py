"""Seconds of a training pass (forward and backward): prompts shared within a row against a padded row for each sample.

    python benchmarks/training.py --peer padded --prompts 8 --prompt-tokens 70 --group 8 --completion-tokens 32 --json

The padded rows are the reference that tests compare gradients with: the same model through transformers' own pass, the
same loss, as many rows at once as `--peer-rows`. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import time

import torch

from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.types import Sample
from peers import arguments, compare, finish_side

PASSES = 3


def main() -> None:
    parser = arguments(__doc__, ("padded",))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=70)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--peer-rows", type=int, default=16)
    chosen = parser.parse_args()
    if chosen.side is None:
        names = ("prompts", "prompt_tokens", "group", "completion_tokens", "dtype", "peer_rows")
        compare(chosen, {name: getattr(chosen, name) for name in names})
        return
    policy = TorchPolicy(ModelSpec(name="builtin", dtype=chosen.dtype))
    groups = _groups(chosen)
    seconds = []
    for _ in range(PASSES + 1):
        began = time.perf_counter()
        (_ours if chosen.side == "ours" else _padded)(policy, groups, chosen)
        seconds.append(time.perf_counter() - began)
        policy.reset_optimizer()
    finish_side(seconds[1:])


def _ours(policy: TorchPolicy, groups: list[TrainGroup], chosen: argparse.Namespace) -> None:
    policy.forward_backward(groups, make_loss(RlSpec()))


def _padded(policy: TorchPolicy, groups: list[TrainGroup], chosen: argparse.Namespace) -> None:
    for group in groups:
        for begin in range(0, len(group.samples), chosen.peer_rows):
            samples = group.samples[begin : begin + chosen.peer_rows]
            part = TrainGroup(group.task, group.prompt, samples, (1.0,) * len(samples), (1.0,) * len(samples))
            scored = answer_logprobs(policy.model, [part], temperature=1.0, layout="padded")
            (-scored.logprobs_N.sum() * group.weights[0]).backward()


def _groups(chosen: argparse.Namespace) -> list[TrainGroup]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 40_000, (count,), generator=generator).tolist())

    size, length = chosen.group, chosen.completion_tokens
    weight = 1 / (chosen.prompts * size * length)
    advantages = tuple(1.0 if n % 2 else -1.0 for n in range(size))
    return [
        TrainGroup(
            "t",
            ids(chosen.prompt_tokens),
            tuple(Sample(ids(length), (-8.0,) * length, "", "stop") for _ in range(size)),
            advantages,
            (weight,) * size,
        )
        for _ in range(chosen.prompts)
    ]


if __name__ == "__main__":
    main()
