"""Tokens that follow the same tokens are computed once: in prompts, while samples are drawn, and in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.engine.hidden_states import last_states
from omni_thinker.engine.logprobs import Layout, answer_logprobs
from omni_thinker.engine.native import kernels
from omni_thinker.engine.nodes import distinct_answers, nodes_of
from omni_thinker.engine.packing import MULTIPLE, pack
from omni_thinker.protocol import TrainGroup
from omni_thinker.sampling.decoders.base import MaskedDecoder
from omni_thinker.sampling.decoders.beginnings import lay_out, shared_tokens
from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.decoders.native import NativeDecoder
from omni_thinker.sampling.decoders.twins import Rows, Twins
from omni_thinker.sampling.loop import sample_groups
from omni_thinker.types import Group, Sample, SampleRequest, SamplingParams
from test_policy_layouts import make_model

PROMPTS = st.lists(st.lists(st.integers(3, 5), min_size=1, max_size=7).map(tuple), min_size=1, max_size=9)


def group(prompt: tuple[int, ...], *answers: tuple[int, ...], task: str = "t") -> TrainGroup:
    samples = tuple(Sample(answer, (0.0,) * len(answer), "", "stop") for answer in answers)
    zeros = (0.0,) * len(samples)
    return TrainGroup(task, prompt, samples, zeros, zeros)


# -- prompts ------------------------------------------------------------------------------------------------


def test_row_of_prompts_equals_values_by_hand() -> None:
    row = lay_out([(7, 8, 5), (7, 8), (9,), (7, 8, 4)], multiple=4)
    assert row.tokens_N.tolist() == [7, 8, 4, 5, 9, 0, 0, 0]
    assert row.positions_N.tolist() == [0, 1, 2, 2, 0, 0, 0, 0]
    assert row.place_P_T.tolist() == [[0, 1, 3], [0, 1, 0], [4, 0, 0], [0, 1, 2]]
    assert row.last_P.tolist() == [3, 1, 4, 2]
    assert row.end_P.tolist() == [2, 4, 6, 11]
    # Tokens 7 and 8 are taken from the second prompt, which is first in the order of the row.
    assert row.slot_N.tolist()[:5] == [3, 4, 11, 2, 6]


@given(PROMPTS)
def test_row_of_prompts_has_every_beginning_once(prompts: list[tuple[int, ...]]) -> None:
    row = lay_out(prompts, MULTIPLE)
    beginnings = {prompt[: n + 1] for prompt in prompts for n in range(len(prompt))}
    assert len(row.tokens_N) == -(-len(beginnings) // MULTIPLE) * MULTIPLE
    for prompt, places, last in zip(prompts, row.place_P_T.tolist(), row.last_P.tolist(), strict=True):
        assert [int(row.tokens_N[place]) for place in places[: len(prompt)]] == list(prompt)
        assert [int(row.positions_N[place]) for place in places[: len(prompt)]] == list(range(len(prompt)))
        assert last == places[len(prompt) - 1]
    flat = row.place_P_T.flatten()
    assert flat[row.slot_N[: len(beginnings)]].tolist() == list(range(len(beginnings)))


@pytest.mark.parametrize(("one", "other", "count"), [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 3, 3), 1)])
def test_shared_tokens_counts_the_common_beginning(one: Sequence[int], other: Sequence[int], count: int) -> None:
    assert shared_tokens(one, other) == count


# -- samples while they are drawn ---------------------------------------------------------------------------


def test_rows_of_twins_equal_values_by_hand() -> None:
    twins = Twins(2, 16, torch.device("cpu"))
    samples = torch.arange(16).expand(2, -1).clone()
    tokens = torch.full((2, 16), 7)
    tokens[0, 3] = tokens[1, 0] = 8
    rows = twins.feed(tokens, samples)
    assert rows.column_R is not None
    assert rows.row_N is not None
    assert rows.column_R.tolist() == [0, 3, 16, 17, 0, 0, 0, 0], "the last four fill up"
    assert rows.row_N.tolist() == [0, 0, 0, 1, *[0] * 12, 2, *[3] * 15]
    # The same token after different ones makes no twins; a column without a sample is any row.
    samples[1, 5] = -1
    tokens = torch.full((2, 16), 9)
    tokens[1, 5] = 1
    again = twins.feed(tokens, samples)
    assert again.row_N is not None
    assert again.row_N.tolist() == [*rows.row_N.tolist()[:16], 2, *[3] * 4, 2, *[3] * 10]
    twins.keep(torch.tensor([1]), torch.tensor([[15, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 5]]))
    kept = twins.feed(torch.full((1, 16), 9), samples[:1])
    assert kept.row_N is not None
    assert kept.row_N.tolist() == [0, 1, *[0] * 13, 1]


def test_groups_without_a_sample_have_no_row() -> None:
    twins = Twins(16, 2, torch.device("cpu"))
    samples = torch.arange(2).repeat(16, 1)
    samples[::2] = -1
    rows = twins.feed(torch.arange(32).view(16, 2), samples)
    assert rows.column_R is not None
    assert rows.column_R.tolist() == [column for group in range(1, 16, 2) for column in (2 * group, 2 * group + 1)]
    assert rows.wanted_N is not None
    assert rows.wanted_N.tolist() == [group % 2 == 1 for group in range(16) for _ in range(2)]


def test_columns_that_all_differ_are_rows_of_their_own() -> None:
    twins = Twins(1, 16, torch.device("cpu"))
    rows = twins.feed(torch.arange(16)[None], torch.arange(16)[None])
    assert rows == Rows()
    x = torch.randn(16, 3)
    assert rows.spread(x) is x
    assert rows.pick(x) is x


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_samples_that_begin_alike_are_those_of_a_row_for_each(
    temperature: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", initializer_range=0.5)
    prompts = [(5, 6, 7, 8), (5, 6, 7), (5, 6, 7, 8), (9, 5, 6), (5, 6, 4, 4, 4)]
    requests = [SampleRequest(prompt, 4 + 3 * n, n) for n, prompt in enumerate(prompts)]
    computed: list[tuple[int, int]] = []

    def feed(self: Twins, *args: Any, kept: Any = Twins.feed) -> Rows:
        rows: Rows = kept(self, *args)
        computed.append((args[0].numel(), args[0].numel() if rows.column_R is None else len(rows.column_R)))
        return rows

    monkeypatch.setattr(Twins, "feed", feed)
    drawn = [
        sample_groups(model, requests, SamplingParams(size, temperature), frozenset([2]), str, decoder=kind)
        for kind in (FusedDecoder, MaskedDecoder)
    ]
    assert _tokens(drawn[0]) == _tokens(drawn[1])
    for one, other in zip(*drawn, strict=True):
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert (size == 1) == all(columns == rows for columns, rows in computed)


@pytest.mark.skipif(kernels() is None, reason="no C compiler")
def test_native_samples_that_begin_alike_are_those_of_a_row_for_each() -> None:
    class Apart(NativeDecoder):
        shares = False

    model: Any = make_model("llama", initializer_range=0.5, hidden_size=64, head_dim=64)
    model.to(torch.bfloat16)
    requests = [SampleRequest((5, 6, 7 + n % 2), 6 + n, n) for n in range(6)]
    drawn = [
        sample_groups(model, requests, SamplingParams(8, 0.7), frozenset([2]), str, decoder=kind)
        for kind in (NativeDecoder, Apart)
    ]
    same = total = 0
    for one, other in zip(*drawn, strict=True):
        for a, b in zip(one.samples, other.samples, strict=True):
            total += 1
            if a.tokens == b.tokens:  # rounding may move a draw over the edge of another token
                same += 1
                assert a.logprobs == pytest.approx(b.logprobs, abs=0.1)
    assert same > 0.9 * total


def _tokens(groups: Sequence[Group]) -> list[list[tuple[int, ...]]]:
    return [[sample.tokens for sample in group.samples] for group in groups]


# -- training -----------------------------------------------------------------------------------------------

GROUPS = [
    group((5, 6), (7, 8, 9), (7, 8, 4), (7, 8, 9), task="a"),
    group((5, 6, 3), (7,), (7, 2), (8, 2), task="b"),
    group((5, 6, 4), (9, 9, 9, 2), (9, 9, 9, 2), (9, 9, 3), task="a"),
]


def test_nodes_of_a_row_equal_values_by_hand() -> None:
    row = pack(GROUPS[:2], multiple=1)
    assert row.tokens_T.tolist() == [5, 6, 7, 8, 7, 8, 7, 8, 5, 6, 3, 7, 8]
    nodes = nodes_of(row)
    assert nodes is not None
    # Groups of two tasks share nothing, samples of one group do.
    assert nodes.node_T.tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 6, 7, 8]
    assert nodes.tokens_U.tolist()[:9] == [5, 6, 7, 8, 5, 6, 3, 7, 8]
    assert nodes.positions_U.tolist()[:9] == [0, 1, 2, 3, 0, 1, 2, 3, 3]
    assert len(nodes.tokens_U) == MULTIPLE
    assert nodes.new == (4, 5)
    assert nodes.token_R.tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 12]
    # Attention is over a sample that ends in 7, 8 once.
    assert nodes.shapes == ((2, (2,)), (3, (1, 1)))
    assert nodes.node_K.tolist() == nodes.first_R.tolist() == list(range(9))
    assert nodes.again_D.tolist() == []
    distinct, pair_N = distinct_answers(row, nodes)
    pairs = list(zip(distinct.source_N.tolist(), distinct.target_N.tolist(), strict=True))
    assert [pairs[pair] for pair in pair_N] == [
        (1, 7), (2, 8), (3, 9), (1, 7), (2, 8), (3, 4), (1, 7), (2, 8), (3, 9), (10, 7), (10, 7), (11, 2), (10, 8),
        (12, 2),
    ]  # fmt: skip


def test_attention_is_over_samples_that_no_other_begins_with() -> None:
    row = pack([group((5,), (7, 8, 1), (7, 8, 9, 1), (7, 8, 4, 4, 1), (7, 8, 9, 2), (3,))], multiple=1)
    nodes = nodes_of(row)
    assert nodes is not None
    assert nodes.shapes == ((1, (3, 4)),)
    assert [int(nodes.tokens_U[node]) for node in nodes.node_K] == [5, 7, 8, 9, 7, 8, 4, 4]
    assert nodes.first_R.tolist() == [0, 1, 2, 3, 6, 7]
    assert nodes.again_D.tolist() == [4, 5]


def test_groups_of_a_task_share_the_beginning_of_their_prompts() -> None:
    nodes = nodes_of(pack(GROUPS))
    assert nodes is not None
    assert nodes.new == (4, 5, 4), "of the last group: 4, 9, 9, 9"


def test_row_without_the_same_tokens_has_no_nodes() -> None:
    assert nodes_of(pack([group((5, 6), (7, 8), (9, 8))])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("recompute", [False, True])
def test_logprobs_and_gradients_by_nodes_equal_those_of_the_whole_row(
    family: str, dtype: torch.dtype, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = make_model(family)
    model.to(dtype)
    weights = torch.randn(sum(g.tokens for g in GROUPS), generator=torch.Generator().manual_seed(1))
    found = []
    for by_nodes in (True, False):
        if not by_nodes:
            monkeypatch.setattr("omni_thinker.engine.logprobs.nodes_of", lambda _: None)
        scored = answer_logprobs(model, GROUPS, temperature=0.7, layout="written-out", recompute=recompute)
        model.zero_grad()
        ((scored.logprobs_N + 0.1 * scored.entropy_N) * weights).sum().backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        found.append((scored, gradient))
    (one, gradient), (other, expected) = found
    torch.testing.assert_close(one.logprobs_N, other.logprobs_N, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.entropy_N, other.entropy_N, atol=1e-5, rtol=1e-5)
    assert one.sample_N.tolist() == other.sample_N.tolist()
    assert one.computed == other.computed
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((gradient - expected).norm()) <= rounding * float(expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_of_one_token_need_no_sample_in_the_row(dtype: torch.dtype) -> None:
    model: Any = make_model("llama", hidden_size=64, head_dim=64)
    model.to(dtype)
    groups = [group((5, 6, 7), (3,), (4,)), group((5, 6, 8), (3,), (3,))]
    assert nodes_of(pack(groups)) is not None
    one, other = (
        answer_logprobs(model, groups, temperature=1.0, layout=layout).logprobs_N
        for layout in cast("tuple[Layout, ...]", ("written-out", "single"))
    )
    torch.testing.assert_close(one, other, atol=1e-5 if dtype == torch.float32 else 0.2, rtol=1e-4)
    one.sum().backward()


def test_states_of_families_that_begin_alike_equal_those_of_each_row_alone() -> None:
    model = make_model("llama")
    families: list[list[tuple[int, ...]]] = [[(5, 6, 7, 3), (5, 6, 7, 3, 4)], [(5, 6, 8), (5, 6, 8, 9)], [(5, 6, 7, 3)]]
    together = last_states(model, families)
    alone = torch.cat([last_states(model, [[row]]) for rows in families for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_nodes_do_not_depend_on_what_answers_are_worth() -> None:
    """So that a step's passes, of the policy and of the start, are the same row."""
    other = [replace(one, weights=(0.5,) * 3, advantages=(1.0,) * 3) for one in GROUPS]
    one, two = nodes_of(pack(GROUPS)), nodes_of(pack(other))
    assert one is not None
    assert two is not None
    assert one.node_T.tolist() == two.node_T.tolist()
