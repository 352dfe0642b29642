"""The hand-written decoding pass against the model's own, filters of the distribution, and stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from omni_thinker.engine.native import kernels
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import OptimParams
from omni_thinker.recipe import LoraSpec, ModelSpec
from omni_thinker.sampling.decoders.base import Decoder, MaskedDecoder
from omni_thinker.sampling.decoders.cuda_graph import StaticDecoder
from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.decoders.native import NativeDecoder, speeds_up
from omni_thinker.sampling.decoders.weights import FusedWeights, drop_layout, fused_weights
from omni_thinker.sampling.draw import draw
from omni_thinker.sampling.loop import fastest_decoder, sample_groups
from omni_thinker.types import Group, SampleRequest, SamplingParams

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "llama, tied, biased, stretched": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=ROPE)
    ),
    "one head for all queries": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZE, "num_key_value_heads": 1})),
    "wide heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, head_dim=32)),
    "heads of 64": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, head_dim=64)),
    "heads of 128": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, head_dim=128)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=16)),
}
NO_STOPS: frozenset[int] = frozenset([-1])


def _words(ids: Sequence[int]) -> str:
    return "".join(chr(97 + i % 26) for i in ids)


def _requests(count: int = 6) -> list[SampleRequest]:
    return [SampleRequest(tuple(range(5, 12 + 3 * n)), 4 + 5 * (n % 3), n) for n in range(count)]


def _draw_all(model: PreTrainedModel, stops: frozenset[int] = NO_STOPS, **options: Any) -> list[Group]:
    return sample_groups(model.eval(), _requests(), SamplingParams(4), stops, _words, **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["fused", "fused, long answers", "static", "native"])
def test_fast_decoders_draw_the_samples_of_the_masked_decoder(
    name: str, dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers ragged prompts and limits, early stops, and groups and columns that leave the batch."""
    torch.manual_seed(0)
    if kind == "fused, long answers":
        monkeypatch.setattr("omni_thinker.sampling.decoders.kv_cache.FP32_CACHE_MAX_TOKENS", 0)
    model = MODELS[name]()
    with torch.no_grad():
        for part in model.parameters():  # biases and norms too, which start at 0 and 1
            part.add_(0.05 * torch.randn_like(part))
    model = model.bfloat16() if dtype == torch.bfloat16 else model
    assert fastest_decoder(model) is (NativeDecoder if speeds_up(model) else FusedDecoder)
    if kind == "native" and not speeds_up(model):
        assert kernels() is None or dtype == torch.float32 or name == "qwen3"
        return
    stops = frozenset(range(0, 300, 7))
    written = {"static": StaticDecoder, "native": NativeDecoder}.get(kind, FusedDecoder)
    fused, masked = (_draw_all(model, stops, decoder=own) for own in (written, MaskedDecoder))
    assert len({len(s.tokens) for g in fused for s in g.samples}) > 3
    pairs = [(a, b) for g, h in zip(fused, masked, strict=True) for a, b in zip(g.samples, h.samples, strict=True)]
    same = [(a, b) for a, b in pairs if a.tokens == b.tokens]
    # In bf16 a draw near the edge of two tokens may fall to either side; what follows it is another sample.
    assert len(same) == len(pairs) if dtype == torch.float32 else len(same) > len(pairs) / 2
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=tolerance)
        assert (a.text, a.stop) == (b.text, b.stop)


