"""Models that think: what their templates say, where thoughts end, budgets, and what is trained and scored."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.baselines.sft import gold_batch, gold_loss
from omni_thinker.cli.score_file import explained, score_lines
from omni_thinker.errors import UserError
from omni_thinker.judging.likelihood import LikelihoodJudge
from omni_thinker.models.chat import ChatFormat
from omni_thinker.models.think_form import ask, think_form
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import ModelSpec, parse_recipe
from omni_thinker.rewards.gates import Finished, Format
from omni_thinker.rewards.parts import SamplePart
from omni_thinker.rewards.shape import Brevity, NotOverlong
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.metrics import group_metrics
from omni_thinker.rl.requests import request_for
from omni_thinker.sampling.thinking import Thinker, make_sample, thoughts_end
from omni_thinker.studies.checks import Room, check_model
from omni_thinker.thoughts import split_thoughts
from omni_thinker.types import (
    Group,
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
    STOP,
    STUCK,
    SWITCH,
    TAGS,
    WORD_AFTER,
    decode,
    ids_of,
    rule_for,
    save_model,
    template,
    tokenizer,
)
from unigram_policy import UnigramPolicy


def _made(text: str, rule: ThoughtRule | None, *, own: bool = True, stop: bool = True) -> Sample:
    tokens = ids_of(text + "$" * stop, own=own)
    request = SampleRequest((1,), 99, 0, (), rule)
    logprobs = [-1.0] * len(tokens)
    return make_sample(tokens, logprobs, "stop" if stop else "length", frozenset([STOP]), request, decode)


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
    form = think_form(ChatFormat(made))
    assert form is not None
    asked = ask(ChatFormat(made), form, "Hi", "auto")
    rule = asked.rule
    assert rule is not None
    assert (rule.state, (rule.open.text, rule.close.text)) == (state, marks)
    assert (rule.open.own, rule.close.own) == (own, own)
    assert made.decode(rule.closing).strip().endswith(marks[1])
    turns = [{"role": "user", "content": "Hi"}]
    assert list(asked.tokens) == made.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)


def test_model_without_marks_has_no_form(tiny_model: Path) -> None:
    made = tokenizer(tiny_model, template())
    assert think_form(ChatFormat(made)) is None
    assert ask(ChatFormat(made), None, "<think>", "off").rule is None


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
    form = think_form(ChatFormat(made))
    assert form is not None
    assert form.switch == ("enable_thinking" if text in (SWITCH, STUCK) else None)
    asked = ask(ChatFormat(made), form, "Hi", "off")
    assert made.decode(asked.tokens).endswith(end)
    assert asked.rule is not None
    assert asked.rule.state == "closed"
    # Marks in the vocabulary alone: a model that was taught not to think is asked as ever.
    plain = ChatFormat(tokenizer(tiny_model, template(), (), TAGS))
    assert ask(plain, think_form(plain), "Hi", "off").tokens == ask(plain, think_form(plain), "Hi", "auto").tokens


def test_words_of_the_user_are_no_form(tiny_model: Path) -> None:
    made = tokenizer(tiny_model, SWITCH)
    rule = ask(ChatFormat(made), think_form(ChatFormat(made)), "write <think>", "auto").rule
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
    sample = _made(said, rule_for(state, own=own), own=own)
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
    assert sample.thoughts == Thoughts("hm", 17, True, whole="<think>hm</think>\n42")
    assert sample.answer_length == 4  # with the newline and the end


WORDS = st.text(st.sampled_from("ab <>/think\n"), max_size=12)


@given(thoughts=WORDS, answer=WORDS, own=st.booleans(), state=st.sampled_from(["open", "absent"]))
def test_any_thoughts_and_answer_are_told_apart(thoughts: str, answer: str, own: bool, state: ThoughtState) -> None:
    if not own and "</think>" in thoughts + "</think>"[:-1]:
        return
    said = ("[" if state == "absent" else "") + thoughts + "]" + answer
    sample = _made(said, rule_for(state, own=own), own=own)
    assert sample.text == answer.lstrip("\n")
    assert sample.thoughts is not None
    assert sample.thoughts.text == thoughts.strip() or "<think>" in thoughts
    if "think>" not in answer:
        assert split_thoughts(sample.text) == (sample.text, False)


@given(
    said=st.text(st.sampled_from("ab\n[]"), max_size=14), own=st.booleans(), state=st.sampled_from(["open", "absent"])
)
def test_following_a_sample_gives_what_the_whole_gives(said: str, own: bool, state: ThoughtState) -> None:
    rule, tokens = rule_for(state, own=own), ids_of(said, own=own)
    one = Thinker(SampleRequest((1,), 99, 0, ("stop",), rule), decode)
    for token in tokens:
        assert one.next() == -1
        one.saw(token)
    assert one.end == thoughts_end(rule.close, tokens, decode)
    assert one.limit == 99
    followed, whole = (
        make_sample(
            tokens, [0.0] * len(tokens), "length", frozenset([STOP]), SampleRequest((1,), 99, 0, (), rule), decode,
            followed=who,
        )
        for who in (one, None)
    )  # fmt: skip
    assert followed == whole


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


@pytest.mark.parametrize(
    ("pattern", "said", "value"),
    [
        (r"<think>\n.*\n</think>\n<answer>\d+</answer>", "<think>\nhm\n</think>\n<answer>42</answer>", 1.0),
        (r"\<think\>.*", "<answer>42</answer>", 0.0),
        (r"<answer>\d+</answer>", "<think>hm</think>\n<answer>42</answer>", 1.0),
        (r".*</think>\s*\d+", "<think>hm</think>\n", 0.0),
        (r"<reasoning>.+</reasoning>\d+", "<reasoning>hm</reasoning>42", 1.0),
    ],
)
def test_format_that_names_marks_sees_the_whole_response(pattern: str, said: str, value: float) -> None:
    problem = Problem("p", "t", "p", data={"format": pattern})
    rules = [None] if "reasoning" in said else [None, rule_for("absent", own=False)]
    for rule in rules:
        sample = _made(said, rule, own=False)
        assert sample.response == said
        [score] = asyncio.run(Format().score(Group((), (sample,)), problem))
        assert (score.status, score.value) == ("value", value), score.reason


def test_verifiers_are_given_the_answer_and_never_the_thoughts() -> None:
    class Right(SamplePart):
        async def score_sample(self, sample: Sample, problem: Problem) -> Score:
            return Score.of(float("42" in sample.text))

    samples = [_made(said, rule_for("open")) for said in ("42]no", "no]42", "42", "]42")]
    scores = asyncio.run(Right().score(Group((), tuple(samples)), Problem("p", "t", "p")))
    assert [score.value for score in scores] == [0.0, 1.0, 0.0, 1.0]


def test_scored_files_leave_thoughts_out_and_say_so(tmp_path: Path) -> None:
    said = ["<think>42</think>\n\n7", "hm</think>42", "<think>42", "it is 42", "mind the <think> tag: 42"]
    rows = [json.dumps({"id": str(n), "response": text, "answer": "42"}) for n, text in enumerate(said)]
    results = score_lines("math", rows, "rows")
    assert [row["value"] for row in results] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert [str(row["reason"]).startswith("thoughts left out") for row in results] == [True, True, True, False, True]
    assert "thoughts left out" in explained(results)[1]
    assert [row["value"] for row in score_lines("finished", rows, "rows")] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert "no answer after the thoughts" in score_lines("short_answer", rows, "rows")[2]["reason"]


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
    whole = str(policy.tokenizer.decode([*group.prompt, *sample.tokens]))
    assert whole.endswith("assistant\n<think>\n\n</think>\n\nParis<|im_end|>")
    answer = policy.encode_answer("Paris")
    assert sample.tokens[len(sample.forced) :] == answer
    assert bool(sample.forced) == (mode != "off")
    assert group.weights == (1 / len(answer),)
    assert policy.forward_backward([group], gold_loss).stats["t"].tokens == len(answer)


def test_prompts_of_a_policy_of_ones_own_are_kept(tiny_model: Path, thinking: Path) -> None:
    class Loud(TorchPolicy):
        def encode_prompt(self, user: Any) -> tuple[int, ...]:
            return super().encode_prompt(str(user).upper())

    problem = Problem("p", "t", "hi", "x")
    for model in (tiny_model, thinking):
        policy = Loud(ModelSpec(name=str(model), dtype="float32"))
        wanted = policy.encode_prompt("HI")
        assert request_for(policy, problem, 0, 8).prompt == wanted
        assert gold_batch(policy, [problem])[0].prompt == wanted


def test_thinking_policy_answers_apart_from_its_thoughts(thinking: Path) -> None:
    policy = TorchPolicy(ModelSpec(name=str(thinking), dtype="float32"))
    problem = Problem("p", "t", "Hi")
    modes: tuple[Thinking, ...] = (6, "auto", "off")
    requests = [request_for(policy, problem, seed, 60, (), mode) for seed, mode in enumerate(modes)]
    groups = policy.sample(requests, SamplingParams(8))
    budget, auto, off = groups
    assert any(sample.forced for sample in budget.samples)
    assert all(sample.answered or sample.stop == "stop" for sample in budget.samples)
    assert {sample.answered for sample in auto.samples} == {True, False}
    assert all(sample.text == "" for sample in (*budget.samples, *auto.samples) if not sample.answered)
    assert not any(sample.forced for sample in (*auto.samples, *off.samples))
    assert str(policy.tokenizer.decode(list(off.prompt))).endswith("</think>\n\n")


def test_likelihood_judge_reads_texts_as_answers(thinking: Path) -> None:
    """Not as the thoughts that its template has begun."""
    judge = LikelihoodJudge.of(str(thinking), 0.1, "", "")
    assert judge._tokenizer.decode(judge._prompt_ids("Hi")).endswith("assistant\n<think>\n\n</think>\n\n")


def test_default_limit_that_thoughts_would_fill_is_warned_of(
    thinking: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warned(model: Path, **keys: Any) -> bool:
        caplog.clear()
        task = {"source": "builtin:math", **keys}
        check_model(parse_recipe({"model": {"name": str(model)}, "tasks": {"math": task}}, "test"))
        return "math: the model thinks first" in caplog.text

    assert warned(thinking)
    assert not any((warned(thinking, max_tokens=9), warned(thinking, thinking=9), warned(tiny_model)))


def test_room_counts_the_budget_and_the_answer(thinking: Path) -> None:
    recipe = parse_recipe(
        {"model": {"name": str(thinking)}, "tasks": {"math": {"source": "builtin:math", "thinking": 2000}}}, "test"
    )
    room = check_model(recipe)
    problem = Problem("p", "math", "Hi")
    assert room.missing(problem, 8, 1900) is None
    assert "max_tokens = 8 and thinking = 2040" in str(room.missing(problem, 8, 2040))
    assert isinstance(room, Room)


def test_room_counts_what_the_template_and_the_system_write(thinking: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jinja").write_text("known " * 2048 + OPEN, "utf-8")
    tasks = {"math": {"source": "builtin:math"}}
    for words in ({"system": "known " * 2048}, {"chat_template": str(tmp_path / "long.jinja")}):
        room = check_model(parse_recipe({"model": {"name": str(thinking), **words}, "tasks": tasks}, "test"))
        assert "more than the model's context of 2048" in str(room.missing(Problem("p", "math", "Hi"), 8))


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
