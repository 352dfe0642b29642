"""Files that rows come in, and commands on rows some of which can't be used."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_thinker.errors import UserError
from omni_thinker.recipe import TaskSpec
from omni_thinker.tasks import tables
from omni_thinker.tasks.files import rows_of
from omni_thinker.tasks.registry import make_task
from omni_thinker.tasks.rows import RowTask
from omni_thinker.types import SPLITS, Problem

Rows = list[dict[str, Any]]
GSM8K: Rows = [{"question": f"What is {n} plus 2?", "answer": f"Add.\n#### {n + 2}"} for n in range(40)]


def load(*files: object, **keys: Any) -> RowTask:
    task = make_task("t", TaskSpec(source="jsonl", files=tuple(map(str, files)), **keys))
    assert isinstance(task, RowTask)
    return task


def everything(task: RowTask) -> list[Problem]:
    return [problem for split in SPLITS for problem in task.problems(split)]


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_list(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows, indent=1), "utf-8")
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra hf isn't installed")
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    parquet.write_table(table, path, row_group_size=7)
    return path


def save_to_disk(path: Path, rows: Rows) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra hf isn't installed")
    datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "rows.jsonl": write_lines,
    "rows.json": write_list,
    "lines.json": write_lines,
    "rows.csv": write_csv,
    "rows.tsv": write_csv,
    "rows.parquet": write_parquet,
    "folder": save_to_disk,
}


@pytest.mark.parametrize("name", WRITERS)
def test_file_of_any_kind_gives_the_same_problems(tmp_path: Path, name: str) -> None:
    task = load(WRITERS[name](tmp_path / name, GSM8K))
    assert (task.form.format.name, dict(task.reward.sum)) == ("gsm8k", {"math": 1.0})
    assert {p.prompt: p.answer for p in everything(task)} == {f"What is {n} plus 2?": str(n + 2) for n in range(40)}


def test_saved_splits_are_the_splits_of_the_task(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf isn't installed")
    parts = {"train": datasets.Dataset.from_list(GSM8K[:30]), "test": datasets.Dataset.from_list(GSM8K[30:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "both"))
    for spec in ({"source": "jsonl", "files": (str(tmp_path / "both"),)}, {"source": f"hf:{tmp_path / 'both'}"}):
        task = make_task("t", TaskSpec(**spec))
        assert {p.answer for p in task.problems("test")} == {str(n + 2) for n in range(30, 40)}


def test_lists_and_tables_of_parquet_are_read(tmp_path: Path) -> None:
    rows = [
        {"data_source": "gsm8k", "prompt": [{"role": "user", "content": f"{n}?"}],
         "reward_model": {"ground_truth": str(n), "style": "rule"}} for n in range(40)
    ]  # fmt: skip
    task = load(write_parquet(tmp_path / "rows.parquet", rows))
    assert task.form.format.name == "verl"
    assert {p.prompt: p.answer for p in everything(task)} == {f"{n}?": str(n) for n in range(40)}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=12)),
        min_size=1,
        max_size=9,
    )
)
def test_cells_of_csv_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str]]) -> None:
    """Figures such as 007 stay texts; an empty cell is a missing value."""
    rows = [{"a": cell, "b": "007"} for (cell,) in cells]
    path = write_csv(tmp_path_factory.getbasetemp() / "cells.csv", rows)
    read = [dict(row.values) for row in rows_of(path, "k")]
    assert read == [{key: value for key, value in row.items() if value} for row in rows]


BAD: list[tuple[str, bytes, str]] = [
    ("a.csv", b"question,question\n1,2\n", "its first line must name every column, each differently"),
    ("b.csv", b"", "its first line must name every column"),
    ("c.csv", b"question,answer\nq,a,b\n", r"c\.csv:2: has 3 cells for 2 columns.*1 of 1 rows"),
    ("d.csv", b"question,answer\nq,caf\xe9\n", "not UTF-8"),
    ("e.csv", b'question,answer\n1,2\n"q"x,a\n', r"e\.csv:3: tasks\.t\.files: not valid CSV"),
    ("f.parquet", b"PAR1 and no more", "not a Parquet file that can be read|needs pyarrow"),
    ("g.parquet", b"", "not a Parquet file that can be read|needs pyarrow"),
    ("h.json", b'[{"question": 1}', r"h\.json: tasks\.t\.files: not valid JSON"),
    ("i.json", b'["q"]', r"i\.json\[0\]: must be an object, got str"),
    ("j.json", b'{\n"rows": []\n}', r"j\.json:1: not valid JSON"),
    ("k.csv", b"question,answer\n", r"no rows in .*k\.csv"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[case[0] for case in BAD])
def test_damaged_table_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.TSV"])
def test_names_of_columns_are_read_without_space_and_endings_without_case(tmp_path: Path, name: str) -> None:
    sign = "," if name.endswith("csv") else "\t"
    lines = [f"prompt{sign} answer ", *(f"{n}?{sign}{n}" for n in range(40))]
    (tmp_path / name).write_text("\n".join(lines), "utf-8")
    assert {p.prompt: p.answer for p in everything(load(tmp_path / name))} == {f"{n}?": str(n) for n in range(40)}


@pytest.mark.parametrize("name", ["pipe", "pipe.csv", "pipe.json", "pipe.parquet"])
def test_pipe_is_refused_before_its_first_bytes_are_taken(tmp_path: Path, name: str) -> None:
    """What was looked at once can't be read again, so a part of the rows would be missing."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: tasks\.t\.files: is a pipe or a device"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "none.json", "a\0b.csv", "x" * 300 + ".json"])
