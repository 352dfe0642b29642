"""Rows in the forms that people bring: from a file to problems, and to one step of GRPO on the task's own reward."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.cli.app import main
from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, launch
from omni_thinker.judging.base import NoJudge, Verdict
from omni_thinker.protocol import OnGroup
from omni_thinker.recipe import RlSpec, TaskSpec, parse_recipe
from omni_thinker.rewards.registry import make_reward
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.stream import make_streams
from omni_thinker.tasks.formats import FORMATS
from omni_thinker.tasks.paths import MISSING, lookup
from omni_thinker.tasks.registry import check_splits, make_task
from omni_thinker.tasks.rows import RowTask
from omni_thinker.tasks.turns import is_turns, read_turns
from omni_thinker.types import SPLITS, Chat, Group, Problem, Sample, SampleRequest, SamplingParams, Turn
from unigram_policy import UnigramPolicy

Rows = list[dict[str, Any]]
ROWS = 40


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def many(row: Any) -> Rows:
    return [row(n) for n in range(ROWS)]


# form, rows, options, and of row 7: prompt, answer, what else it holds; the reward.
Case = tuple[str, Rows, dict[str, Any], str, str | None, dict[str, Any], str]
CASES: dict[str, Case] = {
    "gsm8k": (
        "gsm8k",
        many(lambda n: {"question": f"What is {n} plus 2?", "answer": f"Add.\n<<{n}+2={n + 2}>>\n#### {n + 2:,}"}),
        {}, "What is 7 plus 2?", "9", {}, "math",
    ),
    "gsm8k, columns mapped": (
        "gsm8k",
        many(lambda n: {"q": f"What is {n} plus 2?", "a": f"It is 99.\n#### {n + 2}"}),
        {"fields": {"prompt": "q", "answer": "a"}}, "What is 7 plus 2?", "9", {}, "math",
    ),
    "math": (
        "math",
        many(lambda n: {"problem": f"Half of {n}?", "level": "Level 1", "type": "Algebra",
                        "solution": f"A first try is $\\boxed{{1}}$. It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."}),
        {}, "Half of 7?", "\\frac{7}{2}", {}, "math",
    ),
    "math, a box without braces": (
        "math",
        many(lambda n: {"problem": f"{n}?", "solution": f"So it is $\\boxed {n}$."}), {}, "7?", "7", {}, "math",
    ),
    "math-500": (
        "math500",
        many(lambda n: {"problem": f"Half of {n}?", "solution": "Long. $\\boxed{0}$", "answer": f"\\frac{{{n}}}{{2}}",
                        "unique_id": f"test/{n}.json"}),
        {}, "Half of 7?", "\\frac{7}{2}", {}, "math",
    ),
    "mbpp": (
        "mbpp",
        many(lambda n: {"task_id": n, "text": f"Write add{n}.", "code": f"def add{n}(x):\n    return x + {n}",
                        "test_list": [f"assert add{n}(1) == {n + 1}", f"assert add{n}(-1) == {n - 1}"],
                        "test_setup_code": "", "challenge_test_list": []}),
        {}, "Write add7.\nYour code should pass this test: assert add7(1) == 8", "def add7(x):\n    return x + 7",
        {"tests": ["assert add7(1) == 8", "assert add7(-1) == 6"]}, "unit_tests",
    ),
    "mbpp, sanitized": (
        "mbpp",
        many(lambda n: {"task_id": n, "prompt": f"Write add{n}.", "code": f"def add{n}(x):\n    return x + {n}",
                        "test_list": [f"assert add{n}(math.floor(1.5)) == {n + 1}"], "test_imports": ["import math"]}),
        {}, "Write add7.\nYour code should pass this test: assert add7(math.floor(1.5)) == 8",
        "def add7(x):\n    return x + 7", {"setup": "import math"}, "unit_tests",
    ),
    "humaneval": (
        "humaneval",
        many(lambda n: {"task_id": f"H/{n}", "prompt": f"def add{n}(x):\n    \"\"\"Add {n}.\"\"\"\n",
                        "entry_point": f"add{n}", "canonical_solution": f"    return x + {n}\n",
                        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n"}),
        {"template": "{prompt}"}, 'def add7(x):\n    """Add 7."""\n',
        'def add7(x):\n    """Add 7."""\n    return x + 7\n',
        {"tests": ["def check(candidate):\n    assert candidate(1) == 8\n\ncheck(add7)\n"]}, "unit_tests",
    ),
    "livecodebench": (
        "livecodebench",
        many(lambda n: {"question_content": f"Add {n}.", "question_id": f"p{n}", "starter_code": "",
                        "public_test_cases": json.dumps([{"input": "1\n", "output": f"{n + 1}\n"}]),
                        "private_test_cases": "eJwrSS0uUS", "metadata": "{}", "canonical": ""}),
        {}, "Add 7.\n\nWrite a Python program that reads standard input and prints the output.", None,
        {"inputs": ["1\n"], "outputs": ["8\n"]}, "unit_tests",
    ),
    "livecodebench, a function": (
        "livecodebench",
        many(lambda n: {"question_content": f"Add {n}.", "starter_code": f"class Solution:\n    def add{n}(self, x):",
                        "public_test_cases": [{"input": "1", "output": f"{n + 1}", "testtype": "functional"}],
                        "private_test_cases": json.dumps([{"input": "2", "output": f"{n + 2}"}]),
                        "metadata": json.dumps({"func_name": f"add{n}"})}),
        {}, "Add 7.\n\nBegin with this:\n```python\nclass Solution:\n    def add7(self, x):\n```", None,
        {"inputs": ["1", "2"], "outputs": ["8", "9"], "entry_point": "add7"}, "unit_tests",
    ),
    "apps": (
        "livecodebench",
        many(lambda n: {"question": f"Add {n}.",
                        "input_output": json.dumps({"inputs": ["1"], "outputs": [str(n + 1)]})}),
        {}, "Add 7.\n\nWrite a Python program that reads standard input and prints the output.", None,
        {"inputs": ["1"], "outputs": ["8"]}, "unit_tests",
    ),
    "apps, with gold programs": (
        "livecodebench",
        many(lambda n: {"question": f"Add {n}.", "solutions": json.dumps([f"print(int(input()) + {n})", "print(0)"]),
                        "input_output": json.dumps({"inputs": ["1"], "outputs": [str(n + 1)]})}),
        {}, "Add 7.\n\nWrite a Python program that reads standard input and prints the output.",
        "print(int(input()) + 7)", {"inputs": ["1"], "outputs": ["8"]}, "unit_tests",
    ),
    "verl, programs": (
        "verl",
        many(lambda n: {"data_source": "taco", "prompt": [user(f"Add {n}.")], "ability": "code", "reward_model": {
            "ground_truth": json.dumps({"inputs": ["1"], "outputs": [str(n + 1)]})}}),
        {}, "Add 7.", None, {"inputs": ["1"], "outputs": ["8"]}, "unit_tests",
    ),
    "verl": (
        "verl",
        many(lambda n: {"data_source": "openai/gsm8k", "prompt": [user(f"What is {n} plus 2?")], "ability": "math",
                        "reward_model": {"style": "rule", "ground_truth": str(n + 2)}, "extra_info": {"index": n}}),
        {}, "What is 7 plus 2?", "9", {}, "math",
    ),
    "verl, several golds": (
        "verl",
        many(lambda n: {"data_source": "nq", "prompt": [user(f"Who is {n}?")],
                        "reward_model": {"ground_truth": {"target": [f"Ann {n}", f"Ann the {n}th"]}}}),
        {}, "Who is 7?", "Ann 7", {"aliases": ["Ann the 7th"]}, "short_answer",
    ),
    "trl": (
        "trl",
        many(lambda n: {"prompt": [user(f"Half of {n}?")], "solution": f"It is $\\boxed{{\\frac{{{n}}}{{2}}}}$."}),
        {}, "Half of 7?", "\\frac{7}{2}", {}, "math",
    ),
    "verifiers": (
        "verifiers",
        many(lambda n: {"question": f"Colour {n}?", "answer": f"red {n}", "info": {"source": "x"}, "task": "colours"}),
        {}, "Colour 7?", "red 7", {}, "short_answer",
    ),
    "verifiers, answer in info": (
        "verifiers",
        many(lambda n: {"question": f"{n} + 2?", "answer": "", "info": json.dumps({"gold": str(n + 2)})}),
        {"fields": {"answer": "info.gold"}}, "7 + 2?", "9", {}, "math",
    ),
    "messages": (
        "messages",
        many(lambda n: {"messages": [user(f"Say {n}."), reply(f"I say {n}.")]}),
        {}, "Say 7.", None, {"reference": "I say 7."}, "preference",
    ),
    "messages of parts, under a system text": (
        "messages",
        many(lambda n: {"messages": [{"role": "system", "content": "Be brief."},
                                     {"role": "user", "content": [{"type": "text", "text": f"Say {n}."}]},
                                     reply(f"I say {n}.")]}),
        {"options": {"system": "prepend"}}, "Be brief.\n\nSay 7.", None, {"reference": "I say 7."}, "preference",
    ),
    "sharegpt": (
        "messages",
        many(lambda n: {"conversations": [{"from": "human", "value": f"Say {n}."},
                                           {"from": "gpt", "value": f"I {n}"}]}),
        {}, "Say 7.", None, {"reference": "I 7"}, "preference",
    ),
    "dpo": (
        "dpo",
        many(lambda n: {"prompt": f"Say {n}.", "chosen": f"I say {n}.", "rejected": "No."}),
        {}, "Say 7.", None, {"reference": "I say 7."}, "preference",
    ),
    "dpo of messages, without a prompt": (
        "dpo",
        many(lambda n: {"chosen": [user(f"Say {n}."), reply(f"I say {n}.")],
                        "rejected": [user(f"Say {n}."), reply("No.")]}),
        {}, "Say 7.", None, {"reference": "I say 7."}, "preference",
    ),
    "mmlu": (
        "choices",
        many(lambda n: {"question": f"Which is {n}?", "choices": ["w", "x", "y", "z"], "answer": n % 4}),
        {}, "Which is 7?\nOptions: w, x, y, z", "z", {"choices": ["w", "x", "y", "z"]}, "short_answer",
    ),
    "mmlu, choices that are numbers": (
        "choices",
        many(lambda n: {"question": f"Which is {n}?", "choices": ["3", "2", "1", "0"] if n % 2 else list("wxyz"),
                        "answer": n % 4}),
        {}, "Which is 7?\nOptions: 3, 2, 1, 0", "0", {}, "short_answer",
    ),
    "arc": (
        "choices",
        many(lambda n: {"question": f"Which is {n}?", "choices": {"text": ["w", "x"], "label": ["1", "2"]},
                        "answerKey": "2"}),
        {}, "Which is 7?\nOptions: w, x", "x", {}, "short_answer",
    ),
    "choices in columns": (
        "choices",
        many(lambda n: {"question": f"Which is {n}?", "A": "w", "B": "x", "C": "y", "answer": "C"}),
        {}, "Which is 7?\nOptions: w, x, y", "y", {}, "short_answer",
    ),
    "plain": (
        "plain",
        many(lambda n: {"prompt": f"{n} + 2?", "answer": str(n + 2)}), {}, "7 + 2?", "9", {}, "math",
    ),
    "plain, a list in the path": (
        "verifiers",
        many(lambda n: {"turns": [{"content": f"{n} + 2?"}], "gold": [n + 2]}),
        {"fields": {"prompt": "turns.0.content", "answer": "gold.-1"}}, "7 + 2?", "9", {}, "math",
    ),
}  # fmt: skip


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(*files: Path, **keys: Any) -> RowTask:
    task = make_task("t", TaskSpec(source="jsonl", files=tuple(map(str, files)), **keys))
    assert isinstance(task, RowTask)
    return task


def everything(task: RowTask) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


@pytest.mark.parametrize("name", CASES)
def test_published_form_is_recognised_and_read_as_it_is(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    form, rows, keys, prompt, answer, data, reward = CASES[name]
    task = load(write(tmp_path / "rows.jsonl", rows), **keys)
    assert task.form.format.name == form
    assert dict(task.reward.sum) == {reward: 1.0}
    check_splits(task)
    problems = {problem.prompt: problem for problem in everything(task)}
    assert len(problems) == ROWS
    found = problems[prompt]
    assert found.answer == (data.get("reference") if answer is None else answer)
    assert {key: found.data[key] for key in data} == data
    said = [record.getMessage() for record in caplog.records if "rows in the form" in record.getMessage()]
    assert len(said) == (form != "plain")
    assert any("packed in a pickle" in line for line in said) == (name == "livecodebench")
    assert all(f"tasks.t: rows in the form {form} (" in line and f"reward {reward})" in line for line in said)


def program(problem: Problem) -> str:
    """A right answer to one of the problems above that have inputs and outputs, but no gold."""
    number = re.search(r"\d+", problem.prompt)
    assert number is not None
    if "entry_point" in problem.data:
        name = problem.data["entry_point"]
        return f"class Solution:\n    def {name}(self, x):\n        return x + {number[0]}\n"
    return f"```python\nprint(int(input()) + {number[0]})\n```"


class KnowsHalf(UnigramPolicy):
    """Answers every second time as the gold says, and else with nonsense."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(None)
        self.gold = {self.encode_prompt(p.chat): p.answer or p.data.get("reference") or program(p) for p in problems}

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        groups = []
        for place, request in enumerate(requests):
            prompt = tuple(request.prompt)
            texts = [self.gold[prompt] if n % 2 else "qqq" for n in range(params.group_size)]
            samples = []
            for text in texts:
                tokens = self.encode_answer(text)
                samples.append(Sample(tokens, (-4.85,) * len(tokens), text, "stop"))
            groups.append(Group(prompt, tuple(samples)))
            if on_group is not None:
                on_group(place, groups[-1])
        return groups


