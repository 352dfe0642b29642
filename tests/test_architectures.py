"""Tiny models of many architectures: sampled and trained as the model itself computes, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import architecture_sweep
from architecture_sweep import BEGIN, BOUND, END, check, sweep, table, write_table, wrong
from tiny_models import families

PACKED = [
    "llama", "gpt2", "qwen2_moe", "granite", "olmo2", "phi", "phimoe", "mixtral", "deepseek_v3", "gpt_neox",
    "starcoder2", "stablelm", "glm4", "apertus", "smollm3", "nanochat", "biogpt", "opt", "bert", "olmoe",
]  # fmt: skip
"""Whose layers obey a free mask."""
BY_ROWS = [
    "gemma2", "gemma3_text", "gemma4_text", "gemma3n_text", "gpt_oss", "llama4_text", "mistral", "cohere2", "bloom",
    "mpt", "falcon_mamba", "lfm2", "qwen3_next", "roberta", "rwkv", "olmo3", "exaone4",
]  # fmt: skip
"""With windows, chunks, states or positions that a free mask can't say."""
REFUSED = ["cpmant"]
SPARSE = ["deepseek_v32", "glm_moe_dsa"]
"""Whose own mask of the chosen keys must not be lost."""


@pytest.mark.parametrize("family", [*PACKED, *BY_ROWS, *REFUSED, *SPARSE])
def test_architecture_computes_its_own_forward_pass(family: str) -> None:
    """With weights as sharp as a trained model's and checkpointing on, beyond windows of 8."""
    if family not in families():
        pytest.skip("this transformers doesn't know it")
    row = check(family, spread=True, checkpointed=True)
    assert not wrong(row), row
    assert "unbuilt" not in row, row
    assert ("refused" in row) == (family in REFUSED), row
    if family in PACKED:
        assert row["decoder"] in ("fused", "masked"), row
    elif family in SPARSE:
        assert row["layout"] == "packed", row
    elif family in BY_ROWS:
        assert row["layout"] == "padded", row
        assert row["decoder"] in ("rows", "recomputing"), row


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_architecture_is_right_or_refused_in_one_line(tmp_path: Path) -> None:
    rows = sweep(families(), tmp_path / "results.jsonl")
    assert {row["family"] for row in rows} == set(families())
    assert [row for row in rows if wrong(row)] == []
    assert all("\n" not in row.get("refused", "") for row in rows)
    assert sum("layout" in row for row in rows) > 1.5 * len(families())


def test_sweep_ends_a_model_that_takes_too_long_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    rows = sweep(["gpt2"], file, seconds=0.001)
    assert [(row["family"], row["spread"], row["crashed"]) for row in rows] == [
        ("gpt2", False, "more than 0 s"), ("gpt2", True, "more than 0 s")
    ]  # fmt: skip
    assert all(map(wrong, rows))
    monkeypatch.setattr(architecture_sweep, "_run", lambda *_: pytest.fail("what is known is run again"))
    assert sweep(["gpt2"], file) == rows == [json.loads(line) for line in file.read_text().splitlines()]


def _row(family: str, spread: bool, **more: Any) -> dict[str, Any]:
    return {"family": family, "spread": spread} | more


def _ran(worst: float, **more: Any) -> dict[str, Any]:
    return {"layout": "packed", "decoder": "masked", "sampling": worst, "training": 1e-7} | more


def test_table_has_a_line_for_each_family_and_its_worse_check(tmp_path: Path) -> None:
    rows = [
        _row("b", False, **_ran(3e-6)),
        _row("b", True, **_ran(2e-5, layout="padded")),
        _row("a", False, refused="model.name: this model can't be trained: it | isn't causal"),
        _row("a", True, unbuilt="ValueError: no"),
        _row("c", False, **_ran(1e-6)),
        _row("c", True, crashed="exit code -9"),
    ]
    lines = table(rows).splitlines()[4:]
    assert lines == [
        "| `a` | refused: it / isn't causal | | |",
        "| `b` | packed or padded | masked | 2e-05 |",
        "| `c` | packed | masked | 1e-06; sharp weights CRASHED: exit code -9 |",
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(page, rows)
    assert page.read_text() == f"before\n{BEGIN}\n{table(rows)}\n{END}\nafter\n"


@pytest.mark.parametrize("worst", [BOUND / 2, BOUND * 2, float("inf")])
def test_a_difference_above_the_bound_is_wrong(worst: float) -> None:
    assert wrong(_row("a", True, **_ran(worst))) == (worst > BOUND)
