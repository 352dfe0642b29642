"""Everything that is to be measured on a GPU, in one call that ends with one JSON file.

    python benchmarks/gpu.py --model builtin --out gpu.json [--trl]

First what must hold (packed rows against padded rows with their gradients, the recorded decoding step against the
model's own pass, sampler against trainer), then seconds: sampling against transformers' `generate`, a training pass
against padded rows, whole GRPO steps, and those of TRL where it is installed. Results are written after each part, so
what was measured before a machine went away is kept. Without a GPU the same runs on a CPU with a small random model
(`--model tiny`), to see that the script is complete; such numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import training
from omni_thinker.engine.logprobs import answer_logprobs, layouts
from omni_thinker.models.load import compute_device
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.runs.machine import machine
from omni_thinker.sampling.decoders.base import MaskedDecoder
from omni_thinker.sampling.loop import fastest_decoder, sample_groups
from omni_thinker.types import Group, SampleRequest, SamplingParams
from peers import prompts

NO_STOPS = frozenset([-1])


class Report:
    """Results by part, on disk after each."""

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.out, self.results = out, head

    def part(self, name: str, run: Callable[[], Any]) -> None:
        began = time.perf_counter()
        try:
            found = run()
        except Exception as exc:  # the others may still be measured
            found = {"error": f"{type(exc).__name__}: {exc}"[:500], "where": traceback.format_exc()[-2000:]}
        self.results[name] = found
        self.out.write_text(json.dumps(self.results, indent=1) + "\n", "utf-8")
        print(f"{name} ({time.perf_counter() - began:.1f} s): {json.dumps(found)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--small", action="store_true", help="sizes that a CPU does in a minute")
    parser.add_argument("--trl", action="store_true", help="GRPO steps of TRL too (the built-in model)")
    chosen = parser.parse_args()
    device = compute_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = Report(chosen.out, {"device": name, "model": chosen.model, "machine": asdict(machine())})
    sizes = [(2, 20, 4, 8)] if chosen.small else [(8, 70, 8, 32), (4, 300, 16, 32), (32, 256, 16, 256)]

    exact = TorchPolicy(ModelSpec(name=chosen.model, dtype="float32"))
    report.part("gradients, fp32, packed against padded", lambda: gradients(exact))
    report.part("decoding, fp32, against the model's own", lambda: decoding(exact))
    report.part("sampler against trainer, fp32", lambda: mismatch(exact))
    exact.model.to("cpu")
    _free()
    policy = TorchPolicy(ModelSpec(name=chosen.model, dtype="bfloat16"))
    report.part("sampler against trainer, bf16", lambda: mismatch(policy))
    for sequences in (16,) if chosen.small else (64, 256, 1024):
        tokens = 8 if chosen.small else 128
        report.part(f"sampling, {sequences} sequences", lambda n=sequences, t=tokens: sampling(policy, n, t))
    for size in sizes:
        report.part("training, " + _named(size), lambda size=size: training_pass(policy, *size))
        _free()
    policy.model.to("cpu")
    _free()
    for size in sizes:
        report.part("GRPO step, " + _named(size), lambda size=size: grpo_step("ours", chosen.model, size))
        if chosen.trl:
            report.part("GRPO step of TRL, " + _named(size), lambda size=size: grpo_step("peer", chosen.model, size))


def gradients(policy: TorchPolicy) -> dict[str, float]:
    """Largest difference of a parameter's gradient, relative to its largest entry."""
    groups = _ragged(policy)
    found = []
    for layout in (layouts(policy.model)[0], layouts(policy.model)[-2]):
        policy.model.zero_grad()
        policy.reset_optimizer()
        answer_logprobs(policy.model, groups, temperature=1.0, layout=layout).logprobs_N.sum().backward()
        found.append([master.grad.clone() for master in policy._masters if master.grad is not None])
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in zip(*found, strict=True))
    policy.reset_optimizer()
    return {"worst_relative": worst}


def decoding(policy: TorchPolicy) -> dict[str, Any]:
    """Share of samples that are the same by the fastest decoder and by the model's own pass."""
    requests = _requests(policy, 6, 40, 24)
    kinds = (fastest_decoder(policy.model), MaskedDecoder)
    drawn = [
        sample_groups(policy.model, requests, SamplingParams(4), policy.stop_ids, policy.decode, decoder=kind)
        for kind in kinds
    ]
    pairs = [(a, b) for g, h in zip(*drawn, strict=True) for a, b in zip(g.samples, h.samples, strict=True)]
    same = [(a, b) for a, b in pairs if a.tokens == b.tokens]
    worst = max((abs(x - y) for a, b in same for x, y in zip(a.logprobs, b.logprobs, strict=True)), default=0.0)
    return {"decoder": kinds[0].__name__, "same": len(same) / len(pairs), "worst_logprob_difference": worst}