def test_unknown_architecture_uses_masked_decoder() -> None:
    from peft import LoraConfig, get_peft_model

    windowed = MistralForCausalLM(MistralConfig(**SIZE, sliding_window=8))
    assert fastest_decoder(windowed) is MaskedDecoder
    qwen = Qwen2ForCausalLM(Qwen2Config(**SIZE, use_sliding_window=True, sliding_window=8))
    assert fastest_decoder(qwen) is MaskedDecoder
    assert fastest_decoder(LlamaForCausalLM(LlamaConfig(**SIZE, hidden_act="gelu"))) is MaskedDecoder
    head: Any = get_peft_model(MODELS["llama"](), LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    assert fastest_decoder(head) is MaskedDecoder
    dora: Any = get_peft_model(MODELS["llama"](), LoraConfig(r=2, use_dora=True, task_type="CAUSAL_LM"))
    assert fastest_decoder(dora) is MaskedDecoder


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), ("v_proj",)])
@pytest.mark.parametrize("kind", [FusedDecoder, StaticDecoder])
def test_fast_decoders_with_lora_draw_the_samples_of_the_masked_decoder(
    tiny_model: Path, targets: Any, kind: type[Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers trained factors on some or all of the fused matrices, and reads them again after an update."""
    spec = LoraSpec(rank=3, alpha=6, targets=targets)
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32", lora=spec), seed=1)
    assert fastest_decoder(policy.model) is FusedDecoder
    requests = [SampleRequest(policy.encode_prompt(text), 8, n) for n, text in enumerate(("Hi", "What is 2 + 2?"))]

    def draw_by(decoder: type[Decoder]) -> list[Group]:
        return sample_groups(policy.model, requests, SamplingParams(4), policy.stop_ids, policy.decode, decoder=decoder)

    before = draw_by(kind)
    for master in policy._masters:
        master.grad = torch.randn(master.shape, generator=torch.Generator().manual_seed(2))
    policy.optim_step(OptimParams(lr=0.3, max_grad_norm=1e9))
    after, reference = draw_by(kind), draw_by(MaskedDecoder)
    assert after != before
    for one, other in zip(after, reference, strict=True):
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.tokens == b.tokens
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", [*MODELS, "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taken_weights_draw_the_same_and_leave_the_model(name: str, dtype: torch.dtype) -> None:
    """What a rank of several does, whose memory should hold a model once."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    plain: Any = MODELS[name if name in MODELS else "qwen2"]()
    model: Any = plain.to(dtype)
    if name == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    kept, whole = _draw_all(model), sum(p.numel() for p in model.parameters())
    drop_layout(model)
    laid_out = fused_weights(model, take=True)
    assert _draw_all(model) == kept
    assert fused_weights(model) is laid_out
    assert sum(p.numel() for p in model.parameters()) < whole / 2


def test_fused_weights_are_rebuilt_only_after_an_update(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begin = FusedWeights.__init__

    def counted(self: FusedWeights, model: PreTrainedModel, **options: bool) -> None:
        made.append(1)
        begin(self, model, **options)

    monkeypatch.setattr(FusedWeights, "__init__", counted)
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    request = [SampleRequest(policy.encode_prompt("Hi"), 6, 3)]
    before = [policy.sample(request, SamplingParams(3)) for _ in range(2)]
    assert before[0] == before[1]
    assert len(made) == 1
    assert fused_weights(policy.model) is fused_weights(policy.model)
    for master in policy._masters:
        master.grad = torch.randn_like(master)
    policy.optim_step(OptimParams(lr=0.1, max_grad_norm=1e9))
    after = policy.sample(request, SamplingParams(3))
    assert len(made) == 2
    assert after != before[0]
    masked = sample_groups(
        policy.model, request, SamplingParams(3), policy.stop_ids, policy.decode, decoder=MaskedDecoder
    )
    assert [s.tokens for s in after[0].samples] == [s.tokens for s in masked[0].samples]


# -- filters ----------------------------------------------------------------------------------------------------------

LOGITS = 2 * torch.randn(700, generator=torch.Generator().manual_seed(8)).double()


def _expected(params: SamplingParams) -> np.ndarray[Any, Any]:
    """The filtered distribution, the slow way: temperature, top-k, top-p, min-p, each on what was left."""
    p = torch.softmax(LOGITS / params.temperature, -1).numpy()
    order = np.argsort(-p)
    if params.top_k:
        p[order[params.top_k :]] = 0
        p /= p.sum()
    if params.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= params.top_p]] = 0
        p /= p.sum()
    p[p < params.min_p * p.max()] = 0
    return np.asarray(p / p.sum())


FILTERS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(top_k=1),
    SamplingParams(top_k=20),
    SamplingParams(top_k=9999),
    SamplingParams(top_p=0.8),
    SamplingParams(top_p=0.999),
    SamplingParams(top_p=1e-6),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=1.3, top_k=100, top_p=0.9, min_p=0.02),
]


