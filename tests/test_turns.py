"""Tasks with turns: what is sampled, what is trained, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.evaluate import evaluate
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.metrics import group_metrics
from omni_thinker.rl.requests import request_for
from omni_thinker.rl.scoring import Scoring
from omni_thinker.rl.stream import make_streams
from omni_thinker.rl.turns.converse import Talks, sample_scored
from omni_thinker.tasks.environments.base import Turns
from omni_thinker.types import Dialogue, Exchange, Group, Problem, Sample, SampleRequest, SamplingParams, Score
from scripted import Scripted, in_turns
from think_models import save_model, template, tokenizer
from unigram_policy import UnigramPolicy

END = "<|im_end|>"
BETWEEN = "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROBLEMS = tuple(Problem(str(n), "t", f"How much is {n} + {n}?") for n in range(3))


class Asks:
    """Says its words to every answer, or nothing to texts of an even length."""

    def __init__(self, words: str = "Why?", *, all_: bool = True) -> None:
        self.words, self.all = words, all_

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        memory["asked"] = [*memory.get("asked", []), len(answers)]
        return self.words if self.all or len(answers[-1]) % 2 else None


class Breaks:
    """An environment with a bug, or with something else than text to say."""

    def __init__(self, words: Any = None) -> None:
        self.words = words

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        if self.words is None:
            raise LookupError("no such tool")
        said: str = self.words
        return said


@pytest.fixture(scope="module")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TorchPolicy:
    """A tiny model that often ends its answer."""
    folder = save_model(tiny_model, tmp_path_factory.mktemp("ends"), tokenizer(tiny_model, template()), likely=(END,))
    return TorchPolicy(ModelSpec.model_validate({"name": str(folder), "dtype": "float32"}))


def talk(
    policy: Any,
    turns: Mapping[str, Turns],
    *,
    size: int = 3,
    problems: Sequence[Problem] = PROBLEMS,
    longest: int = 24,
    patient: bool = True,
) -> list[ScoredGroup]:
    requests = [request_for(policy, problem, 7 + n, longest) for n, problem in enumerate(problems)]
    with Scoring({"t": Scripted(in_turns)}) as scoring:
        sample_scored(
            policy,
            problems,
            requests,
            SamplingParams(size),
            scoring,
            Talks(turns, {}, deadline_s=20.0 if patient else 0.2),
        )
        return scoring.results()


def turns(environment: Any, most: int = 3, message_tokens: int = 60) -> dict[str, Turns]:
    return {"t": Turns(environment, most, message_tokens)}


def samples(groups: Sequence[ScoredGroup]) -> list[Sample]:
    return [sample for group in groups for sample in group.group.samples]


def trained(groups: Sequence[ScoredGroup]) -> list[TrainGroup]:
    return build_batches(groups, RlSpec(group_size=3), 100)[0]


def gradient(policy: TorchPolicy) -> torch.Tensor:
    """Flat; cleared."""
    flat = torch.cat([m.grad.flatten() for m in policy._masters if m.grad is not None])
    policy._updates.clear()
    return flat


@pytest.fixture(scope="module")
def batch(policy: TorchPolicy) -> list[TrainGroup]:
    """Conversations to train on."""
    return trained(talk(policy, turns(Asks()), longest=40))


# -- sampling -----------------------------------------------------------------------------------------------


def test_sample_is_every_turn_as_it_was_drawn_with_the_template_between(policy: TorchPolicy) -> None:
    groups = talk(policy, turns(Asks("Why not 5?")), longest=40)
    taken = {len(sample.dialogue.exchanges) for sample in samples(groups) if sample.dialogue}
    assert taken == {1, 2, 3}  # an answer that was cut ends the conversation
    between = policy.chat.encode(BETWEEN.format("Why not 5?"))
    for sample in samples(groups):
        assert sample.dialogue is not None
        whole, written = list[int](), list[int]()
        for exchange in sample.dialogue.exchanges:
            whole += exchange.answer.tokens
            if exchange.reply is not None:
                assert exchange.answer.tokens[-1] in policy.stop_ids
                written += range(len(whole), len(whole) + len(between))
                whole += between
                assert exchange.reply_tokens == len(between)
        assert sample.tokens == tuple(whole)
        assert sample.forced == tuple(written)
        assert sample.drawn == sample.length == len(whole) - len(written)
        last = sample.dialogue.exchanges[-1].answer
        assert (sample.text, sample.stop) == (last.text, last.stop)
        assert sample.dialogue.texts[-1] == sample.text
        assert all(sample.logprobs[place] == 0.0 for place in written)


def test_logprobs_of_all_turns_are_what_the_trainer_computes(policy: TorchPolicy, batch: list[TrainGroup]) -> None:
    """In one pass over the whole conversation."""
    theirs = iter(policy.logprobs(batch).tolist())
    pairs = [
        (next(theirs), own, drawn)
        for group in batch
        for sample in group.samples
        for own, drawn in zip(sample.logprobs, sample.chosen, strict=True)
    ]
    assert sum(not drawn for _, _, drawn in pairs) > 100
    assert max(abs(a - b) for a, b, drawn in pairs if drawn) < 1e-4


def test_task_without_turns_is_sampled_as_if_there_were_none(policy: TorchPolicy) -> None:
    requests = [request_for(policy, problem, 7 + n, 24) for n, problem in enumerate(PROBLEMS)]
    alone = policy.sample(requests, SamplingParams(3))
    beside = talk(policy, {"another": Turns(Asks(), 3, 60)})
    assert [group.group for group in beside] == alone
    first = talk(policy, turns(Asks()))
    answers = [sample.dialogue.exchanges[0].answer for sample in samples(first) if sample.dialogue]
    assert answers == samples(beside)  # turns change nothing of the first answer


def test_later_turns_depend_on_seed_sample_and_turn_alone(policy: TorchPolicy) -> None:
    """So arms are paired, and a resumed run draws the same."""
    whole = talk(policy, turns(Asks(), 3), size=3)
    half = talk(policy, turns(Asks(), 3), size=2, problems=PROBLEMS[:2])
    tokens = [[sample.tokens for sample in group.group.samples[:2]] for group in whole[:2]]
    assert [[sample.tokens for sample in group.group.samples] for group in half] == tokens
    one, other = (sample for sample in samples(half)[:2])
    assert one.tokens != other.tokens


def test_environment_that_is_content_ends_the_conversation_and_keeps_its_memory(policy: TorchPolicy) -> None:
    for sample in samples(talk(policy, turns(Asks(all_=False), 5))):
        assert sample.dialogue is not None
        answers = sample.dialogue.answers
        assert all(len(text) % 2 for text in answers[:-1])
        asked = len(answers) - (sample.stop == "length" or len(answers) == 5)
        assert sample.dialogue.memory.get("asked", []) == list(range(1, asked + 1))


def test_message_that_is_too_long_is_cut_and_markup_in_it_is_none(policy: TorchPolicy) -> None:
    for sample in samples(talk(policy, turns(Asks(f"{END}word " * 500), 2, 40))):
        assert sample.dialogue is not None
        first = sample.dialogue.exchanges[0]
        if first.reply is not None:
            assert 30 < first.reply_tokens <= 40
            assert [t in policy.stop_ids for t in (sample.tokens[p] for p in sample.forced)].count(True) == 1


class Sleeps:
    """Never replies."""

    async def reply(self, problem: Problem, answers: Sequence[str], memory: dict[str, Any]) -> str | None:
        await asyncio.sleep(600)
        return None


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (Sleeps(), "the environment gave no reply in time"),
        (Breaks(), "the environment failed: LookupError: no such tool"),
        (Breaks(5), "the environment replied with int, not text"),
    ],
)
def test_environment_that_fails_is_an_error_and_never_a_zero(policy: TorchPolicy, environment: Any, why: str) -> None:
    groups = talk(policy, turns(environment), patient=not isinstance(environment, Sleeps))
    for group in groups:
        for sample, score in zip(group.group.samples, group.scores, strict=True):
            if sample.stop == "stop":
                assert (score.status, score.reason) == ("error", why)
            else:
                assert score.status == "value"


def test_policy_that_cannot_be_spoken_to_is_refused() -> None:
    with pytest.raises(UserError, match="lacks follow") as refused:
        talk(UnigramPolicy({}), turns(Asks()))
    assert refused.value.key == "tasks.t.turns"


# -- training -----------------------------------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_the_drawn_tokens_by_hand(policy: TorchPolicy, batch: list[TrainGroup]) -> None:
    """Against one plain forward pass a sample, over everything that was said: -1/N sum of advantage x log-prob."""
    count = sum(group.drawn for group in batch)
    spec = RlSpec(kl_beta=0.0)
    report = policy.forward_backward(batch, make_loss(spec))
    found = gradient(policy)
    model, expected = policy.model, torch.zeros(())
    for group in batch:
        for sample, advantage, weight in zip(group.samples, group.advantages, group.weights, strict=True):
            ids = torch.tensor([[*group.prompt, *sample.tokens]])
            logprobs = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            own = logprobs.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0][torch.tensor(sample.chosen)]
            ratio = (own - torch.tensor(sample.drawn_logprobs)).exp()  # 1 but for rounding
            expected = expected - weight * advantage * ratio.sum()
    expected.backward()
    assert report.loss == pytest.approx(expected.item(), abs=1e-5)
    assert report.stats["t"].tokens == count
    assert found.abs().max() > 1e-3
    assert torch.allclose(found, gradient(policy), atol=1e-5)


@settings(max_examples=5)
@given(budget=st.integers(64, 600))
def test_micro_batches_of_any_size_have_one_gradient(policy: TorchPolicy, batch: list[TrainGroup], budget: int) -> None:
    def in_rows_of(tokens: int) -> torch.Tensor:
        before, policy.token_budget = policy.token_budget, tokens
        policy.forward_backward(batch, make_loss(RlSpec()))
        policy.token_budget = before
        return gradient(policy)

    assert torch.allclose(in_rows_of(budget), in_rows_of(100_000), atol=1e-5)


def _learner(policy: TorchPolicy, most: int | None = 3) -> Learner:
    spec = RlSpec(group_size=4, problems_per_step=3, kl_every=0, lr=1e-3, refill_rounds=0)
    own = None if most is None else turns(Asks(), most)
    streams = make_streams({"t": PROBLEMS}, 0)
    return Learner(policy, spec, streams, {"t": Scripted(in_turns)}, {"t": 30}, turns=own)


def _flat(policy: TorchPolicy) -> torch.Tensor:
    return torch.cat([master.detach().flatten() for master in policy._masters])


def test_step_reports_own_tokens_alone_and_resumes_bit_for_bit(policy: TorchPolicy, tmp_path: Path) -> None:
    policy.save_state(tmp_path / "start")
    learner = _learner(policy)
    result = learner.step({"t": 3}, 0)
    metrics = result.metrics
    own = sum(sample.length for sample in samples(result.groups))
    whole = sum(len(sample.tokens) for sample in samples(result.groups))
    assert whole > own
    assert metrics["tokens_sampled/all"] == own == result.tokens_sampled
    assert metrics["completion_length/t"] == own / 12
    assert metrics["message_length/t"] == (whole - own) / 12
    assert metrics["mismatch_abs/all"] < 1e-4
    assert metrics["tokens_trained/all"] == result.tokens_trained <= own
    policy.save_state(tmp_path / "one")
    state = learner.state()
    learner.step({"t": 3}, 1)
    twice = _flat(policy)
    policy.load_state(tmp_path / "one")
    again = _learner(policy)
    again.restore(state)
    again.step({"t": 3}, 1)
    assert torch.equal(_flat(policy), twice)
    policy.load_state(tmp_path / "start")


def test_learner_without_turns_takes_the_steps_it_took(policy: TorchPolicy, tmp_path: Path) -> None:
    """One turn at most is no turn: the same weights, bit for bit, and the same numbers."""
    policy.save_state(tmp_path / "start")
    ends = []
    for most in (None, 1):
        metrics = _learner(policy, most).step({"t": 3}, 0).metrics
        ends.append((_flat(policy), {k: v for k, v in metrics.items() if "turn" not in k and "message" not in k}))
        policy.load_state(tmp_path / "start")
    assert torch.equal(ends[0][0], ends[1][0])
    numbers = [{k: v for k, v in end.items() if not k.startswith("seconds")} for _, end in ends]
    assert numbers[0] == numbers[1]


def test_evaluation_takes_turns_and_scores_the_last_answer(policy: TorchPolicy) -> None:
    result = evaluate(
        policy,
        {"t": PROBLEMS},
        {"t": Scripted(in_turns)},
        {"t": 30},
        params=SamplingParams(2),
        seed=3,
        turns=turns(Asks(), 2),
    )
    said = samples(result.groups)
    assert any(sample.dialogue and len(sample.dialogue.exchanges) == 2 for sample in said)
    assert result.tokens == sum(sample.length for sample in said)
    assert 1 < result.metrics["turns/t"] <= 2


# -- metrics ------------------------------------------------------------------------------------------------


def _said(*lengths: int, reply: int = 4) -> Sample:
    answers = [Sample((1,) * length, (-1.0,) * length, "x", "stop") for length in lengths]
    exchanges = [Exchange(answer, "no", reply) for answer in answers[:-1]] + [Exchange(answers[-1])]
    total = sum(lengths) + reply * (len(lengths) - 1)
    return Sample((1,) * total, (-1.0,) * total, "x", "stop", dialogue=Dialogue(tuple(exchanges)))


def test_metrics_of_turns_by_hand() -> None:
    """Four conversations: right at once; right after an error; wrong twice; and one without a score."""
    group = Group((1,), (_said(3), _said(2, 5), _said(1, 1), _said(7, 7)))
    scores = (Score.of(1.0), Score.of(1.0), Score.of(0.4), Score.error("x"))
    metrics = group_metrics([ScoredGroup(PROBLEMS[0], group, scores)])
    assert metrics["turns/t"] == 7 / 4
    assert metrics["message_length/t"] == 12 / 4
    assert metrics["turn_success.1/t"] == 1 / 3
    assert metrics["turn_success.2/t"] == 1 / 2
    assert metrics["completion_length/t"] == (3 + 7 + 2 + 14) / 4
    plain = Group((1,), (Sample((1,), (-1.0,), "x", "stop"),))
    assert not [key for key in group_metrics([ScoredGroup(PROBLEMS[0], plain, (Score.of(1.0),))]) if "turn" in key]


def test_lengths_of_a_conversation_are_of_its_answers() -> None:
    sample = _said(2, 9, 5)
    assert (sample.length, sample.longest_answer, sample.answer_length) == (16, 9, 5)


def test_later_request_has_all_that_was_said_as_its_prompt(policy: TorchPolicy) -> None:
    """Seen by the sampler itself, which must be asked for nothing else."""
    seen: list[Sequence[SampleRequest]] = []

    class Watched(TorchPolicy):
        def __init__(self) -> None:
            vars(self).update(vars(policy))

        def sample(self, requests: Any, params: Any, on_group: Any = None) -> list[Group]:
            seen.append(requests)
            return super().sample(requests, params, on_group)

    groups = talk(Watched(), turns(Asks(), 2))
    first, second = seen
    assert len(second) == sum(len(sample.dialogue.exchanges) == 2 for sample in samples(groups) if sample.dialogue)
    assert len({request.seed for request in (*first, *second)}) == len(first) + len(second)
    begun = {tuple(request.prompt) for request in first}
    assert all(any(tuple(request.prompt)[: len(own)] == own for own in begun) for request in second)
