"""Models in the forms that people have them: what is merged, named and exported, and what is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_thinker.baselines.folders import merge_folders
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import INDEX, SINGLE
from omni_thinker.errors import UserError
from omni_thinker.models.info import model_info
from omni_thinker.models.load import load_model, load_tokenizer, resolve
from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.recipe import LoraSpec, ModelSpec

Refused = Callable[..., str]
IDS = torch.tensor([[5, 99, 301, 7, 8, 42, 1, 2, 250, 11]])


def copy(folder: Path, out: Path, **config: object) -> Path:
    """A copy of a model folder, with other keys in its config."""
    shutil.copytree(folder, out)
    table = json.loads((out / "config.json").read_text("utf-8")) | config
    (out / "config.json").write_text(json.dumps(table), "utf-8")
    return out


def changed(folder: Path, seed: int = 0, size: float = 0.02) -> Path:
    """The same folder, trained as it were."""
    torch.manual_seed(seed)
    tensors = {
        name: tensor + (size * torch.randn(tensor.shape)).to(tensor.dtype)
        for name, tensor in load_file(folder / SINGLE).items()
    }
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return folder


def in_bf16(folder: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(folder: Path | str) -> torch.Tensor:
    found: torch.Tensor = load_model(str(folder), torch.float32)(IDS).logits
    return found


# -- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_theta": 5e5, "rope_parameters": None}, "rope_parameters.rope_theta is 500000.0, and 10000.0 in"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_parameters.factor is 2.0",
        ),
        ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}, "head_dim is 32, and 16 in"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, and 1e-06 in"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and 'silu' in"),
        ({"max_position_embeddings": 4096}, "max_position_embeddings is 4096, and 2048 in"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, and True in"),
    ],
)
def test_expert_whose_config_computes_something_else_is_refused(
    config: dict[str, object], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    expert = changed(copy(tiny_model, tmp_path / "expert", **config))
    with pytest.raises(UserError) as caught:
        merge_folders(tiny_model, [expert], MergeRule(), tmp_path / "out")
    assert f"{expert / 'config.json'}: " in str(caught.value)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_keys_of_a_config_that_change_nothing_may_differ(tiny_model: Path, tmp_path: Path) -> None:
    free = {
        "use_cache": False,
        "attention_dropout": 0.1,
        "eos_token_id": 0,
        "torch_dtype": "float32",
        "initializer_range": 1.0,
        "version_of_a_trainer": "1.2",
    }
    expert = changed(copy(tiny_model, tmp_path / "expert", **free))
    merge_folders(tiny_model, [expert], MergeRule(), tmp_path / "out")
    assert torch.allclose(logits(tmp_path / "out"), logits(expert), atol=1e-4)


def test_window_of_another_size_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    kind = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    start = copy(tiny_model, tmp_path / "start", **kind, sliding_window=8)
    expert = changed(copy(tiny_model, tmp_path / "expert", **kind, sliding_window=16))
    with pytest.raises(UserError, match="sliding_window is 16, and 8 in"):
        merge_folders(start, [expert], MergeRule(), tmp_path / "out")


def test_quantised_start_and_expert_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    method = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    quantised = copy(tiny_model, tmp_path / "fp8", quantization_config=method)
    for start, expert in ((quantised, tiny_model), (tiny_model, quantised)):
        with pytest.raises(UserError, match=r"weights are quantised \(fp8\)"):
            merge_folders(start, [expert], MergeRule(), tmp_path / "out")
    unsaid = copy(tiny_model, tmp_path / "unsaid")
    tensors = load_file(unsaid / SINGLE)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, unsaid / SINGLE, metadata={"format": "pt"})
    with pytest.raises(UserError, match="is quantised"):
        merge_folders(unsaid, [unsaid], MergeRule(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_small_change_of_bf16_weights_is_lost_unless_merged_in_fp32(
    tiny_model: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    start = in_bf16(copy(tiny_model, tmp_path / "start"))
    expert = copy(tiny_model, tmp_path / "expert")
    exact = {name: tensor.float() for name, tensor in load_file(start / SINGLE).items()}
    save_file(exact, expert / SINGLE, metadata={"format": "pt"})
    changed(expert, size=1e-4)
    code, said, _ = run("merge", start, expert, "--out", tmp_path / "rounded")
    assert code == 0
    assert "% of the change; --dtype float32 keeps it" in said
    code, said, _ = run("merge", start, expert, "--out", tmp_path / "exact", "--dtype", "float32", "--json")
    assert code == 0
    assert json.loads(said.splitlines()[-1])["lost_in_rounding"] == 0
    assert json.loads((tmp_path / "exact" / "config.json").read_text("utf-8"))["dtype"] == "float32"
    wanted, found, rounded = (
        load_file(folder / SINGLE) for folder in (expert, tmp_path / "exact", tmp_path / "rounded")
    )
    assert all(torch.allclose(found[name], tensor, rtol=0, atol=1e-7) for name, tensor in wanted.items())
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    code, _, said = run("merge", start, expert, "--out", tmp_path / "other", "--dtype", "int8")
    assert (code, "--dtype: must be one of start, float32" in said) == (2, True)


def test_every_file_beside_the_weights_comes_along(tiny_model: Path, tmp_path: Path) -> None:
    start = copy(tiny_model, tmp_path / "start")
    extra = ["tokenizer.model", "preprocessor_config.json", "merges.txt", "special_tokens_map.json", "LICENSE"]
    (start / "additional_chat_templates").mkdir()
    for name in [*extra, "additional_chat_templates/tool_use.jinja"]:
        (start / name).write_text("{}", "utf-8")
    for name in ("pytorch_model.bin", "modeling_evil.py", "optimizer.pt", ".gitattributes", INDEX):
        (start / name).write_text("{}", "utf-8")
    merge_folders(start, [changed(copy(tiny_model, tmp_path / "expert"))], MergeRule(), tmp_path / "out")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    own = {path.name for path in tiny_model.iterdir()}
    assert names == own | set(extra) | {"additional_chat_templates/tool_use.jinja"}
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == (start / "generation_config.json").read_bytes()


def test_linked_folders_are_read_as_they_lie_in_a_cache_of_the_hub(tiny_model: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in tiny_model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert torch.equal(logits(snapshot), logits(tiny_model))
    merge_folders(snapshot, [snapshot], MergeRule(), tmp_path / "out")
    assert torch.equal(logits(tmp_path / "out"), logits(tiny_model))
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="is a cache of the hub; name one of the folders below"):
        resolve(str(tmp_path / "models--a--b"))


def test_merge_takes_the_name_of_a_model_in_the_cache_of_the_hub(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_model, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123", "utf-8")
    code, _, said = run("merge", "someone/tiny", tiny_model, "--out", tmp_path / "out")
    assert code == 0, said
    assert torch.equal(logits(tmp_path / "out"), logits(tiny_model))


# -- names ------------------------------------------------------------------------------------------------------------


def test_folders_with_adapters_are_refused_where_a_model_belongs(
    tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "builtin"}', "utf-8")
    said = refused("model", "info", adapter)
    assert f"is an adapter, not a model; merge it first: omni-thinker merge builtin {adapter} --out NEW" in said
    both = copy(tiny_model, tmp_path / "both")
    (both / "adapter_config.json").write_text("{}", "utf-8")
    assert "holds an adapter beside a model" in refused("model", "info", both)
    assert "holds an adapter beside a model" in refused("merge", both, tiny_model, "--out", tmp_path / "out")
    assert "holds a model and an adapter" in refused("merge", tiny_model, both, "--out", tmp_path / "out")
    assert "download the model first" in refused("merge", "no/such-model", tiny_model, "--out", tmp_path / "out")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantised_models_are_refused_in_one_line(
    method: str, tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    folder = copy(tiny_model, tmp_path / "model", quantization_config={"quant_method": method, "bits": 4})
    assert f"its weights are quantised ({method}), so they can't be trained" in refused("model", "info", folder)
    with pytest.raises(UserError, match="quantised"):
        load_model(str(folder), torch.float32)


def write_gguf(folder: Path, out: Path, kind: str) -> Path:
    """A GGUF file with the weights of a Llama, as llama.cpp's converter lays them out."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    table = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = sorted(table["vocab"], key=table["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in table["merges"]])
    for add, token in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_pad_token_id, 0)):
        add(token)
    writer.add_chat_template(AutoTokenizer.from_pretrained(folder).chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, _, end = name.rpartition(".")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1])
        if heads:  # rotations in pairs side by side
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if name == "lm_head.weight":
            continue
        array = tensor.float().numpy()
        found = f"{names.get_name(stem)}.{end}"
        if kind == "Q8_0" and array.ndim == 2:
            packed = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(found, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(found, array)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return out


def test_gguf_files_are_converted_once_and_a_folder_of_them_wants_a_name(
    tiny_model: Path, tmp_path: Path, own_home: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    exact, rounded = (write_gguf(tiny_model, folder / f"tiny.{kind}.gguf", kind) for kind in ("F32", "Q8_0"))
    assert torch.allclose(logits(exact), logits(tiny_model), atol=1e-5)
    apart = (logits(rounded) - logits(tiny_model)).abs().max()
    assert 1e-5 < float(apart) < 0.5
    assert resolve(str(exact)) == resolve(str(exact))
    assert load_tokenizer(str(exact)).chat_template == load_tokenizer(str(tiny_model)).chat_template
    assert model_info(str(exact))["source"] == "GGUF file tiny.F32.gguf"
    with pytest.raises(UserError, match=r"holds GGUF files; name one of them, such as .*tiny\.F32\.gguf"):
        resolve(str(folder))
    (folder / "torn.gguf").write_bytes(b"GGUF torn")
    with pytest.raises(UserError, match="isn't a GGUF file that transformers reads"):
        resolve(str(folder / "torn.gguf"))


# -- export -----------------------------------------------------------------------------------------------------------


def trained(spec: ModelSpec) -> TorchPolicy:
    policy = TorchPolicy(spec)
    torch.manual_seed(0)
    with torch.no_grad():
        for master in policy._masters:
            master.add_(0.02 * torch.randn(master.shape))
    policy._updates.publish()
    return policy


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4, alpha=8)], ids=["whole", "lora"])
def test_exported_folder_is_the_trained_policy_with_all_files_as_they_came(
    lora: LoraSpec | None, tiny_model: Path, tmp_path: Path
) -> None:
    source = copy(tiny_model, tmp_path / "source")
    settings = {"temperature": 0.3, "do_sample": True, "eos_token_id": [2, 0], "pad_token_id": 0}
    (source / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    (source / "preprocessor_config.json").write_text("{}", "utf-8")
    policy = trained(ModelSpec(name=str(source), dtype="float32", lora=lora))
    out = tmp_path / "out"
    policy.export(out)
    with torch.no_grad():
        expected = policy.model(IDS).logits
    assert torch.allclose(logits(out), expected, atol=1e-4)
    assert json.loads((out / "generation_config.json").read_text("utf-8")) == settings
    assert (out / "preprocessor_config.json").exists()
    assert json.loads((out / "config.json").read_text("utf-8"))["architectures"] == ["LlamaForCausalLM"]
    again = TorchPolicy(ModelSpec(name=str(out), dtype="float32"))
    assert again.stop_ids == policy.stop_ids
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template
    assert not (out / "omni_thinker.json").exists(), "it says where the source came from"


def test_exported_adapter_names_its_model_and_loads_in_peft(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    copy(tiny_model, tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    policy = trained(ModelSpec(name="source", dtype="float32", lora=LoraSpec(rank=4, alpha=8)))
    policy.export_adapter(tmp_path / "adapter")
    monkeypatch.chdir("/")
    table = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert table["base_model_name_or_path"] == str(tmp_path / "source")
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.allclose(loaded(IDS).logits, policy.model(IDS).logits, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_lora_on_tied_embeddings_is_refused_and_on_untied_ones_exported_right(
    target: str, tiny_model: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(name=str(tiny_model), dtype="float32", lora=LoraSpec(rank=4, alpha=8, targets=("q_proj", target)))
    with pytest.raises(UserError, match=r"model\.lora\.targets: name the embedding or the head, which this model ties"):
        TorchPolicy(spec)
    untied = copy(tiny_model, tmp_path / "untied", tie_word_embeddings=False)
    tensors = load_file(untied / SINGLE)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, untied / SINGLE)
    policy = trained(spec.model_copy(update={"name": str(untied)}))
    policy.export(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(logits(tmp_path / "out"), policy.model(IDS).logits, atol=1e-4)