def mismatch(policy: TorchPolicy) -> dict[str, float]:
    """Mean |sampler's - trainer's log-prob|, nats."""
    drawn = policy.sample(_requests(policy, 8, 60, 32), SamplingParams(8))
    groups = [_group(own) for own in drawn]
    ours = policy.logprobs(groups).float().cpu()
    theirs = torch.tensor([x for own in drawn for s in own.samples for x in s.logprobs])
    return {"mean": float((ours - theirs).abs().mean()), "max": float((ours - theirs).abs().max())}


def sampling(policy: TorchPolicy, sequences: int, tokens: int) -> dict[str, float]:
    """Tokens a second, ours and `generate`'s."""
    from transformers import GenerationConfig

    requests = _requests(policy, sequences // 8, 70, tokens)

    def ours() -> None:
        sample_groups(policy.model, requests, SamplingParams(8), NO_STOPS, policy.decode)

    width = max(len(request.prompt) for request in requests)
    ids = torch.tensor([[0] * (width - len(r.prompt)) + list(r.prompt) for r in requests], device=policy.model.device)
    seen = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in requests], device=ids.device)
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=True, top_k=0, num_return_sequences=8, eos_token_id=None, pad_token_id=0
    )

    @torch.inference_mode()
    def theirs() -> None:
        policy.model.generation_config = config
        policy.model.generate(input_ids=ids, attention_mask=seen, generation_config=config)  # type: ignore[operator]

    own, other = _seconds(ours), _seconds(theirs)
    count = sequences * tokens
    return {"ours": count / own, "generate": count / other, "ratio": other / own, "peak_gb": _peak()}


def training_pass(policy: TorchPolicy, count: int, prompt: int, size: int, length: int) -> dict[str, float]:
    """Seconds of a forward and backward pass, ours and over padded rows."""
    named = argparse.Namespace(prompts=count, prompt_tokens=prompt, group=size, completion_tokens=length, peer_rows=16)
    groups = [_fit(group, policy) for group in training._groups(named)]
    loss = make_loss(RlSpec())

    def ours() -> None:
        policy.forward_backward(groups, loss)

    own = _seconds(ours)
    peak = _peak()
    other = _seconds(lambda: training._padded(policy, groups, named))
    policy.reset_optimizer()
    return {"ours": own, "padded": other, "ratio": other / own, "peak_gb": peak, "padded_peak_gb": _peak()}


def grpo_step(side: str, model: str, size: tuple[int, int, int, int]) -> Any:
    """What benchmarks/grpo_step.py measures, in a process of its own."""
    import subprocess
    import sys

    names = ("--prompts", "--prompt-tokens", "--group", "--completion-tokens")
    options = [text for name, value in zip(names, size, strict=True) for text in (name, str(value))]
    command = [
        sys.executable,
        str(Path(__file__).with_name("grpo_step.py")),
        "--side",
        side,
        "--model",
        model,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    return json.loads(done.stdout.splitlines()[-1])


def _requests(policy: TorchPolicy, count: int, prompt: int, tokens: int) -> list[SampleRequest]:
    made = prompts(count, prompt, policy.tokenizer)
    return [SampleRequest(policy.encode_prompt(text), tokens, n) for n, (text, _) in enumerate(made)]


def _ragged(policy: TorchPolicy) -> list[TrainGroup]:
    drawn = policy.sample(_requests(policy, 3, 40, 12), SamplingParams(3))
    return [_group(own) for own in drawn]


def _group(drawn: Group) -> TrainGroup:
    ones = (1.0,) * len(drawn.samples)
    return TrainGroup("t", drawn.prompt, drawn.samples, ones, ones)


def _fit(group: TrainGroup, policy: TorchPolicy) -> TrainGroup:
    """With tokens that the model has."""
    from dataclasses import replace

    most = policy.model.config.get_text_config().vocab_size
    samples = tuple(replace(s, tokens=tuple(t % most for t in s.tokens)) for s in group.samples)
    return replace(group, prompt=tuple(t % most for t in group.prompt), samples=samples)


def _seconds(run: Callable[[], object], rounds: int = 3) -> float:
    """Median; the first two calls compile and warm up."""
    for _ in range(2):
        run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(rounds):
        _wait()
        began = time.perf_counter()
        run()
        _wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _named(size: tuple[int, int, int, int]) -> str:
    count, prompt, group, length = size
    return f"{count} x ({prompt} + {group} x {length})"


if __name__ == "__main__":
    main()
