"""Budgets of thoughts: what is drawn and written, in any company, and what of it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.metrics import sampled_entropy
from omni_thinker.sampling.decoders.base import Decoder, MaskedDecoder
from omni_thinker.sampling.decoders.cuda_graph import StaticDecoder
from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.decoders.rows import CachedRowsDecoder
from omni_thinker.sampling.loop import sample_groups
from omni_thinker.sampling.thinking import Thinker
from omni_thinker.types import Group, Mark, Problem, Sample, SampleRequest, SamplingParams, Score, ThoughtRule, Thoughts
from think_models import decode, ids_of, rule_for


@pytest.mark.parametrize(
    ("budget", "drawn", "written", "limit"),
    [
        (0, "xy$", "\n]\nxy$", 3 + 4),
        (2, "ab42$", "ab\n]\n42$", 2 + 3 + 4),
        (2, "a]42$", "a]42$", 2 + 4),
        (2, "ab]42$", "ab\n]\n]42$", 2 + 3 + 4),  # the mark would be the third
        (9, "abc]42$", "abc]42$", 4 + 4),
    ],
)
def test_block_is_closed_after_the_budget(budget: int, drawn: str, written: str, limit: int) -> None:
    one = Thinker(SampleRequest((1,), 4, 0, (), rule_for("open", budget)), decode)
    draws, tokens = iter(ids_of(drawn)), list[int]()
    while len(tokens) < len(written):
        mark = one.next()
        tokens.append(next(draws) if mark < 0 else mark)
        one.saw(tokens[-1])
    assert tokens == ids_of(written)
    assert one.limit == limit
    forced = written.find("\n]\n")
    assert one.forced == (() if forced < 0 else (forced, forced + 1, forced + 2))
    assert limit <= rule_for("open", budget).longest(4)


def test_budget_counts_from_where_a_model_opens_its_thoughts() -> None:
    one = Thinker(SampleRequest((1,), 4, 0, (), rule_for("absent", 2)), decode)
    for token in ids_of("\n[ab"):
        assert one.next() == -1
        one.saw(token)
    assert one.next() == 10
    assert one.limit == 2 + 2 + 3 + 4
    never = Thinker(SampleRequest((1,), 4, 0, (), rule_for("absent", 2)), decode)
    for token in ids_of("a[bc"):
        never.saw(token)
    assert (never.next(), never.limit, never.thinking) == (-1, 4, False)


@pytest.fixture(scope="module")
def policy(tiny_model: Path) -> TorchPolicy:
    return TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))


@pytest.fixture(scope="module")
def rule(policy: TorchPolicy) -> ThoughtRule:
    """Whose closing mark is a token that the tiny model often draws."""
    [group] = policy.sample([SampleRequest(policy.encode_prompt("Hi"), 30, 7)], SamplingParams(8))
    flat = [token for sample in group.samples for token in sample.tokens]
    close = max(sorted(set(flat)), key=flat.count)
    return ThoughtRule(Mark("[", (509,), True), Mark("]", (close,), True), (510, close, 511), "open", 5)


def _requests(policy: TorchPolicy, rule: ThoughtRule) -> list[SampleRequest]:
    return [
        SampleRequest(policy.encode_prompt("Hi"), 4, 1, (), replace(rule, budget=0)),
        SampleRequest(policy.encode_prompt("Which option is right?"), 6, 2, (), rule),
        SampleRequest(policy.encode_prompt("How much is 2 + 2?"), 5, 3, (), replace(rule, budget=40)),
        SampleRequest(policy.encode_prompt("Hi"), 9, 4, (), replace(rule, budget=None)),
        SampleRequest(policy.encode_prompt("Hi"), 7, 5),
    ]


@pytest.mark.parametrize("decoder", [FusedDecoder, StaticDecoder, MaskedDecoder, CachedRowsDecoder])
def test_samples_keep_their_budget_in_any_company(
    policy: TorchPolicy, rule: ThoughtRule, decoder: type[Decoder]
) -> None:
    """Thoughts of no token, of five, and of as many as it takes."""
    requests, params = _requests(policy, rule), SamplingParams(4)

    def draw(chosen: Sequence[SampleRequest]) -> list[Group]:
        return sample_groups(policy.model, chosen, params, policy.stop_ids, policy.decode, decoder=decoder)

    together = draw(requests)
    for request, group in zip(requests, together, strict=True):
        [alone] = draw([request])
        assert [s.tokens for s in alone.samples] == [s.tokens for s in group.samples]
        assert [s.thoughts for s in alone.samples] == [s.thoughts for s in group.samples]
        for sample in group.samples:
            assert len(sample.tokens) <= request.longest
            assert sample.answer_length <= request.max_tokens
    none, five, long, free, plain = ([s.thoughts for s in group.samples] for group in together)
    assert plain == [None] * 4
    assert all(one is not None and one.forced == (0, 1, 2) and one.tokens == 3 and not one.text for one in none)
    assert all(one is not None and one.closed and one.tokens <= 8 for one in five)
    assert {one.forced for one in five if one} >= {(5, 6, 7)}
    assert all(one is not None and one.closed and one.tokens <= 43 for one in long)
    assert any(one is not None and one.tokens > 8 for one in long)
    assert all(one is not None and not one.forced for one in free)
    flat = [(sample, request) for request, group in zip(requests, together, strict=True) for sample in group.samples]
    for sample, _ in flat:
        assert all(sample.logprobs[place] == 0.0 for place in sample.forced)


def test_stop_texts_wait_for_the_end_of_thoughts(policy: TorchPolicy, rule: ThoughtRule) -> None:
    free = replace(rule, budget=12, close=Mark("]", (400,), True), closing=(400,))
    request = SampleRequest(policy.encode_prompt("Hi"), 12, 3, (), free)
    [group] = policy.sample([request], SamplingParams(4))
    text = next(s.text for s in group.samples if len(s.text) > 3)
    [stopped] = policy.sample([replace(request, stop=(text[1:3],))], SamplingParams(4))
    for sample in stopped.samples:
        assert sample.thoughts is not None
        assert sample.thoughts.tokens == 13
        assert text[1:3] not in sample.text
    assert text[:1] in [sample.text for sample in stopped.samples]


def test_trainer_agrees_on_drawn_tokens_and_forced_ones_have_no_gradient(
    policy: TorchPolicy, rule: ThoughtRule
) -> None:
    """The gradient is that of the drawn tokens alone, computed by hand from the model's own forward pass."""
    [group] = policy.sample([_requests(policy, rule)[1]], SamplingParams(4))
    advantages, weights = (1.0, -0.5, 0.25, 2.0), (0.5, 1.0, 0.25, 0.125)
    batch = [TrainGroup("t", group.prompt, group.samples, advantages, weights)]
    seen: list[TokenBatch] = []

    def reinforce(tokens: TokenBatch) -> LossTerms:
        seen.append(tokens)
        loss = -(tokens.weights_N * tokens.advantages_N * tokens.logprobs_N).sum()
        return LossTerms(loss, torch.zeros_like(tokens.weights_N, dtype=torch.bool))

    report = policy.forward_backward(batch, reinforce)
    drawn = sum(sample.drawn for sample in group.samples)
    assert drawn < batch[0].tokens
    assert report.stats["t"].tokens == len(seen[0].logprobs_N) == drawn
    assert (seen[0].logprobs_N - seen[0].old_logprobs_N).abs().max() < 1e-4
    found = [master.grad.clone() for master in policy._masters if master.grad is not None]
    assert len(found) == len(policy._masters)
    policy._updates.clear()
    policy.model.zero_grad()
    total = torch.zeros(())
    for sample, advantage, weight in zip(group.samples, advantages, weights, strict=True):
        row = torch.tensor([[*group.prompt, *sample.tokens]])
        logprobs = policy.model(input_ids=row).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
        for place, token in enumerate(sample.tokens):
            if place not in sample.forced:
                total = total - weight * advantage * logprobs[place, token]
    names = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(total, names)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_losses_weigh_drawn_tokens_alone(policy: TorchPolicy) -> None:
    """A sample of two drawn tokens and three written ones weighs like one of two tokens, whatever the loss."""
    thoughts = Thoughts("", 4, True, (1, 2, 3))
    mixed = Sample((5, 6, 7, 8, 9), (-5.0, 0.0, 0.0, 0.0, -5.0), "x", "stop", thoughts)
    other = Sample((5, 6), (-5.0, -5.0), "y", "stop")
    scored = ScoredGroup(Problem("p", "t", "p"), Group((1, 2), (mixed, other)), (Score.of(1.0), Score.of(0.0)))
    for loss in ("grpo", "dapo", "gspo", "cispo"):
        [[group]] = build_batches([scored], RlSpec(loss=loss), 10)
        assert group.weights[0] == group.weights[1] == pytest.approx(0.25)
        report = policy.forward_backward([group], make_loss(RlSpec(loss=loss)))
        policy._updates.clear()
        assert report.stats["t"].tokens == 4
    assert sampled_entropy([scored]) == 5.0
