"""Sampling for models whose layers take no free mask (state-space layers, short windows): one row per sample.

By transformers' own `generate`, which knows every architecture; slower, and seeded per call instead of per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from omni_thinker.policy.protocol import OnGroup
from omni_thinker.policy.sampling import Decode
from omni_thinker.types import Group, Sample, SampleRequest, SamplingParams


@torch.inference_mode()
def sample_rows(
    model: PreTrainedModel,
    requests: Sequence[SampleRequest],
    params: SamplingParams,
    stop_ids: frozenset[int],
    decode: Decode,
    on_group: OnGroup | None = None,
) -> list[Group]:
    """Draw one group per request, in order; one prompt at a time, since such models mind padding."""
    groups = []
    with torch.random.fork_rng():
        for place, request in enumerate(requests):
            groups.append(_one(model, request, params, stop_ids, decode))
            if on_group is not None:
                on_group(place, groups[-1])
    return groups


def _one(
    model: PreTrainedModel, request: SampleRequest, params: SamplingParams, stop_ids: frozenset[int], decode: Decode
) -> Group:
    torch.manual_seed(request.seed % 2**63)
    prompt = torch.tensor([list(request.prompt)], device=model.device)
    greedy = params.temperature == 0
    generate: Any = model.generate
    # A clean configuration: what a model's own says of penalties and filters would bend the draws, and the
    # log-probs would be those of another distribution.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        out = generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            do_sample=not greedy,
            temperature=None if greedy else params.temperature,
            top_k=None if greedy else 0,
            top_p=None if greedy else 1.0,
            num_return_sequences=1 if greedy else params.group_size,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
            return_dict_in_generate=True,
            output_logits=True,
        )
    finally:
        model.generation_config = own
    answers = out.sequences[:, prompt.shape[1] :]
    logits = torch.stack(out.logits, dim=1).float()
    if not greedy:
        logits = logits / params.temperature
    logprobs = logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0]
    samples = [_cut(ids.tolist(), logs.tolist(), stop_ids, decode) for ids, logs in zip(answers, logprobs, strict=True)]
    return Group(tuple(request.prompt), tuple(samples * (params.group_size if greedy else 1)))


def _cut(tokens: list[int], logprobs: list[float], stop_ids: frozenset[int], decode: Decode) -> Sample:
    end = next((i + 1 for i, token in enumerate(tokens) if token in stop_ids), None)
    kept = tokens[:end]
    text = decode([t for t in kept if t not in stop_ids])
    return Sample(tuple(kept), tuple(logprobs[: len(kept)]), text, "stop" if end is not None else "length")
