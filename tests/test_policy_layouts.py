"""Log-probs are the same however the answers are laid out, whatever the model."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from omni_thinker.engine.attention import hf
from omni_thinker.engine.logprobs import _select, answer_logprobs, layouts
from omni_thinker.engine.packing import MULTIPLE, micro_batches, pack, row_length
from omni_thinker.engine.softmax import ROWS_AT_ONCE, ChosenLogprobs
from omni_thinker.policy.proof.prove import prove
from omni_thinker.protocol import TrainGroup
from omni_thinker.sampling.loop import DECODERS, sample_groups
from omni_thinker.types import Sample, SampleRequest, SamplingParams

VOCABULARY = 97
EOS = 2
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
# Families whose layers all take a free mask: these must get the fast layout.
ATTENTION: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gemma3_text": {"head_dim": 8, "sliding_window": 64},
}
# Families that need care: no sdpa (the mask must then be additive), state-space or convolution layers, chunks.
SPECIAL: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 64},
    "gpt_oss": {"head_dim": 8, "sliding_window": 64, "num_local_experts": 2, "num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
    },
    "llama4_text": {
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 64,
        "attention_chunk_size": 8,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "num_local_experts": 2,
        "block_size": 8,
    },
}


def make_model(family: str, **settings: Any) -> PreTrainedModel:
    """A small random model, with the attention that `load_model` would give it."""
    config = AutoConfig.for_model(family, **{**SMALL, **ATTENTION.get(family, SPECIAL.get(family, {})), **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        except ValueError:
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.float().eval()
    return model


def _ids(count: int, rng: torch.Generator) -> tuple[int, ...]:
    return tuple(int(t) for t in torch.randint(3, VOCABULARY, (count,), generator=rng))


def make_groups(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[TrainGroup]:
    """Per group: the length of the prompt and of each answer. Every other answer was cut short (no stop token)."""
    rng = torch.Generator().manual_seed(seed)
    groups = []
    for prompt, lengths in shapes:
        answers = []
        for n, length in enumerate(lengths):
            cut = n % 2 == 1
            tokens = _ids(length, rng) if cut else (*_ids(length - 1, rng), EOS)
            answers.append(Sample(tokens, (0.0,) * length, "", "length" if cut else "stop"))
        zeros = (0.0,) * len(lengths)
        groups.append(TrainGroup("t", _ids(prompt, rng), tuple(answers), zeros, zeros))
    return groups


RAGGED = [(7, (3, 1, 6)), (12, (5, 9)), (1, (2,)), (3, (1, 1, 1, 1)), (5, (11,))]


def _named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def _gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {name: g for (name, _), g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("family", ATTENTION)
def test_packed_logprobs_and_gradients_equal_padded(family: str, temperature: float) -> None:
    model, groups = make_model(family), make_groups(RAGGED)
    assert prove(model, longest=40).layout == layouts(model)[0]
    packed = answer_logprobs(model, groups, temperature=temperature, layout=layouts(model)[0])
    padded = answer_logprobs(model, groups, temperature=temperature, layout="padded")
    assert packed.sample_N.tolist() == padded.sample_N.tolist()
    torch.testing.assert_close(packed.logprobs_N, padded.logprobs_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.entropy_N, padded.entropy_N, atol=1e-5, rtol=1e-5)
    assert packed.logprobs_N.std() > 0.3, "the model must tell tokens apart"
    assert packed.computed == -(-sum(map(row_length, groups)) // MULTIPLE) * MULTIPLE
    rng = torch.Generator().manual_seed(1)
    weights = torch.randn(packed.logprobs_N.shape, generator=rng) / len(packed.logprobs_N)
    one = _gradients(model, (packed.logprobs_N * weights).sum())
    other = _gradients(model, (padded.logprobs_N * weights).sum())
    assert set(one) == set(other)
    assert len(one) > 5
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-4, msg=_named(name))


@pytest.mark.parametrize("family", [*ATTENTION, *SPECIAL])
def test_chosen_layout_and_decoder_equal_single_rows(family: str) -> None:
    """Whatever the family's layers are, on other tokens than those that the choice was made by."""
    model, groups = make_model(family), make_groups(RAGGED)
    paths = prove(model, longest=40)
    with torch.no_grad():
        chosen = answer_logprobs(model, groups, temperature=1.0, layout=paths.layout).logprobs_N
        single = answer_logprobs(model, groups, temperature=1.0, layout="single").logprobs_N
    torch.testing.assert_close(chosen, single, atol=1e-4, rtol=1e-4)
    rng = torch.Generator().manual_seed(5)
    requests = [
        SampleRequest(_ids(9, rng), 8, 1),
        SampleRequest(_ids(3, rng), 12, 2),
        SampleRequest(_ids(5, rng), 1, 3),
    ]
    make = DECODERS[paths.decoder]
    drawn = sample_groups(model, requests, SamplingParams(3), frozenset([EOS]), lambda _: "", decoder=make)
    zeros = (0.0,) * 3
    groups = [TrainGroup("t", g.prompt, g.samples, zeros, zeros) for g in drawn]
    with torch.no_grad():
        single = answer_logprobs(model, groups, temperature=1.0, layout="single").logprobs_N
    sampled = torch.tensor([x for g in drawn for s in g.samples for x in s.logprobs])
    torch.testing.assert_close(sampled, single, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "llama"])
