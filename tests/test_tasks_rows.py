"""Adapters: rows of files and packages as tasks, and errors for bad ones."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.isolation import shutdown
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks import jsonl
from omni_thinker.tasks.base import Task
from omni_thinker.tasks.reader import fill
from omni_thinker.tasks.registry import check_splits, make_task, split_overlap
from omni_thinker.types import SPLITS

DATA = Path(os.environ.get("OMNI_THINKER_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder {DATA} (set OMNI_THINKER_DATA)")


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(*files: str, **keys: Any) -> Task:
    return make_task("t", TaskSpec(source="jsonl", files=files, **keys))


def sizes(task: Task) -> list[int]:
    return [len(task.problems(split)) for split in SPLITS]


REAL: list[tuple[str, dict[str, Any], list[int], str, set[str]]] = [
    ("math/svamp", {}, [588, 112, 200], "math", set()),
    ("math/gsm8k_train", {"train": 50, "validation": 20, "test": 20}, [50, 20, 20], "math", set()),
    ("coding/mbpp", {"fields": {"setup": "meta.setup"}, "template": "{prompt}\n{first_test}"}, [374, 90, 401],
     "unit_tests", {"tests", "reference"}),
    ("qa/commonsense_science_mix", {"fields": {"context": "meta.context"},
     "template": "{context}\n{prompt}\n{options}"}, [422, 80, 143], "short_answer", set()),
    ("writing/self_instruct_human", {}, [151, 24, 252], "preference", {"reference"}),
]  # fmt: skip


@needs_data
@pytest.mark.parametrize(("file", "keys", "expected", "part", "data"), REAL, ids=[row[0] for row in REAL])
def test_published_data_loads_with_its_sizes_and_rewards(
    file: str, keys: dict[str, Any], expected: list[int], part: str, data: set[str]
) -> None:
    task = load(str(DATA / f"{file}.jsonl.gz"), **keys)
    assert sizes(task) == expected
    assert list(task.reward.sum) == [part]
    assert task.verifiable == (part != "preference")
    check_splits(task)
    for problem in (p for split in SPLITS for p in task.problems(split)):
        assert problem.answer
        assert data <= set(problem.data)
        if "choices" in problem.data:
            assert problem.answer in problem.data["choices"]


@needs_data
def test_overlap_of_mbpp_splits_is_refused_and_can_be_dropped() -> None:
    file = str(DATA / "coding/mbpp.jsonl.gz")
    task = load(file)
    assert len(split_overlap(task)) == 3
    with pytest.raises(UserError, match=r"tasks\.t: 3 prompt.*test also in train.*drop_overlap"):
        check_splits(task)
    dropped = load(file, options={"drop_overlap": True})
    check_splits(dropped)
    assert sizes(dropped) == [371, 90, 401]


def test_rows_become_problems_by_fields_and_template(tmp_path: Path) -> None:
    rows = [
        {"q": f"Which {i}?", "a": "b", "opts": ["red", "green"], "meta": {"ctx": "It is {options}."}} for i in range(40)
    ]
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    fields = {"prompt": "q", "answer": "a", "choices": "opts", "context": "meta.ctx"}
    task = load(str(file), fields=fields, template="{context}\n{prompt} {options} {{x}} {first_test}", test=3)
    problem = task.problems("train")[0]
    assert problem.prompt.startswith("It is {options}.\nWhich ")
    assert problem.prompt.endswith("? Options: red, green {{x}} ")
    assert problem.answer == "green"
    assert problem.data["choices"] == ["red", "green"]
    assert len(task.problems("test")) == 3
    again = load(str(file), fields=fields, template="{context}\n{prompt} {options} {{x}} {first_test}", test=3)
    assert [p.id for p in again.problems("train")] == [p.id for p in task.problems("train")]


def test_splits_are_read_from_rows_or_carved_and_bad_names_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "answer": "1", "split": ("tr", "te", "other")[i % 3]} for i in range(90)]
    file = write(tmp_path / "rows.jsonl", rows)
    task = load(file, splits={"train": ("tr",), "test": ("te",)})
    train, validation, test = sizes(task)
    assert (train + validation, test) == (30, 30)
    assert validation > 0
    assert sum(sizes(load(file, splits={"test": ("te",)}))) == 90
    with pytest.raises(UserError, match=r"splits\.test: no row of split 'tset' \(the rows have 'other', 'te', 'tr'\)"):
        load(file, splits={"test": ("tset",)})
    with pytest.raises(UserError, match=r"tasks\.t\.splits: no row of split 'train'"):
        load(file)
    with pytest.raises(UserError, match="'te' is named for"):
        load(file, splits={"train": ("te",), "test": ("te",)})
    lone = write(tmp_path / "lone.jsonl", [{"prompt": "p", "answer": "1"}])
    with pytest.raises(UserError, match=r"tasks\.t\.splits\."):
        sizes(load(lone))


GOOD = b'{"prompt": "p", "answer": "a"}\n'
BAD: list[tuple[str, bytes, str]] = [
    ("no json", b"{prompt: 1}\n", "not valid JSON"),
    ("cut short", b'{"prompt": "p"\n', "not valid JSON"),
    ("nan", b'{"prompt": "p", "answer": NaN}\n', "NaN is no JSON number"),
    ("infinite", b'{"prompt": "p", "answer": 1e999}\n', "answer: must be text, got the number inf"),
    ("nested", b"[" * 100_000 + b"\n", "not valid JSON"),
    ("a long number", b'{"prompt": "p", "answer": ' + b"9" * 5000 + b"}\n", "not valid JSON"),
    ("no object", b"[1, 2]\n", "must be an object, got list"),
    ("latin-1", b'{"prompt": "caf\xe9"}\n', "not UTF-8"),
    ("no prompt", b'{"question": "p"}\n', "prompt: is missing"),
    ("null prompt", b'{"prompt": null}\n', "prompt: is missing"),
    ("empty prompt", b'{"prompt": "  "}\n', "prompt: is empty"),
    ("prompt a list", b'{"prompt": ["p"]}\n', "prompt: must be text, got list"),
    ("surrogate", b'{"prompt": "\\ud800"}\n', "prompt: has half of a surrogate pair"),
    ("empty answer", b'{"prompt": "p", "answer": ""}\n', "answer: is empty"),
    ("answer true", b'{"prompt": "p", "answer": true}\n', "answer: must be text, got bool"),
    (
        "letter too far",
        b'{"prompt": "p", "answer": "C", "choices": ["x", "y"]}\n',
        "answer: 'C' is none of the choices",
    ),
    ("one choice", b'{"prompt": "p", "answer": "A", "choices": ["x"]}\n', "choices: needs two texts"),
    ("choices text", b'{"prompt": "p", "answer": "A", "choices": "x, y"}\n', "choices: must be a list"),
    ("empty choice", b'{"prompt": "p", "answer": "A", "choices": ["x", ""]}\n', "choices: needs two texts"),
    ("no tests", b'{"prompt": "p", "tests": []}\n', "tests: must be a list of texts"),
    ("tests numbers", b'{"prompt": "p", "tests": [{}]}\n', "tests: must be text, got dict"),
    ("constraints", b'{"prompt": "p", "constraints": "short"}\n', "constraints: must be a table, got str"),
    ("same id", b'{"prompt": "p", "id": 7}\n{"prompt": "r", "id": 7}\n', "id: id '7' is already used by"),
    ("long line", b'{"prompt": "' + b"x" * (1 << 20) + b'"}\n', "line longer than 1,048,576 bytes"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_rows_name_file_line_and_field(tmp_path: Path, name: str, row: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n" + row)
    with pytest.raises(UserError) as caught:
        load(str(file))
    line = 2 + row.count(b"\n")
    assert str(caught.value).startswith(f"{file}:{line}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_damaged_or_too_large_files_are_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: tasks\.t\.files: no such file"):
        load(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"tasks\.t\.files: can't be read"):
        load(str(tmp_path))
    with pytest.raises(UserError, match=r"tasks\.t\.files: source 'jsonl' needs"):
        load()
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(UserError, match=r"tasks\.t\.files: no rows"):
        load(str(tmp_path / "empty.jsonl"))
    for name, content in (("cut.jsonl.gz", gzip.compress(GOOD * 99)[:-12]), ("plain.jsonl.gz", GOOD)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged gzip file"):
            load(str(tmp_path / name))
    (tmp_path / "bomb.jsonl").write_bytes(gzip.compress(b" " * (3 << 20)))
    with pytest.raises(UserError, match=r"bomb\.jsonl:1: line longer"):
        load(str(tmp_path / "bomb.jsonl"))
    monkeypatch.setattr(jsonl, "MAX_FILE_BYTES", 100)
    (tmp_path / "big.jsonl").write_bytes(GOOD * 9)
    with pytest.raises(UserError, match=r"big\.jsonl:4: more than 100 bytes in all"):
        load(str(tmp_path / "big.jsonl"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fields": {"promt": "q"}}, r"tasks\.t\.fields\.promt: unknown key; did you mean 'prompt'"),
        ({"fields": {"context": "meta.nothing"}}, r"tasks\.t\.fields\.context: no row has 'meta\.nothing'"),
        ({"splits": {"dev": ("dev",)}}, r"tasks\.t\.splits\.dev: unknown key"),
        ({"template": "{question}"}, r"tasks\.t\.template: must contain \{prompt\}"),
        (
            {"template": "{prompt} {option}"},
            r"tasks\.t\.template: unknown placeholder \{option\}; did you mean 'options'",
        ),
        ({"options": {"drop_overlaps": True}}, r"tasks\.t\.options\.drop_overlaps: unknown option; did you mean"),
        ({"options": {"drop_overlap": 1}}, r"must be true or false"),
        ({"options": {"answer_index_base": 2}}, r"must be 0 or 1"),
        ({"options": {"distractors": 3}}, r"tasks\.t\.options\.distractors: takes \{from"),
        ({"options": {"distractors": {"from": "rows"}}}, r"tasks\.t\.options\.distractors: takes \{from"),
        ({"options": {"distractors": {"from": "rows", "count": 0}}}, r"from 1 to 25"),
    ],
)
def test_bad_task_keys_are_refused_by_key(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": f"p{i}", "answer": "1"} for i in range(9)])
    with pytest.raises(UserError, match=message):
        load(file, **keys)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=5))
def test_template_is_filled_in_one_pass(prompt: str, context: str, between: str) -> None:
    between = between.replace("{", "").replace("}", "").replace("\n", "")
    slots = {"prompt": prompt, "context": context, "options": "O", "first_test": ""}
    filled = fill("{prompt}" + between + "{context}\nTest: {first_test}", slots)
    assert filled == (prompt + between + context if prompt or context else "")


KEYS = st.sampled_from(["prompt", "answer", "choices", "tests", "text", "label", "id"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6))


@settings(max_examples=80, deadline=None)
@given(JSON)
def test_any_json_loads_or_is_a_user_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(value if isinstance(value, dict) else {"prompt": "p", "answer": "A", "choices": value}))
    with contextlib.suppress(UserError):
        load(str(path))


def test_answer_by_letter_label_index_or_text_names_a_choice(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1", "answer": "(b)", "choices": ["x", "y"]},
        {"prompt": "2", "answer": "Y", "choices": ["x", "y"]},
        {"prompt": "3", "answer": "2", "choices": {"text": ["x", "y"], "label": ["1", "2"]}},
        {"prompt": "4", "answer": "B", "choices": ["x", "y"]},
        {"prompt": "5", "answer": "b", "choices": ["b", "a"]},
    ]
    task = load(write(tmp_path / "rows.jsonl", rows), splits={})
    found = {p.prompt: p.answer for split in SPLITS for p in _problems(task, split)}
    assert found == {"1": "y", "2": "y", "3": "y", "4": "y", "5": "b"}
    rows = [{"prompt": f"{i}", "answer": i % 2, "choices": ["x", "y"]} for i in range(20)]
    task = load(write(tmp_path / "places.jsonl", rows), options={"answer_index_base": 0})
    assert all(p.answer == "xy"[int(p.prompt) % 2] for split in SPLITS for p in _problems(task, split))


def test_distractors_are_drawn_from_answers_of_other_rows(tmp_path: Path) -> None:
    colours = [{"prompt": f"Colour {n}?", "answer": name} for n, name in enumerate(("red", "blue", "pink", "grey"))]
    rows: list[dict[str, Any]] = [*colours * 10, {"prompt": "Which?", "choices": ["cat", "dog"], "answer": "A"}]
    rows = [{**row, "id": str(n), "split": "train"} for n, row in enumerate(rows)]
    keys = {"template": "{prompt} {options}", "splits": {"train": ("train",)}}
    file = write(tmp_path / "rows.jsonl", rows)
    options = {"distractors": {"from": "rows", "count": 2}}
    drawn, again = (load(file, options=options, **keys) for _ in range(2))
    problems = {problem.id: problem for problem in _problems(drawn, "train")}
    assert list(problems.values()) == list(_problems(again, "train"))
    for problem in problems.values():
        choices = problem.data["choices"]
        assert problem.answer in choices
        assert ", ".join(choices) in problem.prompt
        if "Colour" in problem.prompt:
            assert len(set(choices)) == 3
            assert set(choices) <= {"red", "blue", "pink", "grey"}
        else:
            assert choices == ["cat", "dog"]
    assert drawn.reward.sum == {"short_answer": 1.0}


def _problems(task: Task, split: Any) -> Any:
    try:
        return task.problems(split)
    except UserError:
        return ()


def test_rows_of_the_test_split_that_overlap_train_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "answer": "1", "split": "train"} for i in range(30)]
    rows.append({"prompt": "what is  7?", "answer": "1", "split": "test"})
    task = load(write(tmp_path / "rows.jsonl", rows))
    with pytest.raises(UserError, match=r"tasks\.t: 1 prompt\(s\) of test also in .*'what is  ?7\?'"):
        check_splits(task)


def test_unknown_task_source_lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"tasks\.t\.source: unknown source 'builtin:maths'; did you mean 'builtin:math'"
    ):
        make_task("t", TaskSpec(source="builtin:maths"))
    with pytest.raises(UserError, match=r"known: builtin:math, .*python:MODULE:CLASS"):
        make_task("t", TaskSpec(source="csv"))


def test_missing_extra_is_a_user_error_that_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("datasets", "reasoning_gym"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="pip install datasets"):
        make_task("t", TaskSpec(source="hf:some/set"))
    with pytest.raises(UserError, match="pip install reasoning-gym"):
        make_task("t", TaskSpec(source="reasoning_gym:chain_sum"))


def test_hugging_face_rows_load_with_options_and_bad_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(place: str, **options: Any) -> Any:
        calls.append((place, options))
        return {
            "train": [{"question": f"q{i}", "answer": "1"} for i in range(30)],
            "test": [{"question": "q", "answer": "2"}],
        }

    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    spec = TaskSpec(source="hf:some/set", fields={"prompt": "question"}, options={"name": "main", "drop_overlap": True})
    task = make_task("t", spec)
    assert calls == [("some/set", {"name": "main"})]
    assert sizes(task)[2] == 1
    assert sizes(make_task("t", TaskSpec(source="hf:some/set"))) == [*sizes(task)[:2], 1], "recognised without fields"
    with pytest.raises(UserError, match=r"some/set\[train\]:0: prompt: is missing.*31 of 31 rows are refused"):
        make_task("t", TaskSpec(source="hf:some/set", format="plain"))
    with pytest.raises(UserError, match=r"tasks\.t\.options\.nmae: unknown option"):
        make_task("t", TaskSpec(source="hf:some/set", options={"nmae": "main"}))


def test_gym_problems_are_drawn_inside_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "reasoning_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "class Sums:\n"
        "    def __getitem__(self, index):\n"
        "        told = {'when': object, 'index': index, 'home': __file__}\n"
        "        return {'question': f'{index} + 1?', 'answer': str(index + 1), 'metadata': told}\n"
        "    def score_answer(self, answer, entry):\n"
        "        return float(answer == entry['answer'])\n"
        "def create_dataset(name, **config):\n"
        "    return Sums()\n"
    )
    shutdown()
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    try:
        _check_gym_entries()
    finally:
        shutdown()


def _check_gym_entries() -> None:
    spec = TaskSpec(source="reasoning_gym:sums", options={"terms": 2}, train=20, validation=5, test=5)
    task = make_task("t", spec)
    assert sizes(task) == [20, 5, 5]
    check_splits(task)
    problem = task.problems("test")[0]
    assert json.loads(json.dumps(dict(problem.data))) == problem.data
    assert problem.data["gym"] == "sums"
    assert problem.data["entry"]["metadata"]["home"].startswith("/packages/")  # as the sandbox shows it
    assert problem.data["gym_config"]["terms"] == 2
    assert problem.data["entry"]["answer"] == problem.answer
    with pytest.raises(UserError, match=r"tasks\.t\.options\.size"):
        make_task("t", spec.model_copy(update={"options": {"size": 3}}))
    with pytest.raises(UserError, match=r"tasks\.t\.difficulty"):
        make_task("t", spec.model_copy(update={"difficulty": 3.0}))


@pytest.mark.parametrize("name", ["chain_sum", "letter_counting", "spell_backward"])
def test_reasoning_gym_sets_load_with_their_split_sizes(name: str) -> None:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym isn't installed")
    task = make_task("t", TaskSpec(source=f"reasoning_gym:{name}", train=8, validation=3, test=3))
    assert sizes(task) == [8, 3, 3]


def test_python_task_is_loaded_and_unusable_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_tasks.py").write_text(
        "from omni_thinker.tasks.builtin.math import MathTask\n"
        "class Mine(MathTask):\n    default_difficulty = 0.0\n"
        "class Half:\n    def __init__(self, name, spec): self.name = name\n"
        "thing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert sizes(make_task("t", TaskSpec(source="python:my_own_tasks:Mine", test=9)))[2] == 9
    for place, message in (
        ("my_own_tasks:Half", "Half isn't a Task: it lacks max_tokens"),
        ("my_own_tasks:thing", "has no class 'thing'"),
        ("no_such_module_here:X", "can't import 'no_such_module_here'"),
        ("my_own_tasks", "must be python:MODULE:CLASS"),
    ):
        with pytest.raises(UserError, match=message):
            make_task("t", TaskSpec(source=f"python:{place}"))


def test_inputs_outputs_and_defaults_reach_the_reward(tmp_path: Path) -> None:
    tables = [{"input": "2\n", "output": "4\n", "type": "stdin"}]
    rows = [{"prompt": f"p{n}", "inputs": ["1"], "outputs": ["1"], "timeout": 9} for n in range(20)]
    rows += [{"prompt": f"q{n}", "tests": tables} for n in range(20)]
    defaults = {"timeout": 5, "packages": ["numpy"], "float_tolerance": 1e-6}
    file = write(tmp_path / "rows.jsonl", rows)
    task = load(file, template="{prompt}\n{first_test}", options={"defaults": defaults})
    assert set(task.reward.sum) == {"unit_tests"}
    of = {problem.prompt[0]: problem for problem in task.problems("train")}
    assert of["p"].data == {"inputs": ["1"], "outputs": ["1"], **defaults, "timeout": 9}
    assert of["q"].data == {"tests": [{"input": "2\n", "output": "4\n"}], **defaults}
    assert of["q"].prompt.endswith("\nInput:\n2\n\nOutput:\n4\n")
    with pytest.raises(UserError, match=r"tasks\.t\.options\.defaults\.timout: unknown key; did you mean 'timeout'"):
        load(file, options={"defaults": {"timout": 5}})
    with pytest.raises(UserError, match=r"options\.defaults: must be a table"):
        load(file, options={"defaults": 5})
