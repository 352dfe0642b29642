"""reasoning-gym as tasks: the same in every process, checked as it is drawn, kept, and scored without floors."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.isolation import shutdown
from omni_thinker.recipe import TaskSpec, parse_recipe
from omni_thinker.rewards import Failure, make_reward, score_texts, validate
from omni_thinker.rewards.handlers.gym_values import from_json, to_json, without_floor
from omni_thinker.studies.setup import prepare
from omni_thinker.tasks.gym import GymTask
from omni_thinker.tasks.gym.cache import cached, keep, kept_in
from omni_thinker.tasks.registry import check_splits
from omni_thinker.types import SPLITS, Problem, Score

pytest.importorskip("reasoning_gym", reason="the extra gym isn't installed")
pytestmark = pytest.mark.usefixtures("own_home")

PACKAGE = """
from reasoning_gym import factory
def create_dataset(name, **config):
    return factory.DATASETS[name][0](config)
"""
FACTORY = '''
CURRICULA = {}
class Sums:
    """index + 1, with a scorer that gives an empty answer 0.05, as some sets of the real package do."""
    def __init__(self, config):
        self.config = config
    def __getitem__(self, index):
        if self.config.get("dies") and index % 2:
            raise RuntimeError("no such sum")
        index %= self.config.get("few", 10**9)
        metadata = {"when": object, "pair": (index, 1), "home": __file__, 7: {"a", "b"}}
        return {"question": f"{index} + 1?", "answer": str(index + 1), "metadata": metadata}
    def score_answer(self, answer, entry):
        assert isinstance(entry["metadata"]["pair"], tuple) and 7 in entry["metadata"]
        if answer in self.config.get("full_marks", ()):
            return 1.0
        if answer == entry["answer"]:
            return float(self.config.get("gold", 1.0))
        if answer == "":
            return 0.05
        if not answer.isdigit() and self.config.get("raises", True):
            raise TypeError(f"can't read {answer!r}")
        return max(0.05, 1.0 - abs(int(answer) - entry["metadata"]["pair"][0] - 1) / 10)
class Broken(Sums):
    def score_answer(self, answer, entry):
        raise KeyError("state")
DATASETS = {"sums": (Sums, dict), "broken": (Broken, dict)}
'''


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package called reasoning_gym with sets that do what is asked of them."""
    package = tmp_path / "packages" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "factory.py").write_text(FACTORY)
    shutdown()
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    yield
    shutdown()


def gym_task(name: str, train: int = 8, held_out: int = 3, **keys: Any) -> GymTask:
    spec = TaskSpec(source=f"reasoning_gym:{name}", train=train, validation=held_out, test=held_out, **keys)
    return GymTask("t", spec)


def all_problems(task: GymTask) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def scored(task: GymTask, problem: Problem, *answers: str) -> list[Score]:
    return asyncio.run(score_texts(make_reward(task.reward, judge=None), problem, answers))


def failures(task: GymTask, problems: list[Problem]) -> list[Failure]:
    return asyncio.run(validate(problems, make_reward(task.reward, judge=None)))


# --- values and floors ------------------------------------------------------------------------------------------------

_plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)
_keys = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.integers())
_values = st.recursive(
    _plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_keys, inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.dictionaries(st.sampled_from(["!tuple", "!set", "!table"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(_values)
def test_values_come_back_through_json_with_their_types(value: Any) -> None:
    there = json.loads(json.dumps(to_json(value)))
    back = from_json(there)
    assert back == value
    assert json.dumps(to_json(back)) == json.dumps(there)  # types too: a tuple isn't written as a list is


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.99))
def test_floor_is_taken_off_in_order_and_within_0_and_1(one: float, other: float, floor: float) -> None:
    low, high = sorted((one, other))
    assert 0.0 <= without_floor(low, floor) <= without_floor(high, floor) <= 1.0
    assert without_floor(floor, floor) == 0.0
    assert without_floor(1.0, floor) == 1.0


def test_floor_of_full_marks_is_an_error() -> None:
    assert without_floor(0.525, 0.05) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="full marks"):
        without_floor(0.5, 1.0)


# --- a set that does what is asked of it -----------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_package")
def test_gym_problems_are_drawn_inside_the_sandbox() -> None:
    task = gym_task("sums", 20, 5, options={"terms": 2})
    assert [len(task.problems(split)) for split in SPLITS] == [20, 5, 5]
    check_splits(task)
    problem = task.problems("test")[0]
    assert json.loads(json.dumps(dict(problem.data))) == problem.data
    assert problem.data["gym"] == "sums"
    assert "/packages/" in json.dumps(problem.data["entry"])  # as the sandbox shows it
    assert problem.data["gym_config"]["terms"] == 2
    assert problem.data["entry"]["answer"] == problem.answer
    with pytest.raises(UserError, match=r"tasks\.t\.options\.size"):
        gym_task("sums", options={"size": 3})
    with pytest.raises(UserError, match="it has no difficulties"):
        gym_task("sums", difficulty=3.0)


@pytest.mark.usefixtures("fake_package")
def test_scores_have_no_floor_and_bad_answers_get_0_with_the_reason() -> None:
    task = gym_task("sums")
    problem = task.problems("test")[0]
    gold = int(problem.answer or "")
    empty, off_by_5, right, far, words = scored(task, problem, "", str(gold + 5), str(gold), "1", "seven")
    assert [empty.value, right.value, far.value, words.value] == [0.0, 1.0, 0.0, 0.0]
    assert off_by_5.value == pytest.approx((0.5 - 0.05) / 0.95)
    assert "0.5 by its scorer" in str(off_by_5.reason)
    assert "can't read it: TypeError: can't read 'seven'" in str(words.reason)


@pytest.mark.usefixtures("fake_package")
def test_scorer_that_raises_on_the_gold_is_an_error_and_its_set_refused() -> None:
    with pytest.raises(UserError, match=r"'broken' can't be used.*raises KeyError: 'state' on its own answer"):
        gym_task("broken").problems("train")
    data = {"gym": "broken", "gym_config": {"seed": 0, "size": 9}, "entry": {"metadata": {}}}
    [score] = scored(gym_task("sums"), Problem("1", "t", "?", "5", data), "4")
    assert score.status == "error"
    assert "KeyError" in str(score.reason)


@pytest.mark.usefixtures("fake_package")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"gold": 0.5}, "gives its own answer 0.5"),
        ({"gold": 2}, r"ValueError: the score 2.0 is not in \[0, 1\]"),
        ({"full_marks": ["nan"]}, None),
        ({"full_marks": ["0"]}, "gives '0' full marks"),
        ({"full_marks": [""]}, "gives '' full marks"),
        ({"full_marks": ["no answer"]}, "gives 'no answer' full marks"),
    ],
)
def test_set_whose_scorer_is_wrong_is_refused(options: dict[str, Any], why: str | None) -> None:
    task = gym_task("sums", options=options)
    if why is None:  # what isn't a finite number earns nothing, whatever the scorer says
        assert len(task.problems("train")) == 8
        return
    with pytest.raises(UserError, match=rf"tasks\.t\.source: 'sums' can't be used: .*{why}"):
        task.problems("train")


@pytest.mark.usefixtures("fake_package")
def test_validate_tries_nan_and_0() -> None:
    task = gym_task("sums")
    [problem, *_] = task.problems("test")
    spoilt = {**problem.data, "gym_config": {**problem.data["gym_config"], "full_marks": ["0"]}}
    [failure] = failures(task, [Problem("1", "t", problem.prompt, problem.answer, spoilt)])
    assert failure.reason == "the wrong answer '0' scores 1"