def test_activation_checkpointing_of_any_family_gives_the_same_gradient(family: str) -> None:
    """Covers the models' own layers too, which attend group by group."""
    found = []
    for lean in (False, True):
        none = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)  # load_model leaves none either
        model = make_model(family, **(none if family == "gpt2" else {}))
        made = answer_logprobs(model, make_groups(RAGGED), temperature=1.0, layout=layouts(model)[0], recompute=lean)
        found.append(_gradients(model, made.logprobs_N.sum()))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=_named(name))


def test_packed_groups_have_the_logprobs_of_groups_alone() -> None:
    model, groups = make_model("llama"), make_groups(RAGGED)
    with torch.no_grad():
        whole = answer_logprobs(model, groups, temperature=1.0, layout=layouts(model)[0]).logprobs_N
        alone = torch.cat(
            [answer_logprobs(model, [g], temperature=1.0, layout=layouts(model)[0]).logprobs_N for g in groups]
        )
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


# -- the row by hand ----------------------------------------------------------------------------------------


def _group(prompt: tuple[int, ...], *answers: tuple[int, ...]) -> TrainGroup:
    samples = tuple(Sample(a, (0.0,) * len(a), "", "stop") for a in answers)
    zeros = (0.0,) * len(samples)
    return TrainGroup("t", prompt, samples, zeros, zeros)


def test_packed_row_equals_values_by_hand() -> None:
    row = pack([_group((1, 2), (3, 4, 5), (6,)), _group((7,), (8, 9))], multiple=1)
    # The last token of an answer predicts nothing and is left out.
    assert row.tokens_T.tolist() == [1, 2, 3, 4, 7, 8]
    assert row.positions_T.tolist() == [0, 1, 2, 3, 0, 1]
    assert row.target_N.tolist() == [3, 4, 5, 6, 8, 9]
    assert row.source_N.tolist() == [1, 2, 3, 1, 4, 5]
    assert row.sample_N.tolist() == [0, 0, 0, 1, 2, 2]
    seen = [[j for j in range(6) if row.mask_T_T[i, j]] for i in range(6)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [4, 5]]


def test_mask_of_two_samples_hides_each_from_the_other() -> None:
    row = pack([_group((1,), (2, 3), (4, 5))], multiple=1)
    assert row.tokens_T.tolist() == [1, 2, 4]
    assert row.positions_T.tolist() == [0, 1, 1]
    assert row.mask_T_T.tolist() == [[True, False, False], [True, True, False], [True, False, True]]


def test_padding_of_a_packed_row_equals_values_by_hand() -> None:
    row = pack([_group((1,), (2, 3), (4, 5))], multiple=5)
    assert row.tokens_T.tolist() == [1, 2, 4, 0, 0]
    assert row.positions_T.tolist() == [0, 1, 1, 0, 1]
    assert row.lengths == (3, 2)
    # The filling sees itself alone, and nothing sees it.
    assert row.mask_T_T[3:].tolist() == [[False, False, False, True, False], [False, False, False, True, True]]
    assert not row.mask_T_T[:3, 3:].any()
    assert row.answers == 4
    assert row.sample_N.tolist() == [0, 0, 1, 1, -1]
    assert row.source_N.tolist() == [0, 1, 0, 2, 4]


