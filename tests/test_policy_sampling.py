"""Sampling: the right distribution, the same draws whatever else is drawn, log-probs that the trainer agrees with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from omni_thinker.engine.logprobs import answer_logprobs
from omni_thinker.policy.proof.prove import Paths
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec
from omni_thinker.sampling.decoders.base import MULTIPLE, Decoder, MaskedDecoder, filled
from omni_thinker.sampling.decoders.cuda_graph import StaticDecoder
from omni_thinker.sampling.decoders.fused import FusedDecoder, LlamaDecoder
from omni_thinker.sampling.decoders.rows import CachedRowsDecoder, PlacedRowsDecoder, RecomputingDecoder
from omni_thinker.sampling.draw import draw
from omni_thinker.sampling.loop import sample_groups, uniforms
from omni_thinker.types import Group, SampleRequest, SamplingParams

PROMPTS = ("How much is 2 + 2?", "Hi", "Write a Python function that returns x times three.", "Which option is right?")
LIMITS = (12, 5, 9, 1)


class _Policy(TorchPolicy):
    """One that samples by the pass that a test asks for."""

    decoder: type[Decoder] = FusedDecoder


@pytest.fixture(scope="module", params=[FusedDecoder, StaticDecoder, MaskedDecoder])
def policy(tiny_model: Path, request: pytest.FixtureRequest) -> TorchPolicy:
    policy = _Policy(ModelSpec(name=str(tiny_model), dtype="float32"))
    policy.decoder = request.param
    return policy


Steps = list[tuple[tuple[int, ...], int]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """(groups and columns, highest position) of each decoding step."""
    seen: Steps = []
    for kind in (LlamaDecoder, MaskedDecoder):

        def step(
            self: LlamaDecoder | MaskedDecoder, token_P_G: torch.Tensor, sample_P_G: torch.Tensor, kept: Any = kind.step
        ) -> torch.Tensor:
            position_P = self._position_P if isinstance(self, MaskedDecoder) else self.cache.position_P
            seen.append((tuple(token_P_G.shape), int(position_P.max())))
            logits: torch.Tensor = kept(self, token_P_G, sample_P_G)
            return logits

        monkeypatch.setattr(kind, "step", step)
    return seen


@pytest.fixture(scope="module")
def requests(policy: TorchPolicy) -> list[SampleRequest]:
    return [
        SampleRequest(policy.encode_prompt(p), limit, 1000 + i)
        for i, (p, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True))
    ]


def _sample(
    policy: TorchPolicy,
    requests: Sequence[SampleRequest],
    group_size: int = 4,
    temperature: float = 1.0,
    max_sequences: int = 256,
    stop_ids: frozenset[int] | None = None,
) -> list[Group]:
    params = SamplingParams(group_size, temperature)
    stops = policy.stop_ids if stop_ids is None else stop_ids
    kind = getattr(policy, "decoder", FusedDecoder)
    return sample_groups(policy.model, requests, params, stops, policy.decode, None, max_sequences, decoder=kind)


def _tokens(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[sample.tokens for sample in group.samples] for group in groups]


def _logprobs(groups: Sequence[Group]) -> list[float]:
    return [x for group in groups for sample in group.samples for x in sample.logprobs]


def _trainer_logprobs(policy: TorchPolicy, groups: Sequence[Group], temperature: float) -> list[float]:
    zeros = [(0.0,) * len(g.samples) for g in groups]
    trained = [TrainGroup("t", g.prompt, g.samples, z, z) for g, z in zip(groups, zeros, strict=True)]
    with torch.no_grad():
        scored = answer_logprobs(policy.model, trained, temperature=temperature, layout="padded")
    return [float(x) for x in scored.logprobs_N]


def _common(policy: TorchPolicy, requests: Sequence[SampleRequest]) -> int:
    """A token that is drawn often, to stand in for the stop token that a random model hardly ever draws."""
    flat = [t for own in _tokens(_sample(policy, requests, 8)) for tokens in own for t in tokens[1:]]
    return max(set(flat), key=flat.count)


# -- log-probs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_sampled_logprobs_equal_the_trainers(
    policy: TorchPolicy, requests: list[SampleRequest], temperature: float
) -> None:
    groups = _sample(policy, requests, temperature=temperature)
    sampled = _logprobs(groups)
    assert len(sampled) > 60
    assert sampled == pytest.approx(_trainer_logprobs(policy, groups, temperature), abs=1e-4)


def test_sampled_logprobs_with_early_stops_equal_the_trainers(
    policy: TorchPolicy, requests: list[SampleRequest]
) -> None:
    """Rows and columns leave the batch as samples end, which must not change the remaining samples."""
    stops = frozenset({_common(policy, requests), *range(3, 120)})  # about a quarter of what is drawn ends a sample
    groups = _sample(policy, requests * 3, 8, stop_ids=stops)
    lengths = {len(t) for own in _tokens(groups) for t in own}
    assert len(lengths) > 5
    assert _logprobs(groups) == pytest.approx(_trainer_logprobs(policy, groups, 1.0), abs=1e-4)


# -- the same draws, whatever else is drawn -----------------------------------------------------------------


def test_samples_depend_on_their_seed_alone(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    torch.manual_seed(1)
    one = _sample(policy, requests)
    torch.manual_seed(2)
    assert _sample(policy, requests) == one
    other = [SampleRequest(r.prompt, r.max_tokens, r.seed + 1) for r in requests]
    assert _tokens(_sample(policy, other)) != _tokens(one)
    assert len(set(_tokens(one)[0])) == 4, "samples of a group have streams of their own"


def test_sampling_does_not_advance_the_global_generator(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    before = torch.random.get_rng_state()
    policy.sample(requests, SamplingParams(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_samples_are_the_same_in_any_order_and_batch(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    whole = _tokens(_sample(policy, requests))
    order = [2, 0, 3, 1]
    assert _tokens(_sample(policy, [requests[i] for i in order])) == [whole[i] for i in order]
    for i, request in enumerate(requests):
        assert _tokens(_sample(policy, [request])) == [whole[i]]
    for width in (1, 4, 8, 1000):
        assert _tokens(_sample(policy, requests, max_sequences=width)) == whole


def test_samples_with_early_stops_equal_samples_alone(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    stops = frozenset({_common(policy, requests), *range(3, 120)})
    whole = _tokens(_sample(policy, requests, 8, stop_ids=stops))
    alone = [_tokens(_sample(policy, [r], 8, stop_ids=stops))[0] for r in requests]
    assert whole == alone


@pytest.mark.parametrize("size", [1, 2, 7])
def test_samples_are_the_same_in_groups_of_any_size(
    policy: TorchPolicy, requests: list[SampleRequest], size: int
) -> None:
    four, other = _tokens(_sample(policy, requests, 4)), _tokens(_sample(policy, requests, size))
    both = min(4, size)
    assert [own[:both] for own in other] == [own[:both] for own in four]


def test_longer_max_tokens_only_appends_tokens(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    longer = [SampleRequest(r.prompt, r.max_tokens + 6, r.seed) for r in requests]
    for short, long in zip(_tokens(_sample(policy, requests)), _tokens(_sample(policy, longer)), strict=True):
        assert all(b[: len(a)] == a for a, b in zip(short, long, strict=True))


# -- where a sample ends ------------------------------------------------------------------------------------


def test_samples_without_a_stop_end_at_max_tokens(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    groups = _sample(policy, requests, 4, stop_ids=frozenset([-1]))
    for request, group in zip(requests, groups, strict=True):
        assert group.prompt == tuple(request.prompt)
        assert [len(s.tokens) for s in group.samples] == [request.max_tokens] * 4
        assert [len(s.logprobs) for s in group.samples] == [request.max_tokens] * 4
        assert {s.stop for s in group.samples} == {"length"}
        assert all(s.text == policy.decode(s.tokens) for s in group.samples)


def test_stop_token_ends_the_sample_and_is_not_in_its_text(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    stop = _common(policy, requests)
    free = _sample(policy, requests, 8, stop_ids=frozenset([-1]))
    bound = _sample(policy, requests, 8, stop_ids=frozenset([stop]))
    stopped = 0
    for a, b in zip((s for g in free for s in g.samples), (s for g in bound for s in g.samples), strict=True):
        if stop not in a.tokens:
            assert (b.tokens, b.text, b.stop) == (a.tokens, a.text, a.stop)
            continue
        end = a.tokens.index(stop) + 1
        stopped += 1
        assert b.tokens == a.tokens[:end]
        assert b.logprobs == pytest.approx(a.logprobs[:end], abs=1e-5)
        assert b.stop == "stop"
        assert b.text == policy.decode(a.tokens[: end - 1])
    assert stopped >= 3


def test_finished_samples_leave_the_batch(policy: TorchPolicy, requests: list[SampleRequest], steps: Steps) -> None:
    limits = [SampleRequest(r.prompt, limit, r.seed) for r, limit in zip(requests, (12, 1, 2, 1), strict=True)]
    _sample(policy, limits, 8, stop_ids=frozenset([-1]))
    # Two groups of 8 once; then the longest alone. The last token drawn is never fed.
    assert [rows * columns for (rows, columns), _ in steps] == [16, *[8] * 10]


def test_filled_rounds_up_to_the_multiple() -> None:
    assert [filled(n, MULTIPLE) for n in (1, 8, 9)] == [8, 8, 16]


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 8])
def test_batch_sizes_while_groups_end_are_multiples(policy: TorchPolicy, group_size: int, steps: Steps) -> None:
    requests = [SampleRequest((5, 6, 7 + n), 2 + 3 * n, n) for n in range(16)]
    groups = _sample(policy, requests, group_size, stop_ids=frozenset([-1]))
    counts = {rows * columns for (rows, columns), _ in steps}
    alone = [_sample(policy, [request], group_size, stop_ids=frozenset([-1]))[0] for request in requests]
    assert [s.tokens for g in groups for s in g.samples] == [s.tokens for g in alone for s in g.samples]
    assert len(counts) > 1
    assert group_size == 3 or all(count % MULTIPLE == 0 for count in counts)


def test_finished_group_takes_no_positions_in_the_cache(policy: TorchPolicy, steps: Steps) -> None:
    _sample(policy, [SampleRequest((5,) * 60, 3, 1), SampleRequest((6, 7), 20, 2)], 2, stop_ids=frozenset([-1]))
    assert 60 <= max(position for _, position in steps) <= 62


def test_no_requests_give_no_groups(policy: TorchPolicy) -> None:
    assert policy.sample([], SamplingParams(4)) == []


# -- the distribution ---------------------------------------------------------------------------------------


def test_greedy_samples_equal_transformers_generate(policy: TorchPolicy, requests: list[SampleRequest]) -> None:
    groups = _sample(policy, requests, 2, temperature=0.0)
    for request, group in zip(requests, groups, strict=True):
        prompt = torch.tensor([list(request.prompt)])
        expected = policy.model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_tokens,
            do_sample=False,
            eos_token_id=sorted(policy.stop_ids),
            pad_token_id=0,
        )[0, prompt.shape[1] :].tolist()
        assert [list(s.tokens) for s in group.samples] == [expected, expected]
    assert _logprobs(groups) == pytest.approx(_trainer_logprobs(policy, groups, 1.0), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_pass_a_chi_squared_test_against_softmax(temperature: float) -> None:
    logits = 2 * torch.randn(30, generator=torch.Generator().manual_seed(8))
    uniform = torch.from_numpy(uniforms(11, 20, 1000).ravel())
    token, logprob = draw(logits.expand(len(uniform), -1), uniform, SamplingParams(temperature=temperature))
    expected = torch.softmax(logits.double() / temperature, -1).numpy()
    torch.testing.assert_close(logprob, torch.log_softmax(logits / temperature, -1)[token], atol=1e-5, rtol=1e-5)
    seen = np.bincount(token.numpy(), minlength=30)
    often = expected * len(uniform) >= 5  # the test's own condition; the rest is one bin
    bins = (np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum()))
    keep = bins[1] > 0
    assert chisquare(bins[0][keep], bins[1][keep] * len(uniform)).pvalue > 1e-3


def test_first_tokens_pass_a_chi_squared_test_against_the_model(
    policy: TorchPolicy, requests: list[SampleRequest]
) -> None:
    """Draws 4,000 first tokens of one prompt through the whole sampler."""
    prompt = requests[0].prompt
    many = [SampleRequest(prompt, 1, seed) for seed in range(20)]
    drawn = [t[0] for own in _tokens(_sample(policy, many, 200, max_sequences=4000)) for t in own]
    with torch.no_grad():
        expected = torch.softmax(policy.model(torch.tensor([list(prompt)])).logits[0, -1].double(), -1).numpy()
    order = np.argsort(-expected)
    bins = np.array_split(order, 40)
    seen = np.bincount(drawn, minlength=len(expected))
    shares = np.array([expected[b].sum() for b in bins])
    counts = np.array([seen[b].sum() for b in bins])
    keep = shares * len(drawn) >= 5
    counts, shares = np.append(counts[keep], counts[~keep].sum()), np.append(shares[keep], shares[~keep].sum())
    assert keep.sum() > 10
    assert chisquare(counts[shares > 0], (shares * len(drawn))[shares > 0]).pvalue > 1e-3


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_token_with_logit_minus_infinity_is_never_drawn(uniform: float) -> None:
    """The cases include the largest uniform below 1, which fp32 rounds to 1."""
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    token, logprob = draw(logits, torch.tensor([uniform], dtype=torch.float64), SamplingParams())
    assert int(token) in (1, 3)
    assert torch.isfinite(logprob).all()


def test_uniforms_of_samples_and_seeds_are_distinct() -> None:
    streams = uniforms(5, 6, 50)
    assert np.array_equal(streams[:3], uniforms(5, 3, 50))
    assert np.array_equal(streams[:, :20], uniforms(5, 6, 20))
    assert len(np.unique(streams)) == streams.size
    assert not np.isin(uniforms(6, 6, 50), streams).any()
    large = [uniforms(seed, 1, 20) for seed in (0, -2, 2**63, 2**63 + 1, 2**64 - 1)]
    assert len(np.unique(np.concatenate(large))) == 100


# -- one row per sample, for models without free masks ------------------------------------------------------


@pytest.mark.parametrize("kind", [CachedRowsDecoder, PlacedRowsDecoder, RecomputingDecoder])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_rows_draw_what_a_shared_computation_draws(tiny_model: Path, kind: type[Decoder], temperature: float) -> None:
    """The random numbers are the same, and so are the answers, with samples that end early and columns that leave."""
    policy = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    requests = [
        SampleRequest(policy.encode_prompt(p), limit, 7 + limit) for p, limit in zip(PROMPTS, LIMITS, strict=True)
    ]
    stops = frozenset(range(3, 120))
    told: dict[int, Group] = {}
    drawn = [
        sample_groups(
            policy.model, requests, SamplingParams(6, temperature), stops, policy.decode, told.__setitem__, decoder=own
        )
        for own in (FusedDecoder, kind)
    ]
    assert _tokens(drawn[1]) == _tokens(drawn[0])
    assert temperature == 0 or len({len(t) for own in _tokens(drawn[1]) for t in own}) > 4
    assert _logprobs(drawn[1]) == pytest.approx(_trainer_logprobs(policy, drawn[1], temperature), abs=1e-4)
    assert told == dict(enumerate(drawn[1]))


def test_rows_of_a_model_without_a_cache_are_refused(tiny_model: Path) -> None:
    model: Any = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32")).model
    forward = model.forward
    model.forward = lambda **options: SimpleNamespace(logits=forward(**options).logits)
    with pytest.raises(ValueError, match="returns no cache"), torch.no_grad():
        CachedRowsDecoder(model, 2, 3).prefill([(1, 2, 3)])


def test_request_of_another_length_class_changes_no_other_sample(
    policy: TorchPolicy, requests: list[SampleRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request is too long for what the others are sampled by."""
    alone = policy.sample(requests, SamplingParams(2))
    most = max(len(request.prompt) + request.max_tokens for request in requests)
    known = policy._proven.paths(most)

    def paths(length: int, slots: int = 0) -> Paths:
        return known if length <= most else replace(known, decoder="rows")

    monkeypatch.setattr(policy._proven, "paths", paths)
    long = replace(requests[0], prompt=tuple(requests[0].prompt) * 20)
    told: dict[int, Group] = {}
    found = policy.sample([long, *requests], SamplingParams(2), told.__setitem__)
    assert _tokens(found[1:]) == _tokens(alone)
    assert found[0].prompt == long.prompt
    assert told == dict(enumerate(found))