class Longer(NoJudge):
    """Prefers a text to one that isn't longer than "qqq"."""

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        return [Verdict("win" if len(text) > 3 else "lose") for text in responses]


@pytest.mark.parametrize("name", CASES)
def test_published_form_trains_for_one_step(tmp_path: Path, name: str) -> None:
    _, rows, keys, *_, reward = CASES[name]
    if reward == "unit_tests":
        _needs_sandbox()
    task = load(write(tmp_path / "rows.jsonl", rows), **keys)
    problems = task.problems("train")
    policy = KnowsHalf(problems)
    before = policy.logits.detach().clone()
    learner = Learner(
        policy,
        RlSpec(group_size=2, kl_every=0, refill_rounds=0),
        make_streams({"t": problems}, 0),
        {"t": make_reward(task.reward, judge=Longer())},
        {"t": 200},
    )
    result = learner.step({"t": 2}, 0)
    assert result.metrics["groups_trained/t"] == 2, [group.scores for group in result.groups]
    golds = [group.scores[1].value for group in result.groups]
    assert golds == [0.5 if reward == "preference" else 1.0] * 2
    assert [group.scores[0].value for group in result.groups] == [0.0, 0.0]
    assert not bool((policy.logits == before).all())


def _needs_sandbox() -> None:
    try:
        launch()
    except IsolationError as exc:
        pytest.skip(str(exc))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["omni-thinker", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


@pytest.mark.parametrize("name", CASES)
def test_imported_table_reads_the_same_problems(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form, rows, keys, *_ = CASES[name]
    file = write(tmp_path / "rows.jsonl", rows)
    flat = {f"{table}.{key}": value for table in ("fields", "options") for key, value in keys.get(table, {}).items()}
    flat |= {"template": keys["template"]} if "template" in keys else {}
    sets = [word for key, value in flat.items() for word in ("--set", f"{key}={value}")]
    assert command(monkeypatch, "tasks", "import", file, "--name", "t", *sets, "--json") == 0
    out = capsys.readouterr().out
    told = json.loads(out.splitlines()[-1])
    assert len(told["problems"]) == 3
    assert sum(told["sizes"].values()) == ROWS
    table = tomllib.loads(out.partition("# problems:")[0])["tasks"]["t"]
    assert table == told["recipe"]
    assert table["format"] == form
    again = make_task("t", parse_recipe({"tasks": {"t": table}}, "r").tasks["t"])
    assert isinstance(again, RowTask)
    assert everything(again) == everything(load(file, **keys))
    assert again.reward == load(file, **keys).reward


def test_row_of_several_turns_is_a_problem_with_its_own_conversation(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, user("a"), reply("b"), user("c"), reply("d")]
    file = write(tmp_path / "rows.jsonl", [{"messages": [*said[:1], user(f"{n}?"), *said[2:]]} for n in range(40)])
    problems = everything(load(file))
    assert len(problems) == 40
    problem = next(p for p in problems if p.earlier[0].text == "7?")
    assert (problem.prompt, problem.answer, problem.data["reference"], problem.system) == ("c", "d", "d", "Be brief.")
    assert problem.earlier == (Turn("user", "7?"), Turn("assistant", "b"))
    assert problem.chat == Chat("c", "Be brief.", problem.earlier)
    assert problem.shown == "System: Be brief.\n\nUser: 7?\n\nAssistant: b\n\nUser: c"
    dropped = everything(load(file, options={"system": "drop"}, template="Now: {prompt}"))[0]
    assert (dropped.system, dropped.prompt, len(dropped.earlier)) == (None, "Now: c", 2)


def test_conversations_that_differ_only_in_earlier_turns_fall_into_different_splits(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"{n}?"), reply("b"), user("go on"), reply("d")]} for n in range(200)]
    task = load(write(tmp_path / "rows.jsonl", rows), options={"drop_overlap": True})
    assert sum(len(task.problems(split)) for split in SPLITS) == 200
    check_splits(task)


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("two users", {"messages": [user("a"), user("b")]}, {}, r"messages: turn 1 is the user's, and so was the one"),
    ("assistant begins", {"messages": [reply("a"), user("b")]}, {}, r"messages: turn 0 is the assistant's; the user"),
    ("late system", {"messages": [user("a"), {"role": "system", "content": "s"}]}, {},
     r"messages: turn 1 is a system turn; only the first"),
    ("a tool", {"messages": [user("a"), {"role": "tool", "content": "b"}]}, {},
     r"messages: turn 1 has the role 'tool'"),
    ("an image", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, {},
     r"messages: turn 0 holds something besides text"),
    ("a call", {"messages": [user("a"), {**reply(""), "tool_calls": [{"type": "function"}]}]}, {},
     r"messages: turn 1 calls a tool"),
    ("no user", {"messages": [reply("b")]}, {}, r"messages: is missing"),
    ("prompt and reply in one", {"chosen": "Human: a Assistant: b", "rejected": "Human: a Assistant: c"}, {},
     r"chosen: holds prompt and reply in one text"),
    ("no tests", {"question_content": "q", "public_test_cases": "[]"}, {},
     r"public_test_cases: must hold lists of inputs and outputs"),
    ("a function by name alone", {"question": "q", "input_output": '{"inputs": [[1]], "outputs": [1], "fn_name": "f"}'},
     {}, r"input_output: calls a function \(fn_name\)"),
    ("gold in info", {"question": "q", "answer": "", "info": {"gold": 3, "n": 4}}, {},
     r"answer: is empty; where info holds it, set fields\.answer = 'info\.KEY' \(it has gold, n\)"),
    ("gold is a table", {"data_source": "countdown", "prompt": [user("q")],
                         "reward_model": {"ground_truth": {"target": 9, "numbers": [4, 5]}}}, {},
     r"reward_model\.ground_truth: is a table of target, numbers"),
    ("no mark", {"question": "q", "answer": "12"}, {"format": "gsm8k"}, r"answer: has no line that begins with ####"),
    ("no box", {"problem": "q", "solution": "12"}, {"format": "math"}, r"solution: has no \\boxed\{\}"),
    ("missing column", {"question": "q"}, {"format": "choices"}, r"answer: is missing"),
    ("unknown columns", {"foo": "q", "bar": "a"}, {},
     r"tasks\.t\.fields: rows with the columns 'foo', 'bar' are in no"),
    ("unknown form", {"prompt": "q", "answer": "a"}, {"format": "gsm8"}, r"tasks\.t\.format: unknown form.*'gsm8k'"),
    ("system option", {"prompt": "q"}, {"options": {"system": "keep"}},
     r"options\.system: must be 'prepend' or 'drop'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "keys", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_row_of_a_form_that_cannot_be_used_names_column_and_remedy(
    tmp_path: Path, name: str, row: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path / "rows.jsonl", [row] * 3), **keys)
    assert "\n" not in str(caught.value)


