"""Which tasks have turns, what their environments say, and what is refused before step 0."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_forms import FORMS, make_model, with_ends
from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, launch
from omni_thinker.models.chat import ChatFormat, load_chat
from omni_thinker.models.think_form import ask_further, think_form
from omni_thinker.policy.texts import Texts
from omni_thinker.recipe import ModelSpec, TaskSpec, parse_recipe
from omni_thinker.rewards.programs.cases import read_tests
from omni_thinker.studies.setup import prepare
from omni_thinker.tasks.environments.base import make_turns
from omni_thinker.tasks.environments.program_errors import AGAIN, ProgramErrors, said
from omni_thinker.tasks.registry import make_task
from omni_thinker.types import Chat, Problem, Sample, Turn
from think_models import OPEN, SWITCH, TAGS, template, tokenizer

TESTS = ["assert f(3) == 91", "assert f(4) == 92"]
PROBLEM = Problem("p", "t", "Write f.", None, {"tests": TESTS, "entry_point": "f"})


def _turns(**settings: Any) -> Any:
    spec = TaskSpec.model_validate({"source": "builtin:coding", "train": 4, "validation": 2, "test": 2, **settings})
    return make_turns({"t": make_task("t", spec)}, {"t": spec}).get("t")


# -- which tasks have turns ---------------------------------------------------------------------------------


def test_tasks_have_turns_only_where_the_recipe_says_so() -> None:
    assert _turns() is None
    assert _turns(turns=1) is None
    own = _turns(turns=3)
    assert (own.most, own.message_tokens, own.longest) == (3, 256, 512)
    assert isinstance(own.environment, ProgramErrors)
    named = _turns(source="builtin:math", environment="program_errors", message_tokens=50)
    assert (named.most, named.longest) == (2, 50)


@pytest.mark.parametrize(
    ("settings", "key", "words"),
    [
        ({"source": "builtin:math", "turns": 2}, "turns", "has no environment that speaks; set environment to one"),
        ({"turns": 1, "environment": "program_errors"}, "environment", "speaks to nobody with turns = 1"),
        ({"environment": "program_error"}, "environment", "did you mean 'program_errors'"),
        ({"environment": "python:json:JSONDecoder"}, "environment", "can't be made"),
        ({"environment": "python:string:Formatter"}, "environment", "can't be made"),
    ],
)
def test_turns_without_somebody_who_speaks_are_refused(settings: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        _turns(**settings)
    assert refused.value.key == f"tasks.t.{key}"


def _recipe(model: Path | str = "tiny", **task: Any) -> Any:
    small = {"source": "builtin:coding", "train": 4, "validation": 2, "test": 2, "turns": 2, **task}
    table = {"model": {"name": str(model)}, "tasks": {"t": small}, "warmup": {"steps": 0}}
    return parse_recipe(table, "here")


def test_room_for_all_turns_is_checked_before_step_0(tiny_model: Path) -> None:
    setup = prepare(_recipe(tiny_model))
    assert setup.turns["t"].most == 2
    with pytest.raises(UserError, match=r"turns = 8 and message_tokens = 256 that is more than the model's context"):
        prepare(_recipe(tiny_model, turns=8))
    with pytest.raises(UserError, match="leaves no room for words") as refused:
        prepare(_recipe(tiny_model, message_tokens=8))
    assert refused.value.key == "tasks.t.message_tokens"


def test_policy_without_follow_is_refused_before_step_0(tiny_model: Path) -> None:
    mine = {"name": str(tiny_model), "policy": "python:unigram_policy:UnigramPolicy"}
    recipe = _recipe(tiny_model).model_copy(update={"model": ModelSpec.model_validate(mine)})
    with pytest.raises(UserError, match="has no method follow; use turns = 1") as refused:
        prepare(recipe)
    assert refused.value.key == "tasks.t.turns"


# -- programs that fail -------------------------------------------------------------------------------------


@pytest.fixture
def sandbox() -> None:
    try:
        launch()
    except IsolationError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("def f(x):\n    return x + 88", None),
        ("", f"There is no program in this. {AGAIN}"),
        ("def f(x):\n    return x + 1", f"f(3) gives 4, which is wrong. {AGAIN}"),
        ("def f(x):\n    return y", f"f(3) fails: NameError: name 'y' is not defined. {AGAIN}"),
        ("def f(x):\n    return 91", f"f(4) gives 91, which is wrong. {AGAIN}"),
    ],
)
def test_failed_program_comes_back_with_its_error(sandbox: None, answer: str, reply: str | None) -> None:
    environment = ProgramErrors("t", TaskSpec(source="builtin:coding"))
    assert asyncio.run(environment.reply(PROBLEM, ["def f(x): pass", answer], {})) == reply


def test_program_that_is_none_or_never_ends_comes_back_too(sandbox: None) -> None:
    environment = ProgramErrors("t", TaskSpec(source="builtin:coding"))
    problem = Problem("p", "t", "", None, {**PROBLEM.data, "timeout": 1})
    for answer, words in (("def f(x:\n  return", "SyntaxError"), ("def f(x):\n    while 1: pass", "fails")):
        reply = asyncio.run(environment.reply(problem, [answer], {}))
        assert reply is not None
        assert words in reply
        assert "9" not in reply


SCRIPT = {"inputs": ["7"], "outputs": ["91"]}
LINES = {"tests": ["x = f(3)\nassert x == 91"]}


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        ({"tests": TESTS}, "assert f(3) == 91: doesn't hold", "f(3) is wrong."),
        (LINES, "x = f(3) assert x == 91: doesn't hold, got 2", "a test gives 2, which is wrong."),
        (SCRIPT, "input '7': line 1 is '5', not '91'", "It fails: input '7': line 1 is '5'."),
        (SCRIPT, "input '7': 1 lines of output, not 91", "It fails: input '7': 1 lines of output."),
        ({"tests": TESTS}, "the program broke the channel", "It fails: the program broke the channel."),
    ],
)
def test_message_never_says_what_a_test_expects(data: dict[str, Any], reason: str, words: str) -> None:
    assert said(reason, read_tests(Problem("p", "t", "", None, data))) == words
    assert "91" not in words


# -- templates ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forms") / "model"
    make_model(folder)
    return folder


OTHERWISE = {
    "channels, and another end for the last turn",
    "nothing ends a turn",
    "writes an empty thought before the last answer",
}
"""Forms that write an answer in another way once there is a next turn."""


@pytest.mark.parametrize("name", FORMS)
def test_words_after_an_answer_are_what_the_template_writes_between_turns(
    name: str, with_tokens: Path, tmp_path: Path
) -> None:
    """Prompt, answer and what follows are together the conversation as the template has it."""
    form = FORMS[name]
    (tmp_path / "form.jinja").write_text(form.template, "utf-8")
    template_file = str(tmp_path / "form.jinja")
    keys = {"date": "2025-03-09", "template_options": form.options, "chat_template": template_file}
    folder = shutil.copytree(with_tokens, tmp_path / "model")
    with_ends(folder, form.ends)
    texts = Texts(load_chat(ModelSpec.model_validate({"name": str(folder), **keys})))
    chat = texts.chat
    target = chat.target_ids("Hi", "x")
    further, _ = texts.follow(Sample(target, (0.0,) * len(target), "x", "stop"), "Why?", "auto")
    whole = chat._decode([*chat.prompt_ids("Hi"), *target, *further])
    rendered = chat.prompt_text(Chat("Why?", None, (Turn("user", "Hi"), Turn("assistant", "x"))))
    if form.prefix and name not in OTHERWISE:
        assert whole == rendered
    assert whole.endswith(rendered[rendered.rindex("Why?") :])


def test_answer_that_ended_at_a_stop_text_gets_the_end_of_its_turn(tiny_model: Path) -> None:
    chat = load_chat(ModelSpec.model_validate({"name": str(tiny_model)}))
    closed = ask_further(chat, None, "Why?", "auto", closed=True)
    open_ = ask_further(chat, None, "Why?", "auto", closed=False)
    assert open_.text == "<|im_end|>" + closed.text
    assert open_.tokens == (*chat.facts.turn_end, *closed.tokens)


@pytest.mark.parametrize(
    ("written", "thinking", "state", "ends"),
    [
        (OPEN, "auto", "open", "assistant\n<think>\n"),
        (OPEN, "off", "closed", "<think>\n\n</think>\n\n"),
        (SWITCH, "off", "closed", "<think>\n\n</think>\n\n"),
        (SWITCH, 20, "absent", "assistant\n"),
    ],
)
def test_thoughts_of_a_later_turn_are_as_the_task_has_them(
    tiny_model: Path, tmp_path: Path, written: str, thinking: Any, state: str, ends: str
) -> None:
    made = tokenizer(tiny_model, written, special=TAGS)
    chat = ChatFormat(made)
    asked = ask_further(chat, think_form(chat), "Why?", thinking, closed=True)
    assert asked.rule is not None
    assert (asked.rule.state, asked.rule.budget) == (state, thinking if isinstance(thinking, int) else None)
    assert asked.text.endswith(ends)
    assert chat._decode(list(asked.tokens)) == asked.text


def test_template_that_refuses_a_second_turn_is_refused(tiny_model: Path) -> None:
    strict = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + template()
    chat = ChatFormat(tokenizer(tiny_model, strict))
    with pytest.raises(UserError, match="one turn"):
        ask_further(chat, None, "Why?", "auto", closed=True)


# -- a study ------------------------------------------------------------------------------------------------


def test_study_logs_turns_and_keeps_conversations(
    sandbox: None, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    recipe = """
        [model]
        name = "tiny"
        [tasks.coding]
        source = "builtin:coding"
        turns = 2
        stop = ["e", "a", "i", " "]
        max_tokens = 16
        train = 8
        validation = 4
        test = 4
        [rl]
        group_size = 2
        problems_per_step = 2
        [warmup]
        steps = 0
        [study]
        arms = ["joint"]
        seeds = [0]
        steps = 2
        probes = []
    """
    (tmp_path / "mine.toml").write_text("\n".join(line.strip() for line in recipe.splitlines()), "utf-8")
    code, _, err = run("study", "mine.toml", "--out", "run")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert any(len(row["turns"]) == 3 for row in rows)
    for row in rows:
        assert row["turns"][-1] == row["response"]
        assert all(message.endswith(AGAIN) for message in row["turns"][1::2])
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    arms = [row["metrics"] for row in metrics if row["arm"] != "warmup"]
    assert arms
    assert all(1 <= row["turns/coding"] <= 2 for row in arms)
