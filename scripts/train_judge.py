"""Train the built-in judge: a LoRA adapter and a head on the built-in model, from pairs that need no human label.

    .venv/bin/python scripts/train_judge.py --people ../shared/data/judge --out src/omni_thinker/judging/adapter

Samples are kept in --work, so a second run only trains. `--people` holds *.jsonl.gz files of pairs that people have
compared; they are measured on, never trained on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from judge_pairs import KINDS, Drawn, Pair, make_pairs
from judge_requests import write_requests
from omni_thinker.judging.agreement import measure, read_pairs
from omni_thinker.judging.trained import TrainedJudge, caveat, encode, last_hidden
from omni_thinker.models.load import compute_dtype, load_model, load_tokenizer
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec
from omni_thinker.types import Sample, SampleRequest, SamplingParams

VERSION = "judge-v1"
REQUESTS, LONGEST_ANSWER = 900, 80
COOL, HOT = 0.4, 1.15
LEFT_OUT = (14, 20)
"""Layers without which the model still writes fluently, and with less sense."""
RANK, FIRST_LAYER = 16, 12
PAIRS, HELD_OUT, BATCH = 2400, 160, 16
LR, HEAD_LR, STEADY_SHARE = 2e-4, 1e-3, 0.05
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def draw(seed: int) -> list[Drawn]:
    """Answers to all requests: twice at full strength, once hot, once by fewer layers."""
    policy = TorchPolicy(ModelSpec())
    requests = write_requests(REQUESTS, seed)
    columns = [_answers(policy, requests, temperature, seed + n) for n, temperature in enumerate((COOL, COOL, HOT))]
    layers = [layer for number, layer in enumerate(policy.model.model.layers) if number not in LEFT_OUT]
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number
    policy.model.model.layers = torch.nn.ModuleList(layers)
    policy.model.config.num_hidden_layers = len(layers)
    columns.append(_answers(policy, requests, COOL, seed + 3))
    return [Drawn(frame, text, *own) for (frame, text), own in zip(requests, zip(*columns, strict=True), strict=True)]


def _answers(policy: TorchPolicy, requests: Sequence[tuple[int, str]], temperature: float, seed: int) -> list[str]:
    asked = [
        SampleRequest(policy.encode_prompt(text), LONGEST_ANSWER, seed * 1_000_000 + n)
        for n, (_, text) in enumerate(requests)
    ]
    began = time.monotonic()
    groups = policy.sample(asked, SamplingParams(1, temperature))
    print(f"drew {len(groups)} answers in {time.monotonic() - began:.0f} s", flush=True)
    return [_whole(group.samples[0]) for group in groups]


def _whole(sample: Sample) -> str:
    """Up to the last sentence's end where the answer was cut off."""
    text = sample.text.strip()
    end = max(text.rfind(mark) for mark in ".!?\n")
    return text[: end + 1].strip() if sample.stop == "length" and end > 0.4 * len(text) else text


def train(pairs: Sequence[Pair], seed: int) -> tuple[dict[str, torch.Tensor], float]:
    """The adapter's tensors and its scale, by the Bradley-Terry loss."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer("builtin")
    base = load_model("builtin", compute_dtype("auto"))
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=TARGETS,
        layers_to_transform=list(range(FIRST_LAYER, base.config.num_hidden_layers)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    head = torch.nn.Linear(base.config.hidden_size, 1)
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    factors = [param for param in model.parameters() if param.requires_grad]
    masters = [factor.detach().float().clone().requires_grad_() for factor in factors]
    optimizer = torch.optim.AdamW([{"params": masters, "lr": LR}, {"params": head.parameters(), "lr": HEAD_LR}])
    rates = [group["lr"] for group in optimizer.param_groups]
    rows = [tuple(encode(tokenizer, pair.request, text) for text in (pair.better, pair.worse)) for pair in pairs]
    batches = list(_batches([len(better) + len(worse) for better, worse in rows], seed))
    began = time.monotonic()
    losses: list[float] = []
    for step, batch in enumerate(batches):
        share = min(1.0, (step + 1) / 15) * max(STEADY_SHARE, 1 - step / len(batches))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        texts = sorted([(n, side) for n in batch for side in (0, 1)], key=lambda own: len(rows[own[0]][own[1]]))
        halves = (texts[: len(texts) // 2], texts[len(texts) // 2 :])  # short ones aren't padded to the long ones
        found = torch.cat([head(last_hidden(base, [rows[n][side] for n, side in half]))[:, 0] for half in halves])
        score = dict(zip([*halves[0], *halves[1]], found, strict=True))
        lead = torch.stack([score[n, 0] - score[n, 1] for n in batch])
        loss = torch.nn.functional.softplus(-lead).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        for factor, master in zip(factors, masters, strict=True):
            if factor.grad is not None:
                master.grad, factor.grad = factor.grad.float(), None
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for factor, master in zip(factors, masters, strict=True):
                factor.copy_(master)
        losses.append(loss.item())
        if (step + 1) % 10 == 0 or step + 1 == len(batches):
            recent = sum(losses[-10:]) / len(losses[-10:])
            print(f"step {step + 1}/{len(batches)} | loss {recent:.3f} | {time.monotonic() - began:.0f} s", flush=True)
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    tensors = {_plain(name): master.detach().bfloat16() for name, master in zip(names, masters, strict=True)}
    tensors |= {"head.weight": head.weight.detach()[0].clone(), "head.bias": head.bias.detach().clone()}
    return tensors, 2.0


def _batches(lengths: Sequence[int], seed: int) -> Iterator[list[int]]:
    """All once, shuffled; texts of like length together."""
    rng = random.Random(seed)
    order = rng.sample(range(len(lengths)), len(lengths))
    batches = []
    for begin in range(0, len(order), 16 * BATCH):
        part = sorted(order[begin : begin + 16 * BATCH], key=lambda n: lengths[n])
        own = [part[i : i + BATCH] for i in range(0, len(part), BATCH)]
        batches += rng.sample(own, len(own))
    return iter(batches)


def _plain(name: str) -> str:
    """The weight's own name, then lora_A or lora_B."""
    return name.removeprefix("base_model.model.").replace(".default.weight", "")


