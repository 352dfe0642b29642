"""Sampling for models whose layers take no free mask (state-space layers, short windows): one row per sample.

By transformers' own `generate`, which knows every architecture; slower, and seeded per call instead of per sample."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from omni_thinker.protocol import OnGroup
from omni_thinker.sampling.loop import stop_place
from omni_thinker.sampling.thinking import Decode
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
    # log-probs would be those of another distribution. peft hands it on to the model inside.
    inside: Any = getattr(model, "get_base_model", lambda: model)
    models: list[Any] = [model, inside()]
    configs = [one.generation_config for one in models]
    for one in models:
        one.generation_config = GenerationConfig()
    try:
        out = generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            do_sample=not greedy,
            temperature=None if greedy else params.temperature,
            top_k=None if greedy else params.top_k,
            top_p=None if greedy else params.top_p,
            min_p=None if greedy else params.min_p,
            num_return_sequences=1 if greedy else params.group_size,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),
            return_dict_in_generate=True,
            output_logits=greedy,
            output_scores=not greedy,  # after temperature and filters: what was drawn from
        )
    finally:
        for one, config in zip(models, configs, strict=True):
            one.generation_config = config
    answers_G_T = out.sequences[:, prompt.shape[1] :]
    steps = out.logits if greedy else out.scores
    logprobs_G_T = torch.stack(
        [
            logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            for logits, ids in zip(steps, answers_G_T.t(), strict=True)
        ],
        dim=1,
    )
    drawn = zip(answers_G_T.tolist(), logprobs_G_T.tolist(), strict=True)
    samples = [_cut(ids, logs, stop_ids, request.stop, decode) for ids, logs in drawn]
    return Group(tuple(request.prompt), tuple(samples * (params.group_size if greedy else 1)))


def _cut(
    tokens: list[int], logprobs: list[float], stop_ids: frozenset[int], stops: Sequence[str], decode: Decode
) -> Sample:
    """What `generate` drew, up to the first stop token, or to the token that completes a stop text."""
    for end in range(1, len(tokens) + 1):
        if tokens[end - 1] in stop_ids:
            return Sample(tuple(tokens[:end]), tuple(logprobs[:end]), decode(tokens[: end - 1]), "stop")
        if (place := stop_place(tokens[:end], stops, decode)) is not None:
            return Sample(tuple(tokens[:end]), tuple(logprobs[:end]), decode(tokens[:end])[:place], "stop")
    return Sample(tuple(tokens), tuple(logprobs), decode(tokens), "length")