PLACES: list[tuple[str, list[tuple[Any, list[str]]], str | None]] = [
    ("a 0", [(0, ["a", "b"]), (1, ["c", "d"])], "ad"),
    ("the last of them", [(1, ["a", "b"]), (2, ["c", "d"])], "ad"),
    ("as text", [("0", ["a", "b"]), ("1", ["c", "d"])], "ad"),
    ("as floats of a table", [(0.0, ["a", "b"]), (1.0, ["c", "d"])], "ad"),
    ("numbers among the choices", [(12, ["12", "15"]), (7, ["6", "7"])], None),
    ("neither", [(1, ["a", "b", "c"]), (2, ["d", "e", "f"])], "places of choices, and no row says"),
    ("both", [(0, ["a", "b"]), (2, ["c", "d"])], "has the answer 0, and .* the number of its choices"),
    ("choices or places", [(1, ["1", "2", "3"]), (2, ["2", "1", "3"])], "may be choices or their places"),
]


@pytest.mark.parametrize(("name", "rows", "expected"), PLACES, ids=[case[0] for case in PLACES])
def test_places_are_counted_as_the_rows_say_or_refused(
    tmp_path: Path, name: str, rows: list[tuple[Any, list[str]]], expected: str | None
) -> None:
    # Each row often enough that every split has some.
    file = write(
        tmp_path / "rows.jsonl",
        [{"question": f"{i} {n}", "choices": c, "answer": a} for n in range(40) for i, (a, c) in enumerate(rows)],
    )
    if expected is not None and " " in expected:
        with pytest.raises(UserError, match=rf"options\.answer_index_base: .*{expected}.*set it to 0 or 1"):
            load(file)
        for base in (0, 1):
            if name == "both":
                with pytest.raises(UserError, match="isn't a place"):
                    load(file, options={"answer_index_base": base})
            else:
                task = load(file, options={"answer_index_base": base})
                assert {p.answer for p in everything(task) if p.prompt[0] == "0"} == {rows[0][1][rows[0][0] - base]}
        return
    found = {problem.prompt[0]: problem.answer for problem in everything(load(file))}
    assert found == ({"0": "12", "1": "7"} if expected is None else dict(zip("01", expected, strict=True)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1), st.lists(st.tuples(st.integers(2, 5), st.integers(0, 4)), min_size=1, max_size=8))
