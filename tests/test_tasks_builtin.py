"""The built-in tasks: splits, determinism, and gold answers that are right."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.recipe import RewardSpec, TaskSpec
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.builtin.qa import _relations
from omni_thinker.tasks.builtin.qa_facts import countries, elements
from omni_thinker.tasks.pool import Item, PooledTask, split_of
from omni_thinker.tasks.registry import BUILTIN, TASKS, check_splits, make_task, split_overlap
from omni_thinker.types import SPLITS, Problem

DIFFICULTIES = (0.0, 1.0, 2.5, 4.0, 7.0, 10.0)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def build(kind: str, difficulty: float | None = None, seed: int = 0) -> PooledTask:
    spec = TaskSpec(source=f"builtin:{kind}", difficulty=difficulty, seed=seed, train=96, validation=24, test=32)
    return TASKS[kind](kind, spec)


def everything(task: Task) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def drawn(kind: str, seed: int, difficulty: float) -> Item:
    return build(kind).generate(random.Random(seed), difficulty)


@pytest.mark.parametrize("kind", BUILTIN)
@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_splits_are_full_and_share_no_prompt(kind: str, difficulty: float) -> None:
    task = build(kind, difficulty)
    assert isinstance(task, Task)
    assert split_overlap(task) == []
    check_splits(task)
    assert [len(task.problems(split)) for split in SPLITS] == [96, 24, 32]
    ids = [problem.id for problem in everything(task)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("kind", BUILTIN)
def test_train_split_of_a_seed_shares_no_prompt_with_the_test_of_another(kind: str) -> None:
    first, second = build(kind, 1.0, seed=1), build(kind, 1.0, seed=2)
    assert {p.prompt for p in first.problems("train")} != {p.prompt for p in second.problems("train")}
    assert not {p.prompt for p in first.problems("train")} & {p.prompt for p in second.problems("test")}


@pytest.mark.parametrize("kind", BUILTIN)
def test_splits_of_several_seeds_share_no_content(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks by content key over several seeds."""
    homes: dict[str, str] = {}
    for seed in range(3):
        task = build.__wrapped__(kind, 1.0, seed)
        for split in SPLITS:
            keys: list[Item] = []

            def spy(rng: random.Random, difficulty: float, task: PooledTask = task, keys: list[Item] = keys) -> Item:
                keys.append(TASKS[kind].generate(task, rng, difficulty))
                return keys[-1]

            monkeypatch.setattr(task, "generate", spy)
            prompts = {problem.prompt for problem in task.problems(split)}
            for item in keys:
                if item.prompt in prompts:
                    assert homes.setdefault(item.key, split) == split


@pytest.mark.parametrize("kind", BUILTIN)
def test_default_task_has_its_split_sizes_and_short_prompts(kind: str) -> None:
    task = make_task(kind, TaskSpec(source=f"builtin:{kind}"))
    assert [len(task.problems(split)) for split in SPLITS] == [512, 64, 128]
    assert max(len(problem.prompt.split()) for problem in everything(task)) <= 60
    assert all(problem.answer and "```" not in problem.answer for problem in everything(task))
    assert task.verifiable == (kind != "writing")


