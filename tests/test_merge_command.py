"""`omni-thinker merge`: folders and shards in, a model folder out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from omni_thinker.baselines.merge import Weights, merge
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import INDEX, SINGLE, Tensors
from omni_thinker.cli.app import app
from omni_thinker.errors import UserError

Refused = Callable[..., str]


@pytest.fixture
def experts(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Two folders trained, as it were, from the tiny model."""
    start = load_file(tiny_model / SINGLE)
    found = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        shutil.copytree(tiny_model, tmp_path / name)
        changed = {key: own + 0.01 * torch.randn(own.shape) for key, own in start.items()}
        save_file(changed, tmp_path / name / SINGLE, metadata={"format": "pt"})
        found.append(tmp_path / name)
    return found


def sharded(folder: Path, out: Path) -> Path:
    """The same model in several files."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(out, max_shard_size="60KB")
    assert len(list(out.glob("*.safetensors"))) > 2
    return out


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    app(["merge", *map(str, arguments), "--json"], standalone_mode=False)
    table: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return table


def test_merging_sharded_models_equals_merging_single_files(
    tiny_model: Path, experts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "ties", "--density", "0.5", "--weights", "1,0.6"]
    start, second = sharded(tiny_model, tmp_path / "start"), sharded(experts[1], tmp_path / "second")
    table = command(capsys, start, experts[0], second, "--out", tmp_path / "out", *options)
    assert table["experts"] == [str(experts[0]), str(second)]
    rule = MergeRule("ties", density=0.5, weights=(1.0, 0.6))
    merge(tiny_model / SINGLE, [Weights(path / SINGLE) for path in experts], rule, tmp_path / "one")
    expected = load_file(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == sorted(
        path.name for path in start.glob("*.safetensors")
    )
    tensors = Tensors(tmp_path / "out")
    assert tensors.shapes == Tensors(tmp_path / "one").shapes
    assert all(torch.equal(tensors[name], own) for name, own in expected.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], own.to(loaded[name].dtype)) for name, own in expected.items())
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == (start / "tokenizer_config.json").read_bytes()
    assert not list(tmp_path.glob(".out-*"))
    assert (tmp_path / "out").stat().st_mode == second.stat().st_mode


def test_merging_a_lora_adapter_equals_peft_merge_and_unload(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    command(capsys, tiny_model, tmp_path / "adapter", "--out", tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    theirs = adapted.merge_and_unload().state_dict()
    assert all(torch.allclose(ours[name], own, atol=1e-6) for name, own in theirs.items())


def test_peft_trains_an_adapter_on_what_merge_writes(
    tiny_model: Path, experts: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also on a merged model of several files: saved, loaded again by its base's name, and merged by us."""
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    merged = tmp_path / "merged"
    command(capsys, sharded(tiny_model, tmp_path / "start"), *experts, "--out", merged)
    torch.manual_seed(0)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(merged),
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    read = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert read.peft_config["default"].base_model_name_or_path == str(merged)
    tokens = torch.arange(12)[None]
    assert torch.equal(read(tokens).logits, adapted.eval()(tokens).logits)
    command(capsys, merged, tmp_path / "adapter", "--out", tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(ours(tokens).logits, read(tokens).logits, atol=1e-4)


def test_bad_options_of_merge_exit_2_with_one_line_and_write_nothing(
    tiny_model: Path, experts: list[Path], tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    begin = ["merge", tiny_model, experts[0]]
    for more, words in (
        (["--method", "slerp"], "--method: must be one of linear, ties, dare, dare_ties, got 'slerp'"),
        (["--density", "0"], "--density: must be above 0"),
        (["--weights", "1,2"], "--weights: must be 1 finite numbers"),
        (["--weights", "one"], "--weights: must be numbers separated by commas"),
        (["--weights", "nan"], "--weights: must be 1 finite numbers"),
        (["--weights", "1e39"], "--weights: must be 1 finite numbers, one for each expert, of at most 1e+06"),
        (["--scale", "1e39"], "--scale: must be a finite number of at most 1e+06"),
        (["--scale", "nan"], "--scale: must be a finite number"),
        (["--density", "0.5"], "--density: applies to ties, dare and dare_ties"),
        (["x" * 300], "EXPERTS: can't be a folder"),
        ([tmp_path / "gone"], "EXPERTS: no such folder"),
        ([tmp_path], "has neither model.safetensors nor model.safetensors.index.json"),
    ):
        assert words in refused(*begin, *more, "--out", out)
        assert not out.exists()
    assert "exists already" in refused(*begin, "--out", experts[1])
    assert "no such model folder" in refused("merge", tmp_path / "nowhere", experts[0], "--out", out)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ('{"weight_map": {"w": "../b/model.safetensors"}}', "names files outside its folder"),
        ('{"weight_map": {"w": "/etc/passwd"}}', "names files outside its folder"),
        ('{"weight_map": {"w": "pytorch_model.bin"}}', "names files outside its folder"),
        ('{"weight_map": {}}', "names no shards"),
        ('{"weight_map": {"w": 3}}', "isn't an index of shards"),
        ("[]", "isn't an index of shards"),
        ("{", "isn't an index of shards"),
        ('{"weight_map": {"w": "gone.safetensors"}}', "isn't a safetensors file"),
    ],
)
def test_shard_index_that_names_files_outside_its_folder_is_refused(
    index: str, words: str, tiny_model: Path, experts: list[Path], tmp_path: Path, refused: Refused
) -> None:
    (experts[0] / INDEX).write_text(index, "utf-8")
    assert refused("merge", tiny_model, experts[0], "--out", tiny_model), "not for the index: the single file is read"
    (experts[0] / SINGLE).unlink()
    assert words in refused("merge", tiny_model, experts[0], "--out", tmp_path / "out")


