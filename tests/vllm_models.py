"""Small random models whose attention vLLM can compute on a CPU (heads of 32), and policies that sample with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from omni_thinker.models.tiny import VOCABULARY
from omni_thinker.policy.make import make_policy
from omni_thinker.policy.split import SplitPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import EngineSpec, LoraSpec, ModelSpec
from omni_thinker.types import Group

VLLM = {"kv_cache_gb": 0.1, "max_model_len": 512}
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save_small(tiny: Path, folder: Path, kind: str) -> Path:
    """`llama` ties its head to the embedding, `qwen3` doesn't."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model: Any
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=True))
        else:
            model = Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def vllm_policy(folder: Path, lora: LoraSpec | None = None, **options: object) -> SplitPolicy:
    """Trains in torch, fp32, and samples with vLLM. `options`: of [engine.vllm]."""
    model = ModelSpec(name=str(folder), dtype="float32", device="cpu", lora=lora)
    engine = EngineSpec.model_validate({"sampler": "vllm", "vllm": VLLM | options})
    policy = make_policy(model, engine, seed=1)
    assert isinstance(policy, SplitPolicy)
    return policy


def policy_loss(batch: TokenBatch) -> LossTerms:
    weighted_N = batch.logprobs_N * batch.weights_N * batch.advantages_N
    return LossTerms(-weighted_N.sum(), torch.zeros_like(weighted_N, dtype=torch.bool))


def training_batch(groups: Sequence[Group]) -> list[TrainGroup]:
    """With advantages of both signs."""
    batch = []
    for group in groups:
        advantages = tuple(1.0 if place % 2 else -1.0 for place in range(len(group.samples)))
        batch.append(TrainGroup("task", group.prompt, group.samples, advantages, (0.05,) * len(group.samples)))
    return batch


def mismatch(policy: Any, groups: Sequence[Group], temperature: float) -> float:
    """The largest difference between a sampler's log-probs and the trainer's, of drawn tokens, in nats."""
    trained: list[float] = policy.logprobs(training_batch(groups), temperature=temperature).tolist()
    sampled = [x for group in groups for sample in group.samples for x in sample.logprobs]
    forced = [p in sample.forced for group in groups for sample in group.samples for p in range(len(sample.tokens))]
    return max(abs(a - b) for a, b, skip in zip(trained, sampled, forced, strict=True) if not skip)
