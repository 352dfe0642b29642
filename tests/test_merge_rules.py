"""Merging rules: by hand, by their laws, and beside mergekit where that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from omni_thinker.baselines.folders import merge_folders
from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeMethod, MergeRule

ONE, TWO = torch.tensor([3.0, -1.0, 0.5, 0.0]), torch.tensor([-2.0, -3.0, 0.25, 4.0])
BOTH = [(0, ONE), (1, TWO)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MergeRule(), [1.0, -4.0, 0.75, 4.0]),
        (MergeRule(scale=0.5, weights=(1.0, 2.0)), [-0.5, -3.5, 0.5, 4.0]),
        # Signs: 3 - 2 is positive, so only 3 counts; both are negative; both positive; only the second is there.
        (MergeRule("ties"), [3.0, -2.0, 0.375, 4.0]),
        # Half of each: 3, -1 and -3, 4.
        (MergeRule("ties", density=0.5), [3.0, -2.0, 0.0, 4.0]),
        # Weighted: 3 - 4 is negative, so only -2 counts; (-1 - 6) / 3; (0.5 + 0.5) / 3.
        (MergeRule("ties", weights=(1.0, 2.0)), [-2.0, -7 / 3, 1 / 3, 4.0]),
        (MergeRule("ties", scale=2.0), [6.0, -4.0, 0.75, 8.0]),
        (MergeRule("dare"), [1.0, -4.0, 0.75, 4.0]),
        (MergeRule("dare_ties"), [3.0, -2.0, 0.375, 4.0]),
    ],
)
def test_merge_rule_equals_values_by_hand(rule: MergeRule, expected: list[float]) -> None:
    assert rule.combine("w", BOTH).tolist() == pytest.approx(expected)


def test_ties_elects_the_positive_sign_where_changes_cancel() -> None:
    found = MergeRule("ties").combine("w", [(0, torch.tensor([1.0])), (1, torch.tensor([-1.0]))])
    assert found.tolist() == [1.0]


def test_dare_drops_by_seed_and_preserves_the_mean() -> None:
    change = [(0, torch.ones(200_000))]
    rule = MergeRule("dare", density=0.25, seed=3)
    found = rule.combine("w", change)
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert float(found.mean()) == pytest.approx(1.0, abs=0.02)  # five standard errors
    assert torch.equal(found, rule.combine("w", change))
    for other in (MergeRule("dare", density=0.25, seed=4).combine("w", change), rule.combine("v", change)):
        assert not torch.equal(found, other)
    twice = rule.combine("w", [*change, (1, torch.ones(200_000))])
    assert not torch.equal(twice, 2 * found), "each expert has draws of its own"


@given(
    method=st.sampled_from(["linear", "ties", "dare", "dare_ties"]),
    density=st.floats(0.05, 1.0),
    scale=st.floats(-2, 2),
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30),
)
def test_merge_rule_is_linear_in_equal_experts_and_zero_at_zero(
    method: MergeMethod, density: float, scale: float, values: list[float]
) -> None:
    change = torch.tensor(values)
    rule = MergeRule(method, scale, density)
    twice = rule.combine("w", [(0, change), (0, change)])
    once = rule.combine("w", [(0, change)])
    same = once if method in ("ties", "dare_ties") else 2 * once  # elected changes are averaged
    assert torch.allclose(twice, same, rtol=1e-4, atol=1e-5)
    assert not rule.combine("w", [(0, torch.zeros(5))]).any()
    if method == "ties":
        kept = int((once != 0).sum()) if scale else 0
        assert kept <= max(1, int(density * len(values)))


def test_weights_that_no_expert_changed_stay_bit_for_bit(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3), "b": torch.full((2,), 0.1, dtype=torch.bfloat16)}, tmp_path / "start")
    save_file({"w": torch.zeros(3), "b": torch.full((2,), 0.1, dtype=torch.bfloat16)}, tmp_path / "x")
    merge(tmp_path / "start", [Weights(tmp_path / "x")], MergeRule("ties", density=0.5), tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert found["w"].tolist().count(0.0) == 1, "half of three, rounded down"
    assert found["b"].dtype == torch.bfloat16
    assert torch.equal(found["b"], load_file(tmp_path / "start")["b"])


MERGEKIT = os.environ.get("OMNI_THINKER_MERGEKIT_PYTHON", "")
"""A Python with mergekit, which is LGPL: looked at from outside, never a dependency."""


@pytest.mark.skipif(not MERGEKIT, reason="OMNI_THINKER_MERGEKIT_PYTHON names no Python with mergekit")
@pytest.mark.parametrize(
    ("method", "named", "density"),
    [("linear", "task_arithmetic", 1.0), ("ties", "ties", 0.4), ("ties", "ties", 1.0), ("dare_ties", "dare_ties", 1.0)],
)
def test_merge_equals_mergekit(
    tiny_model: Path, tmp_path: Path, method: MergeMethod, named: str, density: float
) -> None:
    start = load_file(tiny_model / "model.safetensors")
    folders = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        folder = tmp_path / name
        folder.mkdir()
        for path in tiny_model.iterdir():
            if path.name != "model.safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
        changed = {key: (own.float() + 0.01 * torch.randn(own.shape)).to(own.dtype) for key, own in start.items()}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        folders.append(folder)
    weights = (1.0, 0.6)
    models = [
        {"model": str(folder), "parameters": {"weight": weight, "density": density}}
        for folder, weight in zip(folders, weights, strict=True)
    ]
    config: dict[str, object] = {
        "merge_method": named,
        "base_model": str(tiny_model),
        "models": models,
        "dtype": "float32",
    }
    # Elected changes are averaged here; there `ties` is by default, `dare_ties` only where it is asked for.
    config["parameters"] = {"normalize": method != "linear"}
    (tmp_path / "config.yml").write_text(json.dumps(config), "utf-8")
    command = [MERGEKIT, "-m", "mergekit.scripts.run_yaml", str(tmp_path / "config.yml"), str(tmp_path / "theirs")]
    subprocess.run([*command, "--no-copy-tokenizer"], check=True, capture_output=True, timeout=280)
    rule = MergeRule(method, density=density, weights=weights)
    out = tmp_path / "ours"
    merge(tiny_model / "model.safetensors", [Weights(own / "model.safetensors") for own in folders], rule, out)
    ours = load_file(out)
    theirs: dict[str, torch.Tensor] = {}
    for path in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= load_file(path)
    assert theirs.keys() <= ours.keys()
    for name, weight in theirs.items():
        assert torch.allclose(ours[name].float(), weight.float(), atol=1e-6), name


@pytest.mark.skipif(not MERGEKIT, reason="OMNI_THINKER_MERGEKIT_PYTHON names no Python with mergekit")
def test_mergekit_reads_what_merge_writes(tiny_model: Path, tmp_path: Path) -> None:
    """It passes our merged folder through, and its weights come out as they were."""
    merge_folders(tiny_model, [tiny_model, tiny_model], MergeRule(), tmp_path / "ours")
    config = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "ours")}], "dtype": "float32"}
    (tmp_path / "config.yml").write_text(json.dumps(config), "utf-8")
    command = [MERGEKIT, "-m", "mergekit.scripts.run_yaml", str(tmp_path / "config.yml"), str(tmp_path / "theirs")]
    subprocess.run(command, check=True, capture_output=True, timeout=280)
    ours, theirs = load_file(tmp_path / "ours" / "model.safetensors"), dict[str, torch.Tensor]()
    for path in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= load_file(path)
    assert theirs
    assert all(torch.equal(weight, ours[name].float()) for name, weight in theirs.items())


def test_merging_two_135m_models_takes_under_30_seconds_and_2_models_memory(
    builtin_model: Path, tmp_path: Path
) -> None:
    """Measures the memory that the command needs beyond its imports."""
    size = sum(own.numel() * own.element_size() for own in load_file(builtin_model / "model.safetensors").values())
    code = (
        "import resource, sys; import omni_thinker.baselines.merge, omni_thinker.models.load;"
        "from omni_thinker.cli.app import app;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; app(sys.argv[1:], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    folder = str(builtin_model)
    options = ["--method", "ties", "--density", "0.5", "--json"]
    command = [sys.executable, "-c", code, "merge", folder, folder, folder, "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    table, grown = done.stdout.splitlines()[-2:]
    assert json.loads(table)["seconds"] < 30
    assert 1024 * int(grown) < 2 * size