def test_places_are_never_read_from_the_wrong_base(
    tmp_path_factory: pytest.TempPathFactory, base: int, rows: list[tuple[int, int]]
) -> None:
    """Whatever rows show: the right choice, or a refusal that names the key."""
    told: Rows = [
        {"question": f"{i}", "choices": [f"{i}-{n}" for n in range(size)], "answer": place % size + base}
        for i, (size, place) in enumerate(rows)
    ]
    file = write(tmp_path_factory.getbasetemp() / "places.jsonl", told)
    shown = {row["answer"] - base * len(row["choices"]) for row in told}
    if 0 not in shown:  # no row says where the count begins
        with pytest.raises(UserError, match="answer_index_base"):
            load(file)
        return
    task = load(file)
    for problem in (problem for split in SPLITS for problem in _some(task, split)):
        row = told[int(problem.prompt.split("\n")[0])]
        assert problem.answer == row["choices"][row["answer"] - base]


def test_one_bad_row_of_a_thousand_is_named_and_can_be_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: Rows = [{"question": f"What is {n} plus 2?", "answer": f"#### {n + 2}"} for n in range(1000)]
    rows[500] = {"question": "Why?", "answer": "Nobody knows."}
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:501: answer: has no line that begins with ####")
    assert "(1 of 1,000 rows is refused; skip_refused = true (--skip-refused) leaves" in str(caught.value)
    task = load(file, skip_refused=True)
    assert len(everything(task)) == 999
    assert (task.refused.count, task.refused.total) == (1, 1000)
    assert f"tasks.t: 1 of 1,000 rows is left out: {file}:501: answer: has no line" in caplog.text


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 59), max_size=59), st.sampled_from(["{no json", "[1]", '{"prompt": ""}', "{}"]))
def test_every_refused_row_is_counted(tmp_path_factory: pytest.TempPathFactory, bad: set[int], line: str) -> None:
    file = tmp_path_factory.getbasetemp() / "counted.jsonl"
    good = [json.dumps({"prompt": f"{n} + 2?", "answer": f"{n + 2}", "id": n}) for n in range(60)]
    file.write_text("\n".join(line if n in bad else text for n, text in enumerate(good)), "utf-8")
    task = load(file, skip_refused=True)
    left = {problem.id for split in SPLITS for problem in _some(task, split)}
    assert left == {str(n) for n in range(60) if n not in bad}
    assert (task.refused.count, task.refused.total) == (len(bad), 60)
    if bad:
        with pytest.raises(UserError, match=rf":{min(bad) + 1}: .*\({len(bad)} of 60 rows"):
            load(file)