def held_out(judge: TrainedJudge, pairs: Sequence[Pair]) -> dict[str, float]:
    """The share of pairs of each kind of which the better text scores higher."""
    right: dict[str, list[bool]] = {}
    for pair in pairs:
        better, worse = judge.scores(pair.request, [pair.better, pair.worse])
        right.setdefault(pair.kind, []).append(better > worse)
    return {kind: round(sum(own) / len(own), 3) for kind, own in sorted(right.items())}


def main() -> None:
    """Samples, pairs, training, measuring, card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=Path, required=True, help="folder of *.jsonl.gz pairs to measure on")
    parser.add_argument("--out", type=Path, required=True, help="folder for adapter.safetensors and card.json")
    parser.add_argument("--work", type=Path, default=Path("runs/judge"), help="keeps the samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-measure", action="store_true", help="measure what --out holds; train nothing")
    chosen = parser.parse_args()
    began = time.monotonic()
    drawn = _drawn(chosen.work / f"drawn-{chosen.seed}.json", chosen.seed)
    pairs = make_pairs(drawn, chosen.seed)
    tested, trained = pairs[:HELD_OUT], pairs[HELD_OUT : HELD_OUT + PAIRS]
    if not chosen.only_measure:
        print(f"{len(trained)} pairs to train on, {len(tested)} held out", flush=True)
        tensors, scale = train(trained, chosen.seed)
        chosen.out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, chosen.out / "adapter.safetensors")
        card = {
            "version": VERSION,
            "what": "SmolLM2-135M-Instruct with a LoRA adapter and a scalar head; scores each answer by itself",
            "trained_on": f"{len(trained)} pairs of the model's own texts, lengths matched, no human label",
            "kinds": list(KINDS),
            "licence": "Apache-2.0",
            "scale": scale,
            "minutes_to_make": round((time.monotonic() - began) / 60, 1),
            "held_out_pairs": {},
            "agreement": {},
        }
        _write(chosen.out, card)
    _measure(chosen.out, chosen.people, tested)


def _measure(out: Path, people: Path, tested: Sequence[Pair]) -> None:
    """Fill in the card's figures."""
    card: dict[str, Any] = json.loads((out / "card.json").read_text("utf-8"))
    judge = TrainedJudge(load_model("builtin", compute_dtype("auto")), load_tokenizer("builtin"), 0.0, adapter=out)
    card["held_out_pairs"] = held_out(judge, tested)
    for file in sorted(people.glob("*.jsonl.gz")):
        found = asyncio.run(measure(judge, read_pairs(file)))
        card["agreement"][file.name.removesuffix(".jsonl.gz")] = {
            key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()
        }
        print(file.name, json.dumps(found), flush=True)
        _write(out, card)
    print(caveat(card))


def _write(out: Path, card: dict[str, Any]) -> None:
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")


def _drawn(path: Path, seed: int) -> list[Drawn]:
    if path.is_file():
        return [Drawn(**row) for row in json.loads(path.read_text("utf-8"))]
    drawn = draw(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(own) for own in drawn]), "utf-8")
    return drawn


if __name__ == "__main__":
    main()