LORA = '{"peft_type": "LORA", "target_modules": ["down_proj"], "layers_to_transform": [0]'


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("[]", "can't be merged by peft"),
        ("{}", "an adapter of the kind None"),
        ('{"peft_type": "NEXT_YEARS"}', "can't be merged by peft"),
        ('{"peft_type": "IA3"}', "lora_A.weight', which the model doesn't have"),
        ('{"peft_type": "LORA", "target_modules": "(("}', "can't be merged by peft"),
        (f'{LORA}, "r": 0}}', "can't be merged by peft"),
        (f'{LORA}, "r": "two"}}', "can't be merged by peft"),
        (f'{LORA}, "r": 2, "lora_alpha": NaN}}', "holds numbers that aren't finite"),
        (f'{LORA}, "r": 3}}', "can't be merged by peft: Error(s) in loading"),
        ("{", "can't be merged by peft"),
        ("[" * 100_000, "can't be merged by peft"),
    ],
)
def test_malformed_adapter_is_refused_with_one_line(
    config: str, words: str, tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config, "utf-8")
    name = "base_model.model.model.layers.0.mlp.down_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, 128), f"{name}.lora_B.weight": torch.ones(64, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    assert words in refused("merge", tiny_model, folder, "--out", tmp_path / "out")


def test_experts_with_other_tensors_or_torn_files_are_refused(
    tiny_model: Path, experts: list[Path], tmp_path: Path, refused: Refused
) -> None:
    save_file({"w": torch.ones(2)}, experts[0] / SINGLE)
    assert "holds other tensors than" in refused("merge", tiny_model, experts[0], "--out", tmp_path / "out")
    whole = (experts[1] / SINGLE).read_bytes()
    (experts[1] / SINGLE).write_bytes(whole[: len(whole) // 2])
    assert "isn't a safetensors file" in refused("merge", tiny_model, experts[1], "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out-*"))


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_expert_with_nan_or_inf_is_refused(
    method: str, odd: float, tiny_model: Path, experts: list[Path], tmp_path: Path, refused: Refused
) -> None:
    tensors = load_file(experts[1] / SINGLE)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[5] = odd
    save_file(tensors, experts[1] / SINGLE, metadata={"format": "pt"})
    said = refused("merge", tiny_model, *experts, "--out", tmp_path / "out", "--method", method)
    assert f"{experts[1]}: {name!r} holds numbers that aren't finite" in said
    assert not (tmp_path / "out").exists()


def test_start_that_is_not_finite_is_named(tiny_model: Path, tmp_path: Path, refused: Refused) -> None:
    start = shutil.copytree(tiny_model, tmp_path / "start")
    tensors = load_file(start / SINGLE)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, start / SINGLE, metadata={"format": "pt"})
    said = refused("merge", start, tiny_model, "--out", tmp_path / "out")
    assert f"{start}: {name!r} holds numbers that aren't finite" in said
    assert not (tmp_path / "out").exists()


def test_merge_that_overflows_is_refused(
    tiny_model: Path, experts: list[Path], tmp_path: Path, refused: Refused
) -> None:
    tensors = {name: 1e36 * own for name, own in load_file(experts[0] / SINGLE).items()}
    save_file(tensors, experts[0] / SINGLE, metadata={"format": "pt"})
    said = refused("merge", tiny_model, experts[0], "--out", tmp_path / "out", "--scale", "1e6")
    assert "smaller weights or scale help" in said


def test_integer_tensors_are_copied_and_refused_if_they_differ(tmp_path: Path) -> None:
    """Covers packed weights, buffers of counts and empty tensors."""
    big = torch.tensor([2**40 + 1, 7])
    start = {"w": torch.ones(4), "count": big, "none": torch.empty(0, 4)}
    for name, count in (("start", big), ("same", big), ("other", big + 1)):
        save_file({**start, "w": torch.full((4,), 2.0), "count": count} if name != "start" else start, tmp_path / name)
    rule = MergeRule("ties", density=0.5)
    merge(tmp_path / "start", [Weights(tmp_path / "same")], rule, tmp_path / "out")
    found = load_file(tmp_path / "out")
    assert torch.equal(found["count"], big)
    assert found["w"].tolist() == [2.0, 2.0, 1.0, 1.0]
    with pytest.raises(UserError, match="'count' holds whole numbers"):
        merge(tmp_path / "start", [Weights(tmp_path / "other")], rule, tmp_path / "out")
