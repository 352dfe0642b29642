"""Resident memory of a rank, for a random model of 500M weights shared out among several, against one process's.

    python benchmarks/fsdp_memory.py [--ranks 4] [--layers 18] [--dtype bfloat16] [--json]

Each side samples, adds up a gradient and makes an update, twice; the peak of each process is the kernel's
(VmHWM), from the moment that the model is there. `loading` is the peak before that, which on rank 0 is the whole model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omni_thinker.models.tiny import make_tiny
from omni_thinker.protocol import OptimParams, TrainGroup
from omni_thinker.recipe import FsdpSpec, ModelSpec, RlSpec
from omni_thinker.rl.losses import make_loss
from omni_thinker.runs.machine import machine
from omni_thinker.types import SampleRequest, SamplingParams

PROMPTS, GROUP, TOKENS, STEPS = 4, 4, 16, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--layers", type=int, default=18, help="18 are 500M weights, 8 are 250M")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        folder, ranks = chosen.side.rsplit(":", 1)
        print(json.dumps(_measure(folder, int(ranks), chosen.dtype)))
        return
    folder = Path(tempfile.mkdtemp(prefix="omni-thinker-memory-"))
    try:
        with ProcessPoolExecutor(1) as elsewhere:  # whose memory goes with it
            count = elsewhere.submit(_make, folder / "model", chosen.layers).result()
        sides: dict[str, dict[str, Any]] = {}
        for name, ranks in (("one", 0), ("shared", chosen.ranks)):
            sides[name] = _side(folder / "model", ranks, chosen)
            print(f"{name}: {sides[name]}", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    alone, most = sides["one"]["peak_gb"][0], max(sides["shared"]["peak_gb"])
    found = {"weights": count, "dtype": chosen.dtype, **sides, "ratio": round(most / alone, 3)}
    found["machine"] = asdict(machine())
    print(f"ratio: {found['ratio']}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(found))


def _make(folder: Path, layers: int) -> int:
    """A random Llama with the tiny model's tokenizer; how many."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tiny(folder)
    (folder / "model.safetensors").unlink()
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def _side(folder: Path, ranks: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measured in a process of its own."""
    command = [sys.executable, __file__, "--dtype", chosen.dtype, "--side", f"{folder}:{ranks}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(folder: str, ranks: int, dtype: str) -> dict[str, Any]:
    """`ranks`: 0 for the policy of one process."""
    from omni_thinker.policy.fsdp.policy import FsdpPolicy
    from omni_thinker.policy.torch_policy import TorchPolicy

    spec = ModelSpec.model_validate({"name": folder, "dtype": dtype})
    policy: Any = FsdpPolicy(spec, FsdpSpec(ranks=ranks)) if ranks else TorchPolicy(spec)
    processes = [os.getpid(), *([p.pid for p in policy._crew.processes.values()] if ranks else [])]
    loading = [_status(pid, "VmHWM") for pid in processes]
    for pid in processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")  # the peak begins anew
    loss = make_loss(RlSpec())
    for step in range(STEPS):
        requests = [
            SampleRequest(policy.encode_prompt(f"What is {n} + {n}?"), TOKENS, 100 * step + n) for n in range(PROMPTS)
        ]
        weight = 1 / (PROMPTS * GROUP * TOKENS)
        batch = [
            TrainGroup("t", group.prompt, group.samples, (1.0, -1.0, 0.5, -0.5), (weight,) * GROUP)
            for group in policy.sample(requests, SamplingParams(GROUP))
        ]
        policy.forward_backward(batch, loss)
        policy.optim_step(OptimParams(1e-5))
    return {
        "peak_gb": [_status(pid, "VmHWM") for pid in processes],
        "after_gb": [_status(pid, "VmRSS") for pid in processes],
        "loading_gb": loading,
    }


def _status(pid: int, name: str) -> float:
    """A size that the kernel knows of a process, in GB."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return round(int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024 / 1e9, 3)


if __name__ == "__main__":
    main()