@pytest.mark.parametrize("multiple", [1, 4, 64])
def test_padding_of_a_packed_row_changes_no_logprob_and_no_gradient(
    multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, groups = make_model("llama"), make_groups(RAGGED)
    plain = answer_logprobs(model, groups, temperature=1.0, layout="padded")
    monkeypatch.setattr("omni_thinker.engine.logprobs.pack", lambda groups, _: pack(groups, multiple))
    filled = answer_logprobs(model, groups, temperature=1.0, layout=layouts(model)[0])
    torch.testing.assert_close(filled.logprobs_N, plain.logprobs_N, atol=1e-5, rtol=1e-5)
    one, other = (_gradients(model, scored.logprobs_N.sum()) for scored in (filled, plain))
    for name in other:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 15, 30, 10_000])
def test_micro_batches_contain_every_group_once_within_the_budget(budget: int) -> None:
    groups = make_groups(RAGGED)
    rows = micro_batches(groups, budget)
    flat = [g for row in rows for g in row]
    assert sorted(map(id, flat)) == sorted(map(id, groups))
    for row in rows:
        assert sum(map(row_length, row)) <= budget or len(row) == 1
    assert len(rows) == {1: 5, 10_000: 1}.get(budget, len(rows))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(30, 90))
def test_micro_batches_are_the_fewest_rows_with_the_shortest_maximum(prompts: list[int], budget: int) -> None:
    """Compares with every way to cut the sorted groups."""
    groups = make_groups([(prompt, (1,)) for prompt in prompts])
    lengths = [sum(map(row_length, row)) for row in micro_batches(groups, budget)]
    ordered, count = sorted(map(row_length, groups)), len(groups)
    best = (count, 10**9)
    for cuts in product([False, True], repeat=count - 1):
        ends = [0, *(n for n, cut in enumerate(cuts, 1) if cut), count]
        rows = [sum(ordered[a:b]) for a, b in pairwise(ends)]
        if max(rows) <= budget:
            best = min(best, (len(rows), max(rows)))
    assert (len(lengths), max(lengths)) == best


# -- log softmax at one index -------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_chunked_head_gives_the_logprobs_and_gradients_of_the_whole(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits recomputed for the gradient give the same log-probs and gradients as saved ones."""
    model, groups = make_model("llama", tie_word_embeddings=tied), make_groups([(7, (30, 40)), (9, (11, 25, 3))])
    found = []
    for held in (2**27, 20 * VOCABULARY * 4):
        monkeypatch.setattr("omni_thinker.engine.softmax._HELD", held)
        scored = answer_logprobs(model, groups, temperature=0.8, layout=layouts(model)[0])
        weights = torch.linspace(-1, 1, len(scored.logprobs_N))
        found.append((scored.logprobs_N, scored.entropy_N, _gradients(model, (scored.logprobs_N * weights).sum())))
    (whole, entropy, gradients), (cut, cut_entropy, cut_gradients) = found
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut_entropy, entropy, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, atol=1e-5, rtol=1e-5, msg=_named(name))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_recomputed_activations_change_no_gradient(family: str) -> None:
    model, groups = make_model(family), make_groups(RAGGED)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    found, sizes = [], []
    for recompute in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            scored = answer_logprobs(model, groups, temperature=1.0, layout=layouts(model)[0], recompute=recompute)
        sizes.append(sum(kept))
        found.append(_gradients(model, scored.logprobs_N.sum()))
    assert sizes[1] < sizes[0] / 3
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-6, msg=_named(name))


def _chosen(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = ChosenLogprobs.apply(logits, target)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize("count", [1, ROWS_AT_ONCE, ROWS_AT_ONCE + 3])
def test_chosen_logprobs_entropy_and_gradient_equal_log_softmax(count: int) -> None:
    rng = torch.Generator().manual_seed(4)
    logits = (4 * torch.randn(count, 50, generator=rng)).requires_grad_(True)
    target = torch.randint(50, (count,), generator=rng)
    weights = torch.randn(count, generator=rng)
    chosen, entropy = _chosen(logits, target)
    every = torch.log_softmax(logits, -1)
    expected = every.gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(chosen, expected, atol=1e-6, rtol=1e-6)
    surprise = -(every.exp() * every).sum(-1)
    torch.testing.assert_close(entropy, surprise, atol=1e-5, rtol=1e-5)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.3)):
        chosen, entropy = _chosen(logits * 1, target)  # of logits that nobody else needs
        used = chosen if b == 0 else entropy if a == 0 else a * chosen + b * entropy
        [gradient] = torch.autograd.grad((used * weights).sum(), logits)
        [reference] = torch.autograd.grad(((a * expected + b * surprise) * weights).sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-5)