def _some(task: RowTask, split: Any) -> Sequence[Problem]:
    try:
        return task.problems(split)
    except UserError:
        return ()


def test_all_rows_refused_is_an_error_even_where_they_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": " "}] * 9)
    with pytest.raises(UserError, match=r":1: prompt: is empty; also .*:2, .*:3.* \(9 of 9 rows are refused; none is"):
        load(file, skip_refused=True)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, min_size=1)
        ),
    ),
    st.data(),
)  # fmt: skip
def test_path_leads_to_every_value_of_a_row(value: Any, data: st.DataObject) -> None:
    row, steps = {"top": value}, ["top"]
    while isinstance(value, list | dict) and data.draw(st.booleans()):
        if isinstance(value, list):
            place = data.draw(st.integers(-len(value), len(value) - 1))
            steps, value = [*steps, str(place)], value[place]
        else:
            name = data.draw(st.sampled_from(sorted(value)))
            steps, value = [*steps, name], value[name]
    assert lookup(row, ".".join(steps)) == value
    assert lookup(row, ".".join([*steps, "x"])) is MISSING
    assert lookup({"top": json.dumps(row["top"])}, ".".join(steps)) == value or len(steps) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=4)), min_size=1, max_size=5)
)
def test_conversation_alternates_or_is_refused_and_reads_back(turns: list[tuple[str, str]]) -> None:
    value = [{"role": role, "content": text} for role, text in turns]
    assert is_turns(value)
    if re.fullmatch(r"s?((ua)*u?|a)", "".join(role[0] for role, _ in turns)):
        read = read_turns(value)
        parts = [("system", read.system), *((t.role, t.text) for t in read.earlier), ("user", read.user)]
        assert [part for part in [*parts, ("assistant", read.reply)] if part[1] is not None] == turns
    else:
        with pytest.raises(ValueError, match=r"turn \d is"):
            read_turns(value)


def test_most_rows_decide_the_form_and_keys_of_the_recipe_win(tmp_path: Path) -> None:
    rows: Rows = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(30)]
    rows[3]["answer"] = "unsure"
    task = load(write(tmp_path / "rows.jsonl", rows), skip_refused=True)
    assert task.form.format.name == "gsm8k"
    plain = load(
        tmp_path / "rows.jsonl", format="plain", fields={"prompt": "question"}, template="Q: {prompt}",
        reward={"sum": {"exact": 1.0}},
    )  # fmt: skip
    problem = next(p for p in everything(plain) if p.prompt == "Q: 7?")
    assert (problem.answer, list(plain.reward.sum)) == ("#### 7", ["exact"])


def test_every_form_is_in_the_table_of_the_page(repo: Path) -> None:
    page = (repo / "docs" / "tasks.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) >= set(FORMATS)
