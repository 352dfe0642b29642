"""Malformed recipes, rows and matrices: one clear line, exit code 2, nothing run, nothing written elsewhere."""

from __future__ import annotations

import gzip
import json
import resource
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from corpus import GOOD, GOOD_ROWS, MATRICES, RECIPES, ROWS, TASK, ZIPPED, matrix
from omni_thinker.errors import UserError
from omni_thinker.recipe import load_recipe, parse_recipe
from omni_thinker.tasks.jsonl import read_rows
from omni_thinker.transfer.matrix import load_matrix

Refused = Callable[..., str]


@pytest.mark.timeout(30)  # one that were accepted would train
@pytest.mark.parametrize("name", RECIPES)
def test_malformed_recipe_exits_2_with_one_line_that_names_the_file(
    refused: Refused, tmp_path: Path, name: str
) -> None:
    (tmp_path / "here" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD_ROWS), "utf-8")
    path = tmp_path / "bad.toml"
    path.write_bytes(RECIPES[name])
    line = refused("study", path, "--out", "out")
    assert "bad.toml" in line or ": tasks.sums.files: " in line


@pytest.mark.parametrize("name", [*ROWS, *(f"gz: {name}" for name in ZIPPED)])
def test_malformed_rows_exit_2_with_one_line_that_names_the_file(refused: Refused, tmp_path: Path, name: str) -> None:
    zipped = name.removeprefix("gz: ") if name.startswith("gz: ") else None
    file = tmp_path / ("rows.jsonl" if zipped is None else "rows.jsonl.gz")
    content = ROWS[name] if zipped is None else ZIPPED[zipped]
    file.write_bytes(GOOD + content if zipped is None and content.strip() else content)
    recipe = tmp_path / "r.toml"
    recipe.write_text(TASK.replace("rows.jsonl", str(file)), "utf-8")
    assert file.name in refused("tasks", "show", f"{recipe}:sums") or not content.strip()


def test_compressed_bomb_of_blank_lines_is_refused_without_using_memory(tmp_path: Path) -> None:
    """A bomb of many short lines is read line by line and soon refused."""
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=1) as stream:
        block = b"\n" * (1 << 20)
        for _ in range(256):
            stream.write(block)
        stream.write(b"{")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="blank lines"):
        list(read_rows(file, "files"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # kB


@pytest.mark.parametrize("name", MATRICES)
def test_malformed_matrix_exits_2_with_one_line_that_names_the_file(
    refused: Refused, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "transfer.json"
    path.write_bytes(MATRICES[name])
    assert "transfer.json" in refused("plan", "--matrix", path)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FREE = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _loads(load: Callable[[Path], object], path: Path) -> None:
    try:
        load(path)
    except UserError as exc:
        said = str(exc)
    else:
        return
    assert said.startswith(str(path))
    assert "\n" not in said


@_FREE
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@example(content=f"{TASK}train = 0x{'f' * 50_000}".encode())
def test_any_bytes_as_recipe_matrix_or_rows_load_or_are_user_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    _loads(load_recipe, path)
    _loads(load_matrix, path)
    _loads(lambda path: list(read_rows(path, "files")), path)


@_FREE
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_recipe_with_a_flipped_bit_loads_or_is_a_user_error(tmp_path: Path, repo: Path, place: int, bit: int) -> None:
    content = bytearray((repo / "recipes" / "tiny.toml").read_bytes())
    content[place % len(content)] ^= 1 << bit
    path = tmp_path / "any"
    path.write_bytes(content)
    _loads(load_recipe, path)


@_FREE
@given(data=st.data())
def test_recipe_with_any_value_at_any_key_parses_or_is_a_user_error(repo: Path, data: st.DataObject) -> None:
    table = tomllib.loads((repo / "recipes" / "tiny.toml").read_text("utf-8"))
    inner = table
    while True:
        key = data.draw(st.sampled_from(sorted(inner)) | st.text(max_size=6))
        if isinstance(inner.get(key), dict) and data.draw(st.booleans()):
            inner = inner[key]
            continue
        inner[key] = data.draw(_VALUES)
        break
    _loads(lambda path: parse_recipe(table, path), Path("r.toml"))


@_FREE
@given(data=st.data())
def test_matrix_with_any_value_anywhere_loads_or_is_a_user_error(tmp_path: Path, data: st.DataObject) -> None:
    table: Any = json.loads(matrix())
    inner = table
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if isinstance(inner[key], dict) and data.draw(st.booleans()):
            inner = inner[key]
            continue
        inner[key] = data.draw(_VALUES)
        break
    path = tmp_path / "any"
    path.write_text(json.dumps(table), "utf-8")
    _loads(load_matrix, path)