@pytest.mark.usefixtures("fake_package")
def test_problems_that_cannot_be_made_are_left_out_and_a_small_set_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        task = gym_task("sums", options={"dies": True})
        assert all(int(problem.answer or "") % 2 for problem in all_problems(task))  # those of even numbers
    assert "drawn problems left out, such as: RuntimeError: no such sum" in caplog.text
    few = gym_task("sums", 20, 1, options={"few": 12})
    with caplog.at_level(logging.WARNING):
        count = len(few.problems("train"))
    assert 0 < count <= 12
    assert f"train: {count} of 20 problems, no more turned up that differ" in caplog.text


# --- the cache -------------------------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.dictionaries(st.text(max_size=3), _plain, max_size=3))
def test_cached_table_is_the_made_one(tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_THINKER_HOME", str(folder))
        name, made = cached({"gym": "x"}, lambda: table)
        assert made == table == cached({"gym": "x"}, lambda: {"not": "called"})[1]
        keep(name, table, folder / "run")
        shutil.rmtree(folder / "reasoning-gym")
        with kept_in(folder / "run"):
            assert cached({"gym": "x"}, lambda: {"not": "called"})[1] == table


@pytest.mark.parametrize("damage", [lambda text: text[:-3], lambda text: "", lambda text: text.replace("1", "2", 1)])
def test_damaged_cache_is_made_again(own_home: Path, damage: Callable[[str], str]) -> None:
    cached({"gym": "x"}, lambda: {"answer": 111})
    [file] = own_home.rglob("problems.json")
    file.write_text(damage(file.read_text("utf-8")), "utf-8")
    assert cached({"gym": "x"}, lambda: {"answer": 222})[1] == {"answer": 222}
    assert cached({"gym": "x"}, lambda: {"answer": 333})[1] == {"answer": 222}


def test_cached_problems_equal_drawn_ones_and_depend_on_all_that_was_asked(own_home: Path) -> None:
    drawn = all_problems(gym_task("chain_sum"))
    times = {path: path.stat().st_mtime_ns for path in own_home.rglob("problems.json")}
    assert len(times) == 3
    assert all_problems(gym_task("chain_sum")) == drawn
    assert {path: path.stat().st_mtime_ns for path in own_home.rglob("problems.json")} == times
    for keys in ({"seed": 1}, {"options": {"min_terms": 3}}, {"difficulty": 1.0}, {"train": 9}):
        other = all_problems(gym_task("chain_sum", **keys))
        assert other != drawn
    shutil.rmtree(own_home)
    assert all_problems(gym_task("chain_sum")) == drawn


def test_larger_train_split_leaves_the_others_as_they_were() -> None:
    small, large = gym_task("chain_sum"), gym_task("chain_sum", 30)
    assert large.problems("train")[:8] == small.problems("train")
    assert large.problems("test") == small.problems("test")


def test_resumed_run_takes_the_problems_that_it_began_with(own_home: Path, tmp_path: Path, tiny_model: Path) -> None:
    table = {"source": "reasoning_gym:ransom_note", "train": 4, "validation": 2, "test": 2}
    recipe = parse_recipe({"model": {"name": str(tiny_model)}, "tasks": {"t": table}}, "test")
    setup = prepare(recipe)
    setup.keep_drawn(tmp_path / "run")
    files = sorted((tmp_path / "run" / "problems").iterdir())
    assert len(files) == 3
    shutil.rmtree(own_home)
    assert prepare(recipe, resumed=tmp_path / "run").pools == setup.pools
    assert not list(own_home.rglob("problems.json"))


# --- real sets -------------------------------------------------------------------------------------------------------

PRINT = """
import sys
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks.gym import GymTask
from omni_thinker.types import content_hash
for name in sys.argv[1:]:
    spec = TaskSpec(source="reasoning_gym:" + name, train=6, allow_evaluating_scorers=True)
    print(name, content_hash(repr(GymTask("t", spec).problems("train"))))
"""
UNSTEADY = (
    "codeio", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "knight_swap", "word_ladder",
    "list_functions",
)  # fmt: skip
"""Sets that follow the hash seed, or generators that the whole process shares."""


def test_problems_are_the_same_in_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    printed = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMNI_THINKER_HOME": str(tmp_path / seed)}
        command = [sys.executable, "-c", PRINT, *UNSTEADY]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout.splitlines())
    assert printed[0] == printed[1]
    assert [line.split()[0] for line in printed[0]] == list(UNSTEADY)


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "spell_backward"])
def test_reasoning_gym_sets_load_with_their_split_sizes(name: str) -> None:
    assert [len(gym_task(name).problems(split)) for split in SPLITS] == [8, 3, 3]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        *((name, {}) for name in ("arc_agi", "boxnet", "graph_color", "propositional_logic", "rubiks_cube", "acre")),
        *((name, {}) for name in ("complex_arithmetic", "coin_flip", "game_of_life_halting", "bitwise_arithmetic")),
        ("boxnet", {"options": {"min_box_num": 1, "max_box_num": 3}}),
        ("arc_agi", {"options": {"board_format_opts": {"alphabet": list("abcdefghij")}}}),
        ("word_ladder", {"options": {"min_word_length": 3, "max_word_length": 5}}),
        ("time_intervals", {"options": {"min_date": "2001-01-01", "max_date": "2002-01-01"}}),
        ("composite", {"options": {"datasets": [{"name": "acre"}, {"name": "rearc"}, {"name": "graph_color"}]}}),
    ],
)
def test_gold_answers_of_awkward_sets_score_1(name: str, keys: dict[str, Any]) -> None:
    task = gym_task(name, 4, 2, **keys)
    problems = all_problems(task)
    assert len(problems) == 8
    assert all(problem.answer is not None for problem in problems)
    assert failures(task, problems) == []


