"""The verifiers that work in other processes, and real right and wrong answers."""

from __future__ import annotations

import asyncio
import gzip
import importlib.util
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.isolation import IsolationError, allow_weak_sandbox, shutdown
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards import code, make_reward, score_texts, validate
from omni_thinker.rewards import math as math_module
from omni_thinker.rewards.code import extract_code
from omni_thinker.rewards.extract import announced, boxed
from omni_thinker.rewards.reading.numbers import last_number, leading_number, to_number
from omni_thinker.rewards.reading.symbolic import plausible
from omni_thinker.types import Problem, Score
from timing import quickest

Row = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    shutdown()


def problem(answer: str | None, **data: Any) -> Problem:
    return Problem("p1", "task", "prompt", answer, data)


def scores(part: str, text_and_problem: list[tuple[str, Problem]]) -> list[Score]:
    reward = make_reward(RewardSpec(gate=(), sum={part: 1.0}), judge=None)

    async def run() -> list[Score]:
        groups = await asyncio.gather(*(score_texts(reward, item, [text]) for text, item in text_and_problem))
        return [group[0] for group in groups]

    return asyncio.run(run())


def math(text: str, gold: str) -> Score:
    return scores("math", [(text, problem(gold))])[0]


def check(part: str, item: Problem) -> str | None:
    return make_reward(RewardSpec(gate=(), sum={part: 1.0}), judge=None).check(item)


def read(path: Path) -> list[Row]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


# --- math ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("18", "18"), ("18.", "18"), ("$18", "18"), ("18.0", "18"), ("1,234", "1234"), ("1234", "1,234"), ("5", "$5"),
        ("12.50", "12.5"), ("-5", "-5"), ("- 5", "-5"), ("-$5", "-5"), ("−5", "-5"), ("18%", "18"), ("18 dollars",
        "18"),
        ("\\boxed{18}", "18"), ("\\boxed{1{,}234}", "1234"), ("\\boxed{18\\text{ cm}}", "18"), ("\\(18\\)", "18"),
        ("\\boxed{3} no, \\boxed{18}", "18"), ("#### 18", "18"), ("work 3\n#### 18\n", "18"), ("A: 18", "18"),
        ("The answer is 18.", "18"), ("The answer is 18 because 9 + 9 = 18.", "18"), ("Answer: **18**", "18"),
        ("The answer is 7 of the 9 cats.", "7"), ("9 + 9 = 18", "18"), ("So 9 cats and 9 dogs make 18", "18"),
        ("1/2", "0.5"), ("\\frac{1}{2}", "0.5"), ("3 or maybe 4", "4"), ("18 = 18", "18"),
        ("it costs 18 dollars per day", "18"), ("x = 18", "18"),
    ],
)  # fmt: skip
def test_math_accepts_equivalent_numbers(text: str, gold: str) -> None:
    assert math(text, gold).value == 1.0


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("", "18"), ("eighteen", "18"), ("19", "18"), ("-18", "18"), ("1 2 3 4 5", "5"), ("1\n2\n3", "3"), ("3 or 4",
        "4"),
        ("3, 4", "4"), ("3 and 4", "4"), ("The answer is 3 or 4", "3"), ("The answer is 3 or 4", "4"),
        ("the answer is 3, 4, 5", "3"), ("\\boxed{3, 4}", "3"), ("It is one of 3, 4", "4"), ("17 + 1", "18"), ("0+5",
        "5"),
        ("36/2", "18"), ("\\boxed{36/2}", "18"), ("\\boxed{17+1}", "18"), ("The answer is 17 + 1", "18"),
        ("\\boxed{19} or 18", "18"), ("1,23", "123"), ("5 - 18", "-18"), ("180", "18"), ("0.18", "18"), ("1e400", "18"),
    ],
)  # fmt: skip
def test_math_refuses_other_answers(text: str, gold: str) -> None:
    assert math(text, gold).value == 0.0


