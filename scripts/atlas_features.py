"""What is known of an atlas's tasks before any run, for the page's table of who helps whom.

    python scripts/atlas_features.py docs/studies/atlas/pool.toml --out docs/studies/atlas/features.json

Of each task: tokens of a prompt and of a gold answer, over training problems. Of each pair: the cosine of the mean last
hidden states of their prompts, and that of the gradients of their gold answers, both of the bare model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from omni_thinker.baselines.sft import gold_batch, gold_loss
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import load_recipe
from omni_thinker.studies.setup import prepare
from omni_thinker.types import Problem, TaskName


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=32, help="training problems of each task")
    chosen = parser.parse_args()
    pool = load_recipe(chosen.pool, [])
    problems = {task: own[: chosen.problems] for task, own in prepare(pool).pools["train"].items()}
    policy = TorchPolicy(pool.model)
    chosen.out.write_text(json.dumps(features(policy, problems), indent=1) + "\n", "utf-8")


def features(policy: TorchPolicy, problems: Mapping[TaskName, Sequence[Problem]]) -> dict[str, dict[str, object]]:
    """`tasks`: numbers of each task by the feature's name. `pairs`: numbers of each pair, [trained][evaluated]."""
    lengths: dict[str, dict[TaskName, float]] = {"prompt tokens": {}, "answer tokens": {}}
    states, gradients = dict[TaskName, torch.Tensor](), dict[TaskName, torch.Tensor]()
    for task, own in problems.items():
        batch = gold_batch(policy, own)
        lengths["prompt tokens"][task] = fmean(len(group.prompt) for group in batch)
        lengths["answer tokens"][task] = fmean(group.tokens for group in batch)
        states[task] = torch.stack([_state(policy, group.prompt) for group in batch]).mean(dim=0)
        policy.forward_backward(batch, gold_loss)
        gradients[task] = policy.sketch_gradient(0)[0]
    pairs = {"prompts' hidden states": cosines(states), "gold answers' gradients": cosines(gradients)}
    return {"tasks": dict(lengths), "pairs": dict(pairs)}


def cosines(vectors: Mapping[TaskName, torch.Tensor]) -> dict[TaskName, dict[TaskName, float]]:
    """Of each pair, once the mean of all is taken away: what all tasks share tells none apart."""
    mean = torch.stack(list(vectors.values())).mean(dim=0)
    own = {task: (vector - mean) / (vector - mean).norm().clamp(min=1e-12) for task, vector in vectors.items()}
    return {i: {j: float(one @ other) for j, other in own.items()} for i, one in own.items()}


@torch.no_grad()
def _state(policy: TorchPolicy, prompt: Sequence[int]) -> torch.Tensor:
    """The last hidden state at the end of a prompt."""
    out = policy.model(torch.tensor([list(prompt)]), output_hidden_states=True)
    state: torch.Tensor = out.hidden_states[-1][0, -1].double()
    return state


if __name__ == "__main__":
    main()