def test_scorers_that_give_marks_away_are_mended() -> None:
    task = gym_task("game_of_life_halting")
    [problem, *_] = task.problems("test")
    other = "False" if problem.answer == "True" else "True"
    scores = scored(task, problem, other, "anything", str(problem.answer).lower())
    assert [score.value for score in scores] == [0.0, 0.0, 1.0]
    task = gym_task("coin_flip")
    problem = next(problem for problem in task.problems("train") if len(problem.answer or "") > 6)
    scores = scored(task, problem, "0", str(problem.answer)[:4], str(problem.answer))
    assert [score.value for score in scores] == [0.0, 0.0, 1.0]
    task = gym_task("complex_arithmetic")
    scores = scored(task, task.problems("test")[0], "nan", "nan+nanj", "inf")
    assert [score.value for score in scores] == [0.0, 0.0, 0.0]


def test_options_reach_the_scorer() -> None:
    keys = {"task_types": ["date"], "min_date": "2001-01-01", "max_date": "2010-01-01"}
    near = gym_task("time_intervals", options={**keys, "max_date_difference_days": 10})
    far = gym_task("time_intervals", options={**keys, "max_date_difference_days": 1000})
    for task, most in ((near, 10), (far, 1000)):
        [problem, *_] = task.problems("test")
        [score] = scored(task, problem, f"{int((problem.answer or '').split()[0]) + 5} days")
        assert score.value == pytest.approx(1 - 5 / most)


def test_two_tasks_of_one_set_keep_their_options_apart() -> None:
    def drawn(task: GymTask) -> list[str]:
        return [problem.prompt for problem in task.problems("train")]

    keys: list[dict[str, Any]] = [{"options": {"difficulty": 6}}, {"options": {"difficulty": 9}}]
    together = [gym_task("codeio", **key) for key in keys]
    found = [drawn(task) for task in together]
    alone = []
    for seed, key in enumerate(keys):
        shutdown()
        os.environ["OMNI_THINKER_HOME"] += str(seed)
        alone.append(drawn(gym_task("codeio", **key)))
    assert found == alone
    assert found[0] != found[1]


