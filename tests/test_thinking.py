"""Models that think: what their templates say, where thoughts end, budgets, and what is trained and scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.baselines.sft import gold_batch, gold_loss
from omni_thinker.errors import UserError
from omni_thinker.models.think_form import ask, think_form
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import LossTerms, TokenBatch, TrainGroup
from omni_thinker.recipe import ModelSpec, RlSpec, parse_recipe
from omni_thinker.rewards.gates import Finished
from omni_thinker.rewards.parts import SamplePart
from omni_thinker.rewards.shape import Brevity, NotOverlong
from omni_thinker.rl.batch import ScoredGroup, build_batches
from omni_thinker.rl.losses import make_loss
from omni_thinker.rl.metrics import group_metrics, sampled_entropy
from omni_thinker.rl.requests import request_for
from omni_thinker.sampling.decoders.base import Decoder, MaskedDecoder
from omni_thinker.sampling.decoders.cuda_graph import StaticDecoder
from omni_thinker.sampling.decoders.fused import FusedDecoder
from omni_thinker.sampling.loop import sample_groups
from omni_thinker.sampling.thinking import Thinker, make_sample, thoughts_end
from omni_thinker.studies.checks import Room, check_model
from omni_thinker.thoughts import split_thoughts
from omni_thinker.types import (
    Group,
    Mark,
    Problem,
    Sample,
    SampleRequest,
    SamplingParams,
    Score,
    Thinking,
    ThoughtRule,
    Thoughts,
    ThoughtState,
)
from think_models import (
    BRACKETS,
    CHANNEL_TOKENS,
    CHANNELS,
    EMPTY,
    OPEN,
    OWN,
    STUCK,
    SWITCH,
    TAGS,
    WORD_AFTER,
    save_model,
    template,
    tokenizer,
)
from unigram_policy import UnigramPolicy

STOP = 0
OPENS, CLOSES = 0x1000, 0x1001
"""Tokens that are marks, where all others are characters."""


def _decode(tokens: Sequence[int]) -> str:
    return "".join(chr(token) for token in tokens if token not in (OPENS, CLOSES, STOP))


def _rule(state: ThoughtState, budget: int | None = None, *, own: bool = True) -> ThoughtRule:
    if own:
        return ThoughtRule(
            Mark("<think>", (OPENS,), True), Mark("</think>", (CLOSES,), True), (10, CLOSES, 10), state, budget
        )
    marks = (Mark(text, tuple(map(ord, text)), False) for text in TAGS)
    return ThoughtRule(*marks, tuple(map(ord, "\n</think>\n")), state, budget)


def _ids(text: str, *, own: bool = True) -> list[int]:
    if own:
        return [{"[": OPENS, "]": CLOSES, "$": STOP}.get(char, ord(char)) for char in text]
    return [STOP if char == "$" else ord(char) for char in text.replace("[", "<think>").replace("]", "</think>")]


def _made(text: str, rule: ThoughtRule | None, *, own: bool = True, stop: bool = True) -> Sample:
    tokens = _ids(text + "$" * stop, own=own)
    request = SampleRequest((1,), 99, 0, (), rule)
    logprobs = [-1.0] * len(tokens)
    return make_sample(tokens, logprobs, "stop" if stop else "length", frozenset([STOP]), request, _decode)


# -- what a template says -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "special", "added", "state", "marks", "own"),
    [
        (OPEN, TAGS, (), "open", TAGS, True),
        (OPEN, (), TAGS, "open", TAGS, True),
        (OPEN, (), (), "open", TAGS, False),
        (EMPTY, TAGS, (), "closed", TAGS, True),
        (OWN, (), (), "absent", TAGS, False),
        (template(), (), TAGS, "absent", TAGS, True),
        (template("{{ '<seed:think>' }}"), (), (), "open", ("<seed:think>", "</seed:think>"), False),
        (BRACKETS, ("[THINK]", "[/THINK]"), (), "open", ("[THINK]", "[/THINK]"), True),
        (WORD_AFTER, ("<|channel>", "<channel|>"), (), "open", ("<|channel>", "<channel|>"), True),
        (
            CHANNELS,
            CHANNEL_TOKENS,
            (),
            "absent",
            ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
            True,
        ),
    ],
)
def test_open_closed_and_absent_blocks_are_read_off_template_and_vocabulary(
    tiny_model: Path, text: str, special: Any, added: Any, state: str, marks: tuple[str, str], own: bool
) -> None:
    made = tokenizer(tiny_model, text, special, added)
    form = think_form(made)
    assert form is not None
    ids, rule = ask(made, form, "", "Hi", "auto")
    assert rule is not None
    assert (rule.state, (rule.open.text, rule.close.text)) == (state, marks)
    assert (rule.open.own, rule.close.own) == (own, own)
    assert made.decode(rule.closing).strip().endswith(marks[1])
    turns = [{"role": "user", "content": "Hi"}]
    assert list(ids) == made.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_model_without_marks_has_no_form(tiny_model: Path) -> None:
    made = tokenizer(tiny_model, template())
    assert think_form(made) is None
    assert ask(made, None, "", "<think>", "off")[1] is None


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (OPEN, "assistant\n<think>\n\n</think>\n\n"),
        (EMPTY, "assistant\n<think>\n\n</think>\n\n"),
        (OWN, "assistant\n<think>\n\n</think>\n\n"),
        (SWITCH, "assistant\n<think>\n\n</think>\n\n"),
        (STUCK, "assistant\n<think>\n\n</think>\n\n"),
        (BRACKETS, "assistant\n[THINK]\n\n[/THINK]\n\n"),
        (CHANNELS, "assistant<|channel|>final<|message|>"),
    ],
)
def test_off_uses_the_templates_switch_or_closes_the_block(tiny_model: Path, text: str, end: str) -> None:
    made = tokenizer(tiny_model, text, (*TAGS, *CHANNEL_TOKENS))
    form = think_form(made)
    assert form is not None
    assert form.switch == ("enable_thinking" if text in (SWITCH, STUCK) else None)
    ids, rule = ask(made, form, "", "Hi", "off")
    assert made.decode(ids).endswith(end)
    assert rule is not None
    assert rule.state == "closed"
    # Marks in the vocabulary alone: a model that was taught not to think is asked as ever.
    bare = tokenizer(tiny_model, template(), (), TAGS)
    assert ask(bare, think_form(bare), "", "Hi", "off")[0] == ask(bare, think_form(bare), "", "Hi", "auto")[0]


def test_words_of_the_user_are_no_form(tiny_model: Path) -> None:
    made = tokenizer(tiny_model, SWITCH)
    _, rule = ask(made, think_form(made), "", "write <think>", "auto")
    assert rule is not None
    assert rule.state == "absent"


# -- where thoughts end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("state", "said", "text", "thoughts", "tokens", "closed"),
    [
        ("open", "hm]\n\n42", "42", "hm", 3, True),
        ("open", "]42", "42", "", 1, True),
        ("open", "hm", "", "hm", 3, False),
        ("open", "a]b]c", "b]c", "a", 2, True),
        ("absent", "[hm]42", "42", "hm", 4, True),
        ("absent", "\n[hm]42", "42", "hm", 5, True),
        ("absent", "[hm", "", "hm", 4, False),
        ("absent", "hm]42", "42", "hm", 3, True),
        ("absent", "42", "42", None, 0, True),
        ("absent", "the [ tag", "the [ tag", None, 0, True),
        ("closed", "42", "42", None, 0, True),
    ],
)
def test_answer_is_what_follows_the_first_mark(
    own: bool, state: ThoughtState, said: str, text: str, thoughts: str | None, tokens: int, closed: bool
) -> None:
    sample = _made(said, _rule(state, own=own), own=own)
    marks = {} if own else {"[": "<think>", "]": "</think>"}
    for sign in "[]":
        text = text.replace(sign, marks.get(sign, ""))
    assert sample.text == text
    assert sample.answered is closed
    if thoughts is None:
        assert sample.thoughts is None
        return
    assert sample.thoughts is not None
    assert sample.thoughts.text == thoughts
    if own:
        assert sample.thoughts.tokens == tokens
        assert sample.answer_length == len(said) + 1 - tokens


def test_model_without_a_form_thinks_only_where_a_whole_block_comes_first() -> None:
    for said, text in (
        ("<think>hm</think>\n42", "42"),
        ("<think>hm", "<think>hm"),
        ("the <think> tag</think>", "the <think> tag</think>"),
        ("a</think>b", "a</think>b"),
    ):
        sample = _made(said, None)
        assert sample.text == text
        assert (sample.thoughts is not None) == (said != text)
    sample = _made("<think>hm</think>\n42", None)
    assert sample.thoughts == Thoughts("hm", 17, True)
    assert sample.answer_length == 4  # with the newline and the end


WORDS = st.text(st.sampled_from("ab <>/think\n"), max_size=12)


@given(thoughts=WORDS, answer=WORDS, own=st.booleans(), state=st.sampled_from(["open", "absent"]))
def test_any_thoughts_and_answer_are_told_apart(thoughts: str, answer: str, own: bool, state: ThoughtState) -> None:
    if not own and "</think>" in thoughts + "</think>"[:-1]:
        return
    said = ("[" if state == "absent" else "") + thoughts + "]" + answer
    sample = _made(said, _rule(state, own=own), own=own)
    assert sample.text == answer.lstrip("\n")
    assert sample.thoughts is not None
    assert sample.thoughts.text == thoughts.strip() or "<think>" in thoughts
    if "think>" not in answer:
        assert split_thoughts(sample.text) == (sample.text, False)


@given(
    said=st.text(st.sampled_from("ab\n[]"), max_size=14), own=st.booleans(), state=st.sampled_from(["open", "absent"])
)
def test_following_a_sample_gives_what_the_whole_gives(said: str, own: bool, state: ThoughtState) -> None:
    rule, tokens = _rule(state, own=own), _ids(said, own=own)
    one = Thinker(SampleRequest((1,), 99, 0, ("stop",), rule), _decode)
    for token in tokens:
        assert one.next() == -1
        one.saw(token)
    assert one.end == thoughts_end(rule.close, tokens, _decode)
    assert one.limit == 99
    arguments = (
        tokens,
        [0.0] * len(tokens),
        "length",
        frozenset([STOP]),
        SampleRequest((1,), 99, 0, (), rule),
        _decode,
    )
    assert make_sample(*arguments, followed=one) == make_sample(*arguments)


# -- budgets ------------------------------------------------------------------------------------------------


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
    one = Thinker(SampleRequest((1,), 4, 0, (), _rule("open", budget)), _decode)
    draws, tokens = iter(_ids(drawn)), list[int]()
    while len(tokens) < len(written):
        mark = one.next()
        tokens.append(next(draws) if mark < 0 else mark)
        one.saw(tokens[-1])
    assert tokens == _ids(written)
    assert one.limit == limit
    forced = written.find("\n]\n")
    assert one.forced == (() if forced < 0 else (forced, forced + 1, forced + 2))
    assert limit <= _rule("open", budget).longest(4)


def test_budget_counts_from_where_a_model_opens_its_thoughts() -> None:
    one = Thinker(SampleRequest((1,), 4, 0, (), _rule("absent", 2)), _decode)
    for token in _ids("\n[ab"):
        assert one.next() == -1
        one.saw(token)
    assert one.next() == 10
    assert one.limit == 2 + 2 + 3 + 4
    never = Thinker(SampleRequest((1,), 4, 0, (), _rule("absent", 2)), _decode)
    for token in _ids("a[bc"):
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


@pytest.mark.parametrize("decoder", [FusedDecoder, StaticDecoder, MaskedDecoder])
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
    found = [master.grad.clone() for master in policy._masters]
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
        [[group]] = build_batches([scored], RlSpec(loss=loss), 10)  # type: ignore[arg-type]
        assert group.weights[0] == group.weights[1] == pytest.approx(0.25)
        report = policy.forward_backward([group], make_loss(RlSpec(loss=loss)))  # type: ignore[arg-type]
        policy._updates.clear()
        assert report.stats["t"].tokens == 4
    assert sampled_entropy([scored]) == 5.0


# -- rewards and metrics ------------------------------------------------------------------------------------


def _sample(answer: int, thoughts: Thoughts | None, text: str = "x", stop: Any = "stop") -> Sample:
    count = answer + (thoughts.tokens if thoughts else 0)
    return Sample((1,) * count, (-1.0,) * count, text, stop, thoughts)


def test_gates_and_lengths_see_the_answer_alone() -> None:
    group = Group(
        (),
        (
            _sample(4, Thoughts("a long thought", 50, True), "one"),
            _sample(8, None, "two"),
            _sample(0, Thoughts("no end", 20, False), "", "length"),
            _sample(0, Thoughts("an end within", 20, False), ""),
            _sample(1, Thoughts("", 2, True), ""),
        ),
    )
    problem = Problem("p", "t", "p", data={"length_limit": 10, "length_buffer": 4})

    def values(part: Any) -> list[float | None]:
        return [score.value for score in asyncio.run(part.score(group, problem))]

    assert values(Finished()) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert values(Brevity()) == [pytest.approx(4 / 7), 0.0, 0.0, 0.0, 1.0]
    assert values(NotOverlong()) == [1.0, 0.5, 0.0, 0.0, 1.0]


def test_verifiers_are_given_the_answer_and_never_the_thoughts() -> None:
    class Right(SamplePart):
        async def score_sample(self, sample: Sample, problem: Problem) -> Score:
            return Score.of(float("42" in sample.text))

    samples = [_made(said, _rule("open")) for said in ("42]no", "no]42", "42", "]42")]
    scores = asyncio.run(Right().score(Group((), tuple(samples)), Problem("p", "t", "p")))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 1.0]


def test_metrics_tell_thoughts_from_answers() -> None:
    thinks = (
        _sample(4, Thoughts("", 6, True)),
        _sample(2, Thoughts("", 3, True, (0, 1, 2))),
        _sample(0, Thoughts("", 9, False), "", "length"),
        _sample(2, None),
    )
    scores = (Score.of(1.0),) * 4
    groups = [
        ScoredGroup(Problem("p", "thinks", "p"), Group((1,), thinks), scores),
        ScoredGroup(Problem("q", "plain", "q"), Group((1,), (_sample(3, None),) * 4), scores),
    ]
    metrics = group_metrics(groups)
    assert metrics["thought_length/thinks"] == 18 / 4
    assert metrics["answer_length/thinks"] == 8 / 4
    assert metrics["thoughts_closed/thinks"] == 0.25
    assert metrics["thoughts_unfinished/thinks"] == 0.25
    assert metrics["truncated/thinks"] == 0.25
    assert metrics["completion_length/thinks"] == 26 / 4
    assert not [name for name in group_metrics(groups[1:]) if "thought" in name or "answer_length" in name]


# -- gold answers, checks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinking(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tokenizer(tiny_model, OPEN, TAGS)
    return save_model(tiny_model, tmp_path_factory.mktemp("models") / "thinks", made, likely=("</think>", "<|im_end|>"))


@pytest.mark.parametrize("mode", ["auto", "off", 3])
def test_gold_answers_close_the_block_and_do_not_teach_it(thinking: Path, mode: Thinking) -> None:
    policy = TorchPolicy(ModelSpec(name=str(thinking), dtype="float32"))
    [group] = gold_batch(policy, [Problem("p", "t", "Hi", "Paris")], {"t": mode})
    [sample] = group.samples
    whole = policy.tokenizer.decode([*group.prompt, *sample.tokens])
    assert whole.endswith("assistant\n<think>\n\n</think>\n\nParis<|im_end|>")
    answer = policy.encode_answer("Paris")
    assert sample.tokens[len(sample.forced) :] == answer
    assert bool(sample.forced) == (mode != "off")
    assert group.weights == (1 / len(answer),)
    assert policy.forward_backward([group], gold_loss).stats["t"].tokens == len(answer)


def test_thinking_policy_answers_apart_from_its_thoughts(thinking: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(thinking), dtype="float32"))
    problem = Problem("p", "t", "Hi")
    groups = policy.sample(
        [request_for(policy, problem, seed, 8, (), mode) for seed, mode in enumerate((6, "auto", "off"))],
        SamplingParams(8),
    )
    budget, auto, off = groups
    assert any(sample.forced for sample in budget.samples)
    assert all(sample.answered or sample.stop == "stop" for sample in budget.samples)
    assert {sample.answered for sample in auto.samples} == {True, False}
    assert all(sample.text == "" for sample in (*budget.samples, *auto.samples) if not sample.answered)
    assert not any(sample.forced for sample in (*auto.samples, *off.samples))
    assert policy.tokenizer.decode(off.prompt).endswith("</think>\n\n")


def test_room_counts_the_budget_and_the_answer(thinking: Path) -> None:
    recipe = parse_recipe(
        {"model": {"name": str(thinking)}, "tasks": {"math": {"source": "builtin:math", "thinking": 2000}}}, "test"
    )
    room = check_model(recipe)
    problem = Problem("p", "math", "Hi")
    assert room.missing(problem, 8, 1900) is None
    assert "max_tokens = 8 and thinking = 2040" in str(room.missing(problem, 8, 2040))
    assert isinstance(room, Room)


def test_budgets_that_nothing_can_keep_are_refused(tiny_model: Path) -> None:
    task = {"source": "builtin:math", "thinking": 8}
    recipe = parse_recipe({"model": {"name": str(tiny_model)}, "tasks": {"math": task}}, "test")
    with pytest.raises(UserError, match="knows thoughts") as refused:
        check_model(recipe)
    assert refused.value.key == "tasks.math.thinking"
    with pytest.raises(UserError, match="no say over thoughts"):
        request_for(UnigramPolicy(None), Problem("p", "t", "p"), 0, 8, (), "off")
    for wrong in (-1, True, "none", 1.5):
        with pytest.raises(UserError, match='must be "auto", "off" or a number of tokens') as unread:
            parse_recipe({"tasks": {"math": {**task, "thinking": wrong}}}, "test")
        assert unread.value.key == "tasks.math.thinking"