@pytest.mark.parametrize("params", FILTERS)
def test_draws_follow_the_filtered_distribution(params: SamplingParams) -> None:
    """Chi-squared over 100,000 draws; log-probs are those of the filtered distribution."""
    uniform = torch.from_numpy(np.random.default_rng(3).random(100_000))
    token, logprob = draw(LOGITS.float().expand(len(uniform), -1), uniform, params)
    expected = _expected(params)
    seen = np.bincount(token.numpy(), minlength=len(expected))
    assert not seen[expected == 0].any()
    assert np.exp(logprob.numpy()) == pytest.approx(expected[token.numpy()], rel=1e-4)
    often = expected * len(uniform) >= 5  # the test's own condition; the rest is one bin
    bins = (np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum()))
    keep = bins[1] > 0
    if keep.sum() > 1:
        assert chisquare(bins[0][keep], bins[1][keep] * len(uniform)).pvalue > 1e-3


@given(
    st.lists(st.floats(-80, 80), min_size=1, max_size=600), st.floats(0, 1, exclude_max=True), st.sampled_from(FILTERS)
)
def test_drawn_token_passes_every_filter_and_has_a_finite_logprob(
    logits: list[float], uniform: float, params: SamplingParams
) -> None:
    """For any logits, the token passes every filter and its log-prob is finite and at most 0."""
    row = torch.tensor([logits])
    token, logprob = draw(row, torch.tensor([uniform], dtype=torch.float64), params)
    assert 0 <= int(token) < len(logits)
    assert -104 < float(logprob) < 1e-4  # the smallest number of fp32 has log -103
    if params.top_k:
        assert int((row > row[0, token]).sum()) < params.top_k


def test_greedy_draw_takes_the_largest_logit_whatever_the_filter() -> None:
    token, logprob = draw(LOGITS.float()[None], torch.tensor([0.9]), SamplingParams(temperature=0, top_k=3))
    assert int(token) == int(LOGITS.argmax())
    assert float(logprob) == pytest.approx(float(LOGITS.log_softmax(-1).max()), abs=1e-5)


# -- stop texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [FusedDecoder, StaticDecoder, MaskedDecoder])
def test_a_stop_text_ends_a_sample(decoder: type[Decoder]) -> None:
    """The sample includes the token that completes the stop text, its text ends before it, and others don't change."""
    torch.manual_seed(1)
    model = MODELS["llama"]().eval()
    whole = _draw_all(model, decoder=decoder)
    pairs = [s.text[k : k + 2] for g in whole for s in g.samples for k in range(len(s.text) - 1)]
    stop = max(set(pairs), key=pairs.count)
    stopping = [SampleRequest(r.prompt, r.max_tokens, r.seed, (stop, "never drawn")) for r in _requests()]
    cut = sample_groups(model, stopping, SamplingParams(4), NO_STOPS, _words, decoder=decoder)
    ended = 0
    for group, other in zip(cut, whole, strict=True):
        for sample, free in zip(group.samples, other.samples, strict=True):
            place = free.text.find(stop)
            if place < 0:
                assert (sample.tokens, sample.text, sample.stop) == (free.tokens, free.text, free.stop)
                continue
            ended += 1
            assert sample.text == free.text[:place]
            assert sample.tokens == free.tokens[: place + 2]
            assert sample.logprobs == pytest.approx(free.logprobs[: place + 2], abs=1e-5)
            assert sample.stop == "stop"
    assert ended >= 2


def test_first_of_several_stop_texts_cuts_the_sample() -> None:
    torch.manual_seed(1)
    model = MODELS["llama"]().eval()
    [group] = sample_groups(model, [SampleRequest((5, 6), 8, 0)], SamplingParams(1), NO_STOPS, _words)
    text = group.samples[0].text
    request = SampleRequest((5, 6), 8, 0, (text[1:3], text[:3]))
    [cut] = sample_groups(model, [request], SamplingParams(1), NO_STOPS, _words)
    assert cut.samples[0].text == ""
    assert len(cut.samples[0].tokens) == 3


def test_native_decoder_raises_index_error_beyond_its_cache() -> None:
    model = MODELS["heads of 64"]().bfloat16()
    if not speeds_up(model):
        pytest.skip("no C compiler")
    with torch.inference_mode():
        decoder = NativeDecoder(model, 2, 1)
        decoder.prefill([(1, 2, 3)])
        token, sample = torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
        decoder.step(token, sample)
        with pytest.raises(IndexError, match="no room for token 2"):
            decoder.step(token, sample)


def test_model_with_mixed_dtypes_does_not_use_native_kernels() -> None:
    model = MODELS["llama"]().bfloat16()
    model.model.norm.float()
    assert not speeds_up(model)