def test_levels_of_a_curriculum_are_difficulties_and_pools() -> None:
    lengths = [len(gym_task("chain_sum", difficulty=level).problems("train")[0].prompt) for level in (0.0, 9.0)]
    assert lengths[0] < lengths[1]
    task = gym_task("chain_sum", 8, 4, pools=(0.0, 9.0))
    problems = all_problems(task)
    assert {problem.data["difficulty_pool"]: problem.data["gym_level"] for problem in problems} == {"0": 0, "9": 9}
    assert failures(task, problems) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"difficulty": 1.5}, r"tasks\.t\.difficulty: levels of reasoning-gym are whole numbers, got 1\.5"),
        ({"pools": (0.0, 0.5)}, r"tasks\.t\.pools: levels of reasoning-gym are whole numbers"),
        ({"difficulty": 7.0}, r"reasoning-gym refuses 'gcd': its difficulties are 0 to 3, got 7"),
        ({"difficulty": 1.0, "options": {"max_value": 9}}, r"its difficulty sets 'max_value' too; leave out one"),
    ],
)
def test_bad_difficulty_is_a_user_error(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        gym_task("gcd", **keys)


def test_composite_needs_permission_for_a_part_that_evaluates() -> None:
    options = {"datasets": [{"name": "gcd"}, {"name": "simple_integration", "weight": 2.0}]}
    with pytest.raises(UserError, match="parse_expr in simple_integration"):
        gym_task("composite", options=options)
    names = {p.data["entry"]["metadata"]["source_dataset"] for p in all_problems(
        gym_task("composite", 20, options=options, allow_evaluating_scorers=True))}  # fmt: skip
    assert names == {"gcd", "simple_integration"}


@pytest.mark.parametrize("name", ["arc_1d", "chain_sum", "tower_of_hanoi"])
def test_default_max_tokens_has_room_for_every_gold(name: str) -> None:
    task = gym_task(name)
    longest = max(len((problem.answer or "").encode()) for problem in all_problems(task))
    assert task.max_tokens == max(64, longest + 2)
    assert gym_task(name, max_tokens=7).max_tokens == 7


def test_prompts_longer_than_the_context_are_left_out_and_counted(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = {"source": "reasoning_gym:chain_sum", "train": 12, "validation": 4, "test": 4, "max_tokens": 8}
    parts = [
        {"name": "gcd"},
        {"name": "needle_haystack", "config": {"min_num_statements": 400, "max_num_statements": 420}},
    ]
    mixed = {**table, "source": "reasoning_gym:composite", "options": {"datasets": parts}}
    with caplog.at_level(logging.WARNING):
        setup = prepare(parse_recipe({"model": {"name": str(tiny_model)}, "tasks": {"t": mixed}}, "test"))
    assert all("haystack" not in str(problem.data["entry"]) for problem in setup.pools["train"]["t"])
    left = 12 - len(setup.pools["train"]["t"])
    assert 0 < left < 12
    assert re.search(r"tasks\.t: \d+ of 20 rows are left out: .*a prompt of \d+ tokens", caplog.text)
    table["max_tokens"] = 10_000_000
    with pytest.raises(UserError, match=r"tasks\.t\.max_tokens: .*20 of 20 rows are refused; none is left"):
        prepare(parse_recipe({"model": {"name": str(tiny_model)}, "tasks": {"t": table}}, "test"))


ROW = re.compile(r"^\| `(\w+)` \| (yes|no) \|", re.M)


@pytest.mark.slow
def test_sweep_of_all_sets_agrees_with_the_table(repo: Path) -> None:
    command = [sys.executable, str(repo / "scripts" / "gym_sweep.py")]
    found = dict(ROW.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert found == dict(ROW.findall((repo / "docs" / "tasks.md").read_text("utf-8")))
    assert list(found.values()).count("yes") >= 95