def fingerprint() -> str:
    parts = [p.prompt + str(p.answer) + repr(p.data) for k in BUILTIN for p in build(k).problems("test")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_another_process_generates_the_same_problems() -> None:
    code = "import test_tasks_builtin as t; print(t.fingerprint())"
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    env = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": path}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint()


def test_larger_train_split_does_not_change_the_test_split() -> None:
    small, large = (
        make_task("m", TaskSpec(source="builtin:math", train=n, validation=5, test=20)).problems("test")
        for n in (5, 50)
    )
    assert small == large


@FEW
@given(st.integers(0, 10**6), st.floats(0, 10))
def test_math_gold_answer_is_the_value_of_the_expression(seed: int, difficulty: float) -> None:
    item = drawn("math", seed, difficulty)
    assert re.fullmatch(r"-?\d+", item.answer or "")
    if bare := re.fullmatch(r"(\d+) ([-+*]) (\d+)", item.key):
        a, sign, b = int(bare[1]), bare[2], int(bare[3])
        assert int(item.answer or "") == {"+": a + b, "-": a - b, "*": a * b}[sign]
        assert sorted(re.findall(r"\d+", item.prompt)) == sorted([bare[1], bare[3]])
    assert not re.search(r"\b1 \w+s\b(?! left)", item.prompt.replace("1 is", "")), "a singular takes no s"
    assert "{" not in item.prompt


def solve(prompt: str) -> int | None:
    """An independent reading of some stories, from the finished text."""
    n = [int(number) for number in re.findall(r"\d+", prompt)]
    cues: dict[str, int] = {}
    if len(n) == 2:
        a, b = n
        cues = {
            "have left?": a - b, "are left?": a - b, "together?": a + b, "in all?": a + b, " in each": a * b,
            "need?": a - b, "every day": a * b,
        }  # fmt: skip
    for cue, value in cues.items():
        if cue in prompt and not re.search("more than|bags of|after", prompt):
            return value
    return None


def test_math_story_answers_agree_with_a_second_solver() -> None:
    read = [(p, solve(p.prompt)) for d in (0.0, 1.0, 2.5) for p in everything(build("math", d))]
    known = [(p, value) for p, value in read if value is not None]
    assert len(known) > 60
    assert [(p.prompt, p.answer) for p, value in known if p.answer != str(value)] == []


def test_math_at_difficulty_0_has_numbers_up_to_21() -> None:
    numbers = [int(n) for p in everything(build("math", 0.0)) for n in re.findall(r"\d+", p.prompt)]
    assert max(numbers) <= 20
    assert max(int(p.answer or "") for p in everything(build("math", 0.0))) <= 21


@FEW
@given(st.integers(0, 10**6), st.floats(0, 10))
def test_coding_gold_passes_its_tests_and_constants_fail(seed: int, difficulty: float) -> None:
    item = drawn("coding", seed, difficulty)
    tests, entry = item.data["tests"], item.data["entry_point"]
    assert len(tests) == 5
    assert f"Write a Python function {entry}(" in item.prompt
    assert passes(item.answer or "", tests)
    shown = re.search(r"Example: f\((.*)\) returns (.*)\.$", item.prompt)
    assert shown
    assert passes(item.answer or "", [f"assert f({shown[1]}) == {shown[2]}"])
    assert not any(test.startswith(f"assert f({shown[1]}) ==") for test in tests), "the example is no hidden test"
    values = {test.partition(" == ")[2] for test in tests} | {shown[2], "x", "None", "0"}
    assert not any(passes(f"def f(x):\n    return {value}", tests) for value in values)


def passes(source: str, tests: list[str]) -> bool:
    space: dict[str, object] = {}
    exec(source, space)
    try:
        for test in tests:
            exec(test, space)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("difficulty", [0.0, 3.0, 10.0])
def test_qa_options_contain_the_answer_once(difficulty: float) -> None:
    for problem in everything(build("qa", difficulty)):
        choices = problem.data["choices"]
        assert choices.count(problem.answer) == 1
        assert len(set(choices)) == len(choices) >= 4
        assert problem.prompt.endswith("Options: " + ", ".join(choices))
        if "continent" not in problem.prompt:
            assert len(choices) == 4 + round(0.4 * difficulty)


def test_qa_distractors_are_never_right() -> None:
    lands = {land.the: land for land in countries().values()}
    by_name = {land.name: land for land in countries().values()}
    capitals = {land.capital: land.name for land in countries().values()}
    for name, facts in _relations().items():
        for fact in facts:
            wrong = {*fact.near, *fact.far}
            assert fact.answer not in wrong
            assert not set(fact.near) & set(fact.far)
            assert len(wrong) >= 5
            if name == "border":
                land = lands[fact.question[len("Which country borders ") : -1]]
                assert by_name[fact.answer].iso in land.neighbours
                assert not any(by_name[other].iso in land.neighbours for other in wrong)
            if name == "country of":
                capital = fact.question[len("Which country has ") : -len(" as its capital?")]
                assert capitals[capital] == fact.answer


def test_qa_has_known_facts_and_no_ambiguous_ones() -> None:
    asked = {fact.question: fact.answer for facts in _relations().values() for fact in facts}
    assert asked["What is the capital of France?"] == "Paris"
    assert asked["What is the capital of the United Kingdom?"] == "London"
    assert asked["Which country has Tokyo as its capital?"] == "Japan"
    assert asked["On which continent is Kenya?"] == "Africa"
    assert asked["Which currency is used in Poland?"] == "Zloty"
    assert asked["What is the chemical symbol of iron?"] == "Fe"
    assert asked["Which element has atomic number 6?"] == "carbon"
    assert not any("Bolivia" in q for q in asked if "capital" in q), "two capitals"
    assert not any("Russia" in q for q in asked if "continent" in q), "two continents"
    assert len(elements()) == 118


@FEW
@given(st.integers(0, 10**6), st.floats(0, 10))
def test_writing_gold_meets_its_constraints(seed: int, difficulty: float) -> None:
    item = drawn("writing", seed, difficulty)
    text, limits = item.answer or "", item.data["constraints"]
    words = re.findall(r"[\w']+", text.lower())
    assert all(word in words for word in limits["include"])
    assert not any(word in words for word in limits.get("avoid", []))
    assert len(re.findall(r"[.!?]+(?=\s|$)", text)) == limits["sentences"]
    assert len(text.split()) <= limits.get("max_words", 10**6)
    assert all(f'"{word}"' in item.prompt for word in [*limits["include"], *limits.get("avoid", [])])
    assert text[0].isupper()
    assert text.endswith(".")


def test_writing_gold_has_over_40_different_openings() -> None:
    openings = {" ".join((p.answer or "").split()[:2]) for p in everything(build("writing", 1.0))}
    assert len(openings) > 40


class Dry(PooledTask):
    kind, summary, default_reward = "dry", "one fact", RewardSpec(sum={"exact": 1.0})

    def generate(self, rng: random.Random, difficulty: float) -> Item:
        return Item("the only fact", "What is it?", "It")


def test_split_without_problems_is_a_user_error_that_names_the_key() -> None:
    task = Dry("dry", TaskSpec(source="python:x:Dry"))
    home = split_of("the only fact")
    assert len(task.problems(home)) == 1
    for split in set(SPLITS) - {home}:
        with pytest.raises(UserError, match=r"^tasks\.dry\.difficulty: .* split"):
            task.problems(split)


def test_builtin_task_refuses_keys_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"tasks\.m\.template"):
        make_task("m", TaskSpec(source="builtin:math", template="Q: {prompt}"))
    with pytest.raises(UserError, match=r"tasks\.m\.options"):
        make_task("m", TaskSpec(source="builtin:math", options={"size": 3}))