def test_absent_table_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="k: "):
        list(rows_of(tmp_path / name, "k"))


def test_tables_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    for name in ("rows.csv", "rows.parquet"):
        with pytest.raises(UserError, match="more than 3 rows; split the file"):
            load(WRITERS[name](tmp_path / name, GSM8K))
    monkeypatch.setattr(tables, "_LARGEST_LIST", 10)
    with pytest.raises(UserError, match="better one object a line"):
        load(write_list(tmp_path / "rows.json", GSM8K))


def test_missing_pyarrow_and_a_file_after_hf_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(tmp_path / "rows.jsonl", GSM8K)
    with pytest.raises(UserError, match=r"tasks\.t\.source: .*is a file; use source = 'jsonl' and files = \["):
        make_task("t", TaskSpec(source=f"hf:{file}"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="needs pyarrow; run: pip install pyarrow"):
        load(tmp_path / "rows.parquet")


RECIPE = """
[model]
name = "tiny"
policy = "python:unigram_policy:UnigramPolicy"
[tasks.sums]
source = "jsonl"
files = ["rows.jsonl"]
max_tokens = 8
[warmup]
steps = 2
[rl]
group_size = 2
problems_per_step = 2
[evaluation]
test_problems = 8
validation_problems = 8
"""


def test_file_with_a_bad_row_trains_with_skip_refused_and_says_which(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = [{"question": f"What is {n} plus 2?", "answer": f"#### {n + 2}"} for n in range(200)]
    rows[20] = {"question": "Which flower is it?", "answer": "#### a red rose"}  # read, but no number
    rows[30] = {"question": "Which one?", "answer": "Nobody knows."}  # can't be read
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "r.toml").write_text(RECIPE, "utf-8")
    code, _, err = run("train", "r.toml", "--steps", 1, "--out", "no")
    assert code == 2
    assert "rows.jsonl:31: answer: has no line" in err
    assert "1 of 200 rows is refused" in err
    assert not (tmp_path / "no").exists()
    code, out, err = run("train", "r.toml", "--steps", 1, "--out", "run", "--skip-refused", "--json")
    assert code == 0, err
    notes = " ".join(json.loads(out.splitlines()[-1])["notes"])
    for words in (err, notes):
        assert "2 of 200 rows are left out" in words or "1 of 200 rows is left out: rows.jsonl:31: answer" in words
        assert "made of words" in words
        assert "rows.jsonl:21: " in words
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["arms"]
    code, out, err = run("tasks", "validate", "r.toml", "--skip-refused", "--json")
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["failures"] == {"sums": []}
    assert (told["refused"]["sums"]["rows"], told["refused"]["sums"]["refused"]) == (200, 2)
    code, out, err = run("study", "r.toml", "--dry-run", "--skip-refused", "--set", 'study.arms=["start","joint"]')
    assert code == 0, err
    assert "refused: tasks.sums: 2 of 200 rows are left out" in out


def test_all_rows_that_a_reward_refuses_are_counted(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    rows: Rows = [{"prompt": f"{n} + 2?", "answer": str(n + 2), "split": "train"} for n in range(40)]
    rows += [{"prompt": f"name {n}", "answer": "a red rose", "split": "train"} for n in range(5)]
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "r.toml").write_text(RECIPE.replace("max_tokens", "reward = { sum = { math = 1.0 } }\nmax_tokens"))
    code, _, err = run("tasks", "validate", "r.toml")
    assert code == 2
    assert re.match(r"omni-thinker: rows\.jsonl:4\d: tasks\.sums\.reward: can't score (train|test) row: ", err)
    assert len({*re.findall(r"rows\.jsonl:(4\d)", err)}) == 4, "the first four by their lines"
    assert "(5 of 45 rows are refused; skip_refused = true (--skip-refused) leaves them out)" in err


def test_score_leaves_out_and_counts_rows_that_cannot_be_scored(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows: Rows = [{"id": n, "response": str(n), "answer": "2" if n else "a red rose"} for n in range(3)]
    write_lines(tmp_path / "in.jsonl", rows)
    asked = ("score", "--reward", "math", "--in", "in.jsonl", "--out", "out.jsonl")
    code, _, err = run(*asked)
    assert code == 2
    assert "in.jsonl: line 1 can't be scored: the answer 'a red rose' is made of words" in err
    assert "(1 of 3 rows is refused" in err
    code, out, err = run(*asked, "--skip-refused", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["refused"] == 1
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["id"], row["status"], row["value"]) for row in scored] == [
        ("0", "refused", None), ("1", "value", 0.0), ("2", "value", 1.0)
    ]  # fmt: skip


def test_score_reads_numbers_as_the_rows_of_a_task(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "response": "5", "answer": 5.0}\n', "utf-8")
    asked = ("score", "--reward", "short_answer", "--in", "in.jsonl", "--json", "--out")
    code, out, _ = run(*asked, "out.jsonl")
    assert (code, json.loads(out.splitlines()[-1])["mean"]) == (0, 1.0)
    (tmp_path / "in.jsonl").write_text('{"id": 1, "response": "nan", "answer": NaN}\n', "utf-8")
    code, _, err = run(*asked, "other.jsonl")
    assert code == 2
    assert "in.jsonl: line 1 is not JSON: NaN is no JSON number" in err


def test_published_gsm8k_and_mbpp_in_their_own_form_give_the_known_golds(shared_data: Path, tmp_path: Path) -> None:
    def rows(name: str, count: int) -> Rows:
        with gzip.open(shared_data / name, "rt", encoding="utf-8") as stream:
            return [json.loads(line) for line, _ in zip(stream, range(count), strict=False)]

    known = rows("math/gsm8k_train.jsonl.gz", 500)
    own = [{"question": r["prompt"], "answer": f"{r['meta']['rationale']}\n#### {r['answer']}"} for r in known]
    task = load(write_lines(tmp_path / "gsm8k.jsonl", own))
    assert task.form.format.name == "gsm8k"
    assert {p.prompt: p.answer for p in everything(task)} == {row["prompt"]: row["answer"] for row in known}
    known = rows("coding/mbpp.jsonl.gz", 300)
    own = [
        {"task_id": r["id"], "text": r["prompt"], "code": r["reference"], "test_list": r["tests"],
         "test_setup_code": r["meta"]["setup"]} for r in known
    ]  # fmt: skip
    task = load(write_lines(tmp_path / "mbpp.jsonl", own), template="{prompt}")
    assert dict(task.reward.sum) == {"unit_tests": 1.0}
    assert {p.id: p.answer for p in everything(task)} == {row["id"]: row["reference"] for row in known}
    known = rows("qa/mmlu_redux.jsonl.gz", 400)
    own = [{"question": r["prompt"], "choices": r["choices"], "answer": "ABCD".index(r["answer"])} for r in known]
    task = load(write_lines(tmp_path / "mmlu.jsonl", own), template="{prompt}")
    golds = {r["prompt"].strip(): r["choices"]["ABCD".index(r["answer"])] for r in known}
    wrong = [p for p in everything(task) if p.answer != golds[p.prompt.strip()]]
    assert len(wrong) <= 400 - len(golds), "only questions that occur twice may have another gold"
