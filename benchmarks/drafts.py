"""How much of an answer a policy would draw again, with the same random numbers, a few updates later.

    python benchmarks/drafts.py --tokens 256 --updates 0 1 2 4 8 16 --json

An answer of an earlier policy is a draft of a later one's. As long as both draw the same tokens, one pass over the
draft could stand for decoding. Sampled are 8 prompts of 4 answers that never end, then RL steps are made at the
quickstart's learning rate (8 prompts of 8 answers of 32 tokens; the reward counts a letter), then the same answers are
drawn again.

drawn: share of tokens before the first one that differs, as it happened. inverse: the share that is expected of drawing
by the cumulative sum, as ours does, from both policies' probabilities at every place of the drafts. best: the share
that no way of drawing the later policy's answers exactly can exceed (its tokens agree with probability 1 - total
variation, the acceptance of arXiv 2211.17192). differing: mean total variation of a token, in thousandths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OptimParams, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.runs.machine import machine
from omni_thinker.types import Group, SampleRequest, SamplingParams
from peers import prompts

LR = 1e-5
_ENDLESS = frozenset([-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 1, 2, 4, 8, 16])
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    policy = TorchPolicy(ModelSpec(name="builtin", dtype=chosen.dtype))
    policy.stop_ids = _ENDLESS
    texts = [text for text, _ in prompts(8, 70, policy.tokenizer)]
    drafts = draw(policy, texts, chosen.tokens, 4, chosen.temperature)
    before = _logits(policy, drafts, chosen.temperature)
    rows, done = [], 0
    for updates in sorted(chosen.updates):
        while done < updates:
            update(policy, texts, done)
            done += 1
        again = draw(policy, texts, chosen.tokens, 4, chosen.temperature)
        row = {"updates": updates, "drawn": _kept(drafts, again)}
        row |= _expected(before, _logits(policy, drafts, chosen.temperature), drafts)
        rows.append(row)
        print("  ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    if chosen.json:
        about = machine()
        settings = {"tokens": chosen.tokens, "dtype": str(policy.model.dtype), "temperature": chosen.temperature}
        print(json.dumps({**settings, "cpu": about.cpu, "rows": rows}))


def draw(policy: TorchPolicy, texts: Sequence[str], tokens: int, samples: int, temperature: float) -> list[Group]:
    """The same answers at every call, but for the policy."""
    requests = [SampleRequest(policy.encode_prompt(text), tokens, place) for place, text in enumerate(texts)]
    return policy.sample(requests, SamplingParams(samples, temperature=temperature))


def update(policy: TorchPolicy, texts: Sequence[str], step: int) -> None:
    """A GRPO step towards answers with many letters e."""
    requests = [SampleRequest(policy.encode_prompt(text), 32, 1000 * (step + 1) + n) for n, text in enumerate(texts)]
    groups = policy.sample(requests, SamplingParams(8))
    batch = []
    for request, group in zip(requests, groups, strict=True):
        rewards = torch.tensor([float(sample.text.count("e")) for sample in group.samples])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        weight = 1 / (8 * 8 * 32)
        batch.append(TrainGroup("t", request.prompt, tuple(group.samples), tuple(advantages.tolist()), (weight,) * 8))
    policy.forward_backward(batch, make_loss(RlSpec()))
    policy.optim_step(OptimParams(LR))


@torch.no_grad()
def _logits(policy: TorchPolicy, drafts: Sequence[Group], temperature: float) -> list[torch.Tensor]:
    """Probabilities at every place of every draft, [tokens, vocabulary] each."""
    found = []
    for group in drafts:
        for sample in group.samples:
            ids = torch.tensor([[*group.prompt, *sample.tokens]])
            logits = policy.model(ids).logits[0, len(group.prompt) - 1 : -1].float() / temperature
            found.append(logits.softmax(-1))
    return found


def _kept(drafts: Sequence[Group], again: Sequence[Group]) -> float:
    """Mean share of tokens before the first that differs."""
    shares = []
    for old, new in zip(drafts, again, strict=True):
        for one, other in zip(old.samples, new.samples, strict=True):
            alike = [a == b for a, b in zip(one.tokens, other.tokens, strict=True)]
            shares.append((alike.index(False) if False in alike else len(alike)) / len(alike))
    return sum(shares) / len(shares)


def _expected(
    before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], drafts: Sequence[Group]
) -> dict[str, float]:
    """Expected shares by two ways of drawing, and the mean total variation."""
    tokens = [sample.tokens for group in drafts for sample in group.samples]
    shares: dict[str, list[float]] = {"inverse": [], "best": [], "differing": []}
    for p, q, drawn in zip(before, after, tokens, strict=True):
        at = torch.tensor(drawn)[:, None]
        own, other = p.gather(1, at)[:, 0], q.gather(1, at)[:, 0]
        top_p, top_q = p.cumsum(-1).gather(1, at)[:, 0], q.cumsum(-1).gather(1, at)[:, 0]
        shared = torch.minimum(top_p, top_q) - torch.maximum(top_p - own, top_q - other)
        inverse = (shared.clamp(min=0) / own).clamp(max=1)
        best = (other / own).clamp(max=1)
        for name, agree in (("inverse", inverse), ("best", best)):
            shares[name].append(float(agree.cumprod(0).mean()))
        shares["differing"].append(1000 * float(0.5 * (p - q).abs().sum(-1).mean()))
    return {name: sum(own) / len(own) for name, own in shares.items()}


if __name__ == "__main__":
    main()