@pytest.mark.parametrize(
    ("text", "gold", "want"),
    [
        ("\\frac{1}{3}", "1/3", 1.0), ("$\\frac13$", "$1/3$", 1.0), ("2/6", "1/3", 1.0), ("0.3", "1/3", 0.0),
        ("\\boxed{\\{1,2\\}}", "$\\{2,1\\}$", 1.0), ("$2\\sqrt{3}$", "$\\sqrt{12}$", 1.0), ("$\\sqrt{13}$",
        "$\\sqrt{12}$", 0.0),
        ("$\\frac13$ or $\\frac12$", "1/3", 0.0), ("", "1/3", 0.0),
    ],
)  # fmt: skip
def test_math_compares_symbolic_answers_with_math_verify(text: str, gold: str, want: float) -> None:
    assert math(text, gold).value == want


def test_comparison_past_its_deadline_is_an_error_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import time\n\n\ndef handle(request):\n    if 'sleep' in request['texts'][0]:\n        time.sleep(60)\n"
        "    return {'equal': True}\n"
    )
    monkeypatch.setattr(math_module, "_HANDLER", sleeper)
    monkeypatch.setattr(math_module, "_DEADLINE_S", 0.5)
    begin = time.monotonic()
    score = math("sleep $\\sqrt{2}$", "$\\sqrt{3}$")
    assert (score.status, score.value) == ("error", None)
    assert "no reply within 0.5 s" in (score.reason or "")
    assert time.monotonic() - begin < 30
    monkeypatch.setattr(math_module, "_DEADLINE_S", 5.0)
    assert math("$\\sqrt{2}$", "$\\sqrt{3}$").value == 1.0


def test_worker_that_dies_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import os\n\n\ndef handle(request):\n    os._exit(3)\n")
    monkeypatch.setattr(math_module, "_HANDLER", dying)
    score = math("$\\sqrt{2}$", "$\\sqrt{3}$")
    assert (score.status, score.value) == ("error", None)
    assert "went away" in (score.reason or "")


# Of the forms that are refused unread, but harmless: powers of 1, small factorials, few brackets.
HOPELESS = ["$1**1**1**1$", "$1^{1^{10}}$", "$10000!$", "$1^{7^7}$", "$((3!)!)!$", "\\boxed{1^{1^{1^1}}}", "$1^{10000000}$",
            "$" + "\\sqrt{" * 12 + "1" + "}" * 12 + "$", "$" + "(" * 21 + "1" + ")" * 21 + "$",
            "\\boxed{" + "1+" * 400 + "1}", "#### " + "1+" * 400 + "1"]  # fmt: skip


@pytest.mark.parametrize("text", HOPELESS, ids=lambda text: text[:14])
def test_implausible_math_answer_scores_0_within_1_second(text: str) -> None:
    math("\\sqrt{2}", "\\sqrt{2}+1")  # starts the worker
    begin = time.monotonic()
    score = math(text, "\\sqrt{2}")
    assert score.value == 0.0
    assert (score.reason or "").endswith("not a plausible answer form")
    assert time.monotonic() - begin < 1.0


def test_implausible_working_before_a_boxed_answer_scores_1() -> None:
    assert math("Not $1^{1^{1^1}}$. So \\boxed{\\sqrt{3}}", "\\sqrt{3}").value == 1.0
    assert math("$2^{10^2}$", "$2^{100}$").value == 1.0
    assert math("$2^{2^{3}}$", "$2^8$").value == 1.0
    assert math("$\\frac{2025!}{2024!}+1$", "$\\frac{4052}{2}$").value == 1.0


@given(st.text(alphabet="0123456789^*!(){} \\", max_size=200))
def test_plausibility_check_of_any_text_never_raises(text: str) -> None:
    plausible(text)