def test_chosen_logprobs_of_extreme_logits_are_finite() -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0], [1.0, -math.inf, 1.0], [-math.inf, 0.0, -math.inf]])
    chosen, entropy = _chosen(logits.requires_grad_(True), torch.tensor([1, 0, 1]))
    assert chosen.tolist() == pytest.approx([-1000.0, -math.log(2), 0.0])
    assert entropy.tolist() == pytest.approx([0.0, math.log(2), 0.0], abs=1e-6)
    [gradient] = torch.autograd.grad(chosen.sum(), logits)
    assert torch.isfinite(gradient).all()
    assert gradient.tolist()[1] == pytest.approx([0.5, 0.0, -0.5])


def test_chosen_logprobs_of_bf16_are_summed_in_fp32() -> None:
    rng = torch.Generator().manual_seed(6)
    logits = (4 * torch.randn(70, 4096, generator=rng)).bfloat16().requires_grad_(True)
    target = torch.randint(4096, (70,), generator=rng)
    chosen, _ = _chosen(logits, target)
    assert chosen.dtype == torch.float32
    exact = torch.log_softmax(logits.detach().double(), -1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(chosen.double(), exact, atol=1e-4, rtol=1e-5)
    [gradient] = torch.autograd.grad(chosen.sum(), logits)
    assert gradient.dtype == torch.bfloat16
    probs = torch.softmax(logits.detach().float(), -1)
    expected = torch.nn.functional.one_hot(target, 4096) - probs
    torch.testing.assert_close(gradient.float(), expected, atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_temperature_divides_bf16_logits_in_fp32(temperature: float) -> None:
    """Rounding the quotient to bf16 would make the trainer differ from the sampler."""
    rng = torch.Generator().manual_seed(7)
    logits = (4 * torch.randn(40, 512, generator=rng)).bfloat16()
    target = torch.randint(512, (40,), generator=rng)
    chosen, _ = _select(logits, target, temperature)
    expected = torch.log_softmax(logits.float() / temperature, -1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(chosen, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(ATTENTION))
def test_blockwise_attention_changes_no_logprob_and_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs several groups in a row, with and without cutting attention at the groups."""
    model, groups, calls = make_model(kind), made_groups(), []
    kept = sdpa_attention_forward

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return kept(*args, **options)

    monkeypatch.setattr(hf, "sdpa_attention_forward", counted)
    results, counts = [], []
    for blocks in (nullcontext, hf.blocks):
        monkeypatch.setattr("omni_thinker.engine.logprobs.blocks", lambda lengths, blocks=blocks: blocks(lengths))
        calls.clear()
        model.zero_grad()
        scored = answer_logprobs(model, groups, temperature=1.0, layout="packed")
        counts.append(len(calls))
        (scored.logprobs_N * torch.linspace(-1, 1, len(scored.logprobs_N))).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((scored.logprobs_N.detach(), gradients))
    (logprobs, gradients), (logprobs_cut, gradients_cut) = results
    assert counts[1] == 4 * counts[0], "three groups and the filling"
    torch.testing.assert_close(logprobs_cut, logprobs, atol=1e-5, rtol=1e-5)
    assert len(gradients) == len(gradients_cut) > 0
    for own, other in zip(gradients_cut, gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def made_groups() -> list[TrainGroup]:
    """Three groups of different sizes and lengths."""
    rng = random.Random(0)

    def answer(length: int) -> Sample:
        return Sample(tuple(rng.randrange(3, VOCABULARY) for _ in range(length)), (0.0,) * length, "", "stop")

    groups = []
    for size in (1, 3, 2):
        samples = tuple(answer(rng.randrange(1, 7)) for _ in range(size))
        prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(3 + size))
        groups.append(TrainGroup("t", prompt, samples, (1.0,) * size, (1.0,) * size))
    return groups