@pytest.mark.parametrize("unit", ["9", "9 ", "9^", "9^9", "!", "9)", "^ ", "\\sqrt ", "((", " "])
def test_plausibility_check_of_20000_characters_ends_within_half_a_second(unit: str) -> None:
    text = unit * (20_000 // len(unit)) + "x"
    assert quickest(lambda: plausible(text), 0.5) < 0.5


def test_math_check_refuses_gold_answers_that_are_not_mathematical() -> None:
    assert check("math", problem("18")) is None
    assert check("math", problem("\\frac{1}{2}")) is None
    assert "answer" in (check("math", problem(None)) or "")
    assert "a mathematical expression" in (check("math", problem("..")) or "")
    assert "short_answer" in (check("math", problem("yes sir")) or "")


@given(st.text(max_size=200))
def test_reading_numbers_from_any_text_never_raises(text: str) -> None:
    for function in (to_number, leading_number, last_number, boxed, announced):
        function(text)
        function(f"\\boxed{{{text}}} {text} #### {text} answer is {text}")


@given(st.text(alphabet="0123456789,./$%-+eE =\\{}orand\n", max_size=60))
def test_reading_number_like_text_never_raises(text: str) -> None:
    for function in (to_number, leading_number, last_number, boxed, announced):
        function(text)


@given(st.integers(-(10**12), 10**12))
def test_math_accepts_every_way_to_write_an_integer(number: int) -> None:
    for text in (
        str(number),
        f"{number:,}",
        f"{number}.",
        f"{number}.0",
        f"The answer is {number:,}.",
        f"\\boxed{{{number}}}",
    ):
        assert math(text, str(number)).value == 1.0
        assert math(text, str(number + 1)).value == 0.0


def test_math_agrees_with_labels_of_gsm8k_model_solutions(shared_data: Path) -> None:
    rows = read(shared_data / "verifier" / "gsm8k_model_solutions.jsonl.gz")
    found = scores("math", [(row["candidate"], problem(row["reference"])) for row in rows])
    assert [score.value for score in found] == [float(row["label"]) for row in rows]


def test_math_agrees_with_97_percent_of_published_equivalences(shared_data: Path) -> None:
    rows = read(shared_data / "verifier" / "math_equivalence.jsonl")
    found = scores("math", [(row["candidate"], problem(row["reference"])) for row in rows])
    assert sum(score.value == row["label"] for score, row in zip(found, rows, strict=True)) >= 0.97 * len(rows)
    assert not [row["id"] for score, row in zip(found, rows, strict=True) if score.value == 1.0 and not row["label"]]


# --- programs --------------------------------------------------------------------------------------------------------

DEF = "def f(x):\n    return x + 3\n"
ADD = problem(DEF, tests=["assert f(1) == 4", "assert f(-3) == 0"])


@pytest.mark.parametrize(
    "text",
    [
        DEF, f"```python\n{DEF}```", f"```\n{DEF}", f"Here is the code:\n\n```py\n{DEF}```\nThis adds three.",
        f"Sure! This function adds three.\n\n{DEF}", f"{DEF}\nThis function adds three.\n",
        f"```\nx = 1\n```\n```\n{DEF}```",
        f"```python\n{DEF}```\nOutput:\n```\n4\n```", "f = lambda x: x + 3",
    ],
)  # fmt: skip
def test_program_in_any_markdown_is_extracted_and_passes(text: str) -> None:
    assert scores("unit_tests", [(text, ADD)])[0].value == 1.0


@pytest.mark.parametrize("text", ["", "no code", "def f(x): return 4", "```python\n```", "import sys; sys.exit(0)"])
def test_wrong_or_missing_program_scores_0(text: str) -> None:
    assert scores("unit_tests", [(text, ADD)])[0].value == 0.0


def test_unit_tests_partial_is_the_share_of_tests_passed() -> None:
    half = problem(DEF, tests=["assert f(1) == 4", "assert f(2) == 9"])
    assert [s.value for s in scores("unit_tests_partial", [(DEF, half), (DEF, ADD)])] == [0.5, 1.0]
    assert scores("unit_tests", [(DEF, half)])[0].value == 0.0


def test_program_can_define_only_entry_points_for_its_tests() -> None:
    cheat = "def same(a, b): return True\ndef f(x): return 0"
    tests = ["assert same(f(1), 4)"]
    assert scores("unit_tests", [(cheat, problem(None, tests=tests))])[0].value == 1.0, "tests that trust the program"
    assert scores("unit_tests", [(cheat, problem(DEF, tests=tests))])[0].value == 0.0, (
        "the gold program knows no `same`"
    )
    own = problem("def sum(a, b):\n    return a - b", tests=["assert sum(5, 2) == 3"])
    assert [s.value for s in scores("unit_tests", [(str(own.answer), own), ("x = 1", own)])] == [1.0, 0.0]
    for names in ("f", ["f"]):
        assert scores("unit_tests", [(cheat, problem(DEF, tests=tests, entry_point=names))])[0].value == 0.0
    for bad in ("f g", 5, ["f", 1]):
        assert check("unit_tests", problem(DEF, tests=tests, entry_point=bad))


def test_unit_tests_without_bubblewrap_needs_the_weak_sandbox_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni_thinker.isolation.bubblewrap.shutil.which", lambda name: None)
    allow_weak_sandbox(False)
    try:
        with pytest.raises(UserError, match="bubblewrap"):
            make_reward(RewardSpec(sum={"unit_tests": 1.0}), judge=None)
        allow_weak_sandbox()
        make_reward(RewardSpec(sum={"unit_tests": 1.0}), judge=None)
    finally:
        monkeypatch.undo()
        allow_weak_sandbox(False)


def test_program_past_its_deadline_scores_0_with_a_reason() -> None:
    [score] = scores("unit_tests", [("while True: pass", problem(DEF, tests=["assert True"], timeout=0.3))])
    assert score.value == 0.0
    assert "deadline" in (score.reason or "")


def test_failing_sandbox_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise IsolationError("no processes left")

    monkeypatch.setattr(code, "run_tests", fail)
    assert scores("unit_tests", [(DEF, ADD)])[0].status == "error"


@pytest.mark.parametrize("data", [{}, {"tests": []}, {"tests": "assert 1"}, {"tests": ["assert ("]}, {"tests": [" "]},
                                  {"tests": ["assert 1"], "setup": "def"},
                                  *({"tests": ["assert 1"], "timeout": t} for t in
                                    (0, -1, 61, float("nan"), float("inf"), "2", True, None, 10**400))])  # fmt: skip
def test_malformed_unit_tests_are_found_by_check(data: dict[str, Any]) -> None:
    assert check("unit_tests", problem(DEF, **data))
    assert check("unit_tests", ADD) is None


@given(st.text(max_size=200))
def test_extracting_code_from_any_text_never_raises(text: str) -> None:
    extract_code(text)
    extract_code(f"```{text}```\n{text}")


def test_mbpp_references_pass_validation(shared_data: Path) -> None:
    rows = read(shared_data / "coding" / "mbpp.jsonl.gz")[:60]
    items = [
        Problem(r["id"], "code", r["prompt"], r["reference"], {"tests": r["tests"], "setup": r["meta"]["setup"]})
        for r in rows
    ]
    reward = make_reward(RewardSpec(gate=("finished", "format"), sum={"unit_tests": 1.0}), judge=None)
    assert asyncio.run(validate(items, reward)) == []


# --- reasoning_gym ---------------------------------------------------------------------------------------------------


def test_reasoning_gym_scores_in_its_own_process() -> None:
    pytest.importorskip("reasoning_gym")
    entry = {"question": "1 + 1", "answer": "2", "metadata": {}}
    item = problem("2", gym="basic_arithmetic", entry=entry)
    assert check("reasoning_gym", item) is None
    right, wrong = scores("reasoning_gym", [("2", item), ("3", item)])
    assert right.value == 1.0
    assert wrong.value is not None
    assert wrong.value < 1.0
    assert scores("reasoning_gym", [("2", problem("2", gym="no_such_set", entry=entry))])[0].status == "error"


def test_missing_reasoning_gym_is_found_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in (check("reasoning_gym", problem("2")) or "")
    assert "gym" in (check("reasoning_gym", problem("2", gym=1)) or "")


WRONG = {
    "3": r"\boxed{3x} | \boxed{3!} | \boxed{3\sqrt{2}} | \boxed{3i} | \boxed{3\pi} | \boxed{3+x} | \boxed{3(4)} | \boxed{3:4}"
    r" | \boxed{3 < x < 5} | \boxed{>3} | \boxed{\neq 3} | \boxed{3 \pm 1} | \boxed{3\\4} | \boxed{3 \quad 4} | \boxed{3~4}"
    r" | \boxed{3 vs 4} | \boxed{3\text{ or possibly }4} | #### 3 maybe 4 maybe 5 | #### 3...7 | The answer is not 3."
    r" | The answer is 3 million. | The answer is 3^2 | The answer is 3x + 1",
    "7": r"\boxed{7²} | #### 7²",
    "12": r"\boxed{12_{8}} | #### 12 or thirteen",
    "4": r"\boxed{x=3, y=4}",
}
RIGHT = {
    "3": r"\boxed{3} | \boxed{3 km} | \boxed{3\text{ km}} | \boxed{x = 3} | #### 3 apples | The answer is 3, because 4 - 1 = 3"
    r" | \boxed{3^\circ} | \boxed{3\%} | \boxed{\$3} | The answer is 3. | answer: 3 m | \boxed{2+1=3} | A: 3 eggs a day",
    "3000000": r"The answer is 3 million. | \boxed{3,000,000}",
    "24": r"#### 2 dozen | #### $24",
}


def _cases(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(gold, text) for gold, texts in table.items() for text in texts.split(" | ")]


@pytest.mark.parametrize(("gold", "text"), _cases(WRONG))
def test_number_inside_another_expression_scores_0(gold: str, text: str) -> None:
    assert scores("math", [(text, problem(gold))])[0].value == 0.0


@pytest.mark.parametrize(("gold", "text"), _cases(RIGHT))
def test_number_with_its_unit_scores_1(gold: str, text: str) -> None:
    assert scores("math", [(text, problem(gold))])[0].value == 1.0


@pytest.mark.parametrize(
    ("gold", "text"),
    [("{1}", "{True}"), ("{1: 2}", "{True: 2}"), ("0.0", "-0.0"), ("{1.0}", "{1}"), ("((1,),)", "((True,),)")],
)
def test_exact_tells_types_apart_in_nested_literals(gold: str, text: str) -> None:
    assert scores("exact", [(text, problem(gold)), (gold, problem(gold))])[0].value == 0.0
    assert scores("exact", [(gold, problem(gold))])[0].value == 1.0


# --- published programs ----------------------------------------------------------------------------------------------


def _published(folder: Path, name: str) -> list[Problem]:
    text = gzip.decompress((folder / "coding" / f"{name}.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    whole = [row["reference"] if name == "mbpp" else row["prompt"] + row["reference"] for row in rows]
    return [
        Problem(
            row["id"], "t", "", program, {"tests": row["tests"], "setup": row["meta"].get("setup", ""), "timeout": 10.0}
        )
        for row, program in zip(rows, whole, strict=True)
    ]


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_published_references_pass_their_tests_and_fail_changed_ones(shared_data: Path, name: str) -> None:
    problems = _published(shared_data, name)
    pairs = [(f"```python\n{p.answer}\n```", p) for p in problems]
    assert {score.value for score in scores("unit_tests", pairs)} == {1.0}
    # A number that no test expects, where one is compared with.
    changed = []
    for found in problems:
        for test in found.data["tests"]:
            text, count = re.subn(r"(==\s*)(-?\d+)(?=\s*(?:$|\n))", r"\g<1>987654321", test)
            if count:
                changed.append(
                    (f"```python\n{found.answer}\n```", replace(found, data={**found.data, "tests": [text]}))
                )
    assert len(changed) > (800 if name == "mbpp" else 30)
    assert {score.value for score in scores("unit_tests", changed)} == {0.0}
