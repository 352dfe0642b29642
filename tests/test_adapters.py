"""Adapters in the forms that peft writes: merged as peft merges them, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from omni_thinker.baselines.adapters import CONFIG, FACTORS, Adapter
from omni_thinker.baselines.folders import merge_folders
from omni_thinker.baselines.merge_rules import MergeRule
from omni_thinker.baselines.tensors import Tensors
from omni_thinker.errors import UserError
from omni_thinker.models.quiet import quiet

peft = pytest.importorskip("peft")
SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 4, "max_position_embeddings": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SMALL, "tie_word_embeddings": False}),
    "tied": ("Llama", {**SMALL, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**SMALL, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3Text", {**SMALL, "sliding_window": 8, "query_pre_attn_scalar": 4}),
    "gpt2": ("GPT2", {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "mixtral": ("Mixtral", {**SMALL, **EXPERTS}),
    "deepseek": ("DeepseekV3", {**SIZES, **LATENT, "intermediate_size": 24, "moe_intermediate_size": 8}),
    "qwen3_moe": ("Qwen3Moe", {**SMALL, **EXPERTS}),
}
IDS = torch.tensor([[3, 7, 11, 2, 30, 41, 5, 5, 9, 17, 20, 1], [8, 8, 1, 2, 46, 0, 12, 13, 14, 40, 33, 22]])


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[[str], Path]:
    """A folder for each family: random weights, wide enough that logits vary."""
    made = tmp_path_factory.mktemp("bases")

    def base(family: str) -> Path:
        folder = made / family
        if not folder.exists():
            kind, settings = FAMILIES[family]
            config = getattr(transformers, f"{kind}Config")(**settings, initializer_range=0.3, pad_token_id=0)
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if name.endswith("bias"):
                        weight.normal_(0, 0.1)
            with quiet():
                model.save_pretrained(folder)
            for path in tiny_model.iterdir():
                if "token" in path.name or "template" in path.name:
                    shutil.copy(path, folder)
        return folder

    return base


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def trained(base: Path, out: Path, config: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Write an adapter with random factors; the logits of the model that it was trained on."""
    torch.manual_seed(seed)
    with quiet():
        model = peft.get_peft_model(loaded(base, dtype), config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.requires_grad:
                    generator = torch.Generator().manual_seed(seed + sum(map(ord, name)))
                    weight.add_(0.1 * torch.randn(weight.shape, generator=generator).to(weight.dtype))
        model.save_pretrained(str(out))
    return logits(model.eval())


def merged_by_peft(base: Path, adapter: Path) -> torch.Tensor:
    with quiet():
        model = peft.PeftModel.from_pretrained(loaded(base), str(adapter), torch_device="cpu")
        return logits(model.merge_and_unload())


def merged(base: Path, adapters: Sequence[Path], out: Path, rule: MergeRule | None = None) -> torch.Tensor:
    merge_folders(base, adapters, rule or MergeRule(), out)
    return logits(loaded(out))


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Length of the difference over the length."""
    return float((ours - theirs).norm() / theirs.norm())


class Form(NamedTuple):
    name: str
    family: str
    options: dict[str, Any]
    kind: str = "LoraConfig"

    def config(self) -> Any:
        options: dict[str, Any] = {"r": 3, "lora_alpha": 5} if self.kind == "LoraConfig" else {}
        if self.kind != "LoraConfig" or "target_modules" not in self.options:
            options |= {"target_modules": ["q_proj", "v_proj"]} if self.family != "gpt2" else {}
        try:
            return getattr(peft, self.kind)(**{**options, "task_type": "CAUSAL_LM", **self.options})
        except TypeError as exc:
            pytest.skip(f"not in this version of peft: {exc}")


ALL = {"target_modules": "all-linear"}
FORMS = [
    Form("plain", "llama", {}),
    Form("all linear layers", "llama", ALL),
    Form("regex", "llama", {"target_modules": r".*layers\.1\.(self_attn\.k_proj|mlp\.up_proj)"}),
    Form("some layers", "llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    Form("excluded", "llama", {**ALL, "exclude_modules": ["down_proj"]}),
    Form("rslora", "llama", {**ALL, "use_rslora": True}),
    Form("dora", "llama", {**ALL, "use_dora": True}),
    Form("dora and rslora", "llama", {**ALL, "use_dora": True, "use_rslora": True}),
    Form("rank pattern", "llama", {**ALL, "rank_pattern": {"q_proj": 5, "down_proj": 2}}),
    Form("alpha pattern", "llama", {**ALL, "alpha_pattern": {r"layers\.0\.mlp\.up_proj": 11}}),
    Form("patterns", "llama", {**ALL, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 9}, "use_dora": True}),
    Form("dropout", "llama", {"lora_dropout": 0.5}),
    Form("gaussian", "llama", {"init_lora_weights": "gaussian"}),
    Form("orthogonal", "llama", {"init_lora_weights": "orthogonal", "r": 4}),
    Form("random", "llama", {"init_lora_weights": False}),
    Form("eva", "llama", {"init_lora_weights": "eva"}),
    Form("mica", "llama", {"init_lora_weights": "mica"}),
    Form("pissa", "llama", {**ALL, "init_lora_weights": "pissa"}),
    Form(
        "pissa, rslora, patterns",
        "llama",
        {"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"v_proj": 2}},
    ),
    Form("olora", "llama", {**ALL, "init_lora_weights": "olora"}),
    Form("head saved", "llama", {"modules_to_save": ["lm_head"]}),
    Form("head and embedding saved", "llama", {"modules_to_save": ["lm_head", "embed_tokens"]}),
    Form("norms saved", "llama", {"modules_to_save": ["input_layernorm", "norm"], "use_dora": True}),
    Form("trained tokens", "llama", {"trainable_token_indices": [1, 5, 7]}),
    Form("trained tokens of a head", "llama", {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [5]}}),
    Form("trained tokens, tied", "tied", {"trainable_token_indices": [1, 5, 7]}),
    Form("embedding", "llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    Form("embedding, dora", "llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    Form("head", "llama", {"target_modules": ["lm_head", "o_proj"]}),
    Form("one parameter", "llama", {"target_modules": [], "target_parameters": ["q_proj.weight", "up_proj.weight"]}),
    Form("parameters and layers", "llama", {"target_parameters": ["down_proj.weight"]}),
    Form("tied, all linear layers", "tied", {**ALL, "use_dora": True}),
    Form("all biases", "qwen2", {"bias": "all"}),
    Form("biases of the layers", "qwen2", {"bias": "lora_only"}),
    Form("bias of its own", "qwen2", {"lora_bias": True}),
    Form("qwen2", "qwen2", {**ALL, "use_rslora": True}),
    Form("gemma3", "gemma3", ALL),
    Form("gemma3, dora", "gemma3", {**ALL, "use_dora": True}),
    Form("gemma3, trained tokens", "gemma3", {"trainable_token_indices": [3, 9]}),
    Form("gpt2", "gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    Form("gpt2, square", "gpt2", {"target_modules": ["c_proj"], "fan_in_fan_out": True}),
    Form("gpt2, all", "gpt2", {**ALL, "fan_in_fan_out": True}),
    Form("gpt2, dora", "gpt2", {**ALL, "fan_in_fan_out": True, "use_dora": True}),
    Form("gpt2, pissa", "gpt2", {**ALL, "fan_in_fan_out": True, "init_lora_weights": "pissa"}),
    Form("gpt2, biases", "gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "all"}),
    Form("gpt2, bias of its own", "gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_bias": True}),
    Form(
        "gpt2, norms saved", "gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "modules_to_save": ["ln_f"]}
    ),
    Form("mixtral, attention", "mixtral", {}),
    Form("mixtral, router", "mixtral", {"modules_to_save": ["gate"]}),
    Form("mixtral, experts in", "mixtral", {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}),
    Form("mixtral, experts out", "mixtral", {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    Form("mixtral, experts", "mixtral", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    Form(
        "qwen3 moe, experts", "qwen3_moe", {**ALL, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    ),
    Form("deepseek, latent", "deepseek", {"target_modules": ["q_a_proj", "kv_b_proj", "o_proj"]}),
    Form("deepseek, all", "deepseek", ALL),
    Form("velora", "llama", {"velora_config": {"num_groups": 2}}),
    Form("kasa", "llama", {"kasa_config": {}}),
    Form(
        "ia3", "llama", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}, "IA3Config"
    ),
    Form("loha", "llama", {"r": 2, "alpha": 3}, "LoHaConfig"),
    Form("lokr", "llama", {"r": 2, "alpha": 3}, "LoKrConfig"),
    Form("lokr, decomposed", "llama", {"r": 2, "decompose_both": True, "decompose_factor": 4}, "LoKrConfig"),
    Form("oft, constrained", "llama", {"oft_block_size": 4, "coft": True, "eps": 1e-2}, "OFTConfig"),
    Form("oft, shared", "llama", {"oft_block_size": 4, "block_share": True}, "OFTConfig"),
    Form("boft, two", "llama", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}, "BOFTConfig"),
    Form("hra, orthonormal", "llama", {"r": 2, "apply_GS": True}, "HRAConfig"),
    Form("loha, ranks", "llama", {"r": 2, "alpha": 3, "rank_pattern": {"v_proj": 1}}, "LoHaConfig"),
    Form("bdlora", "llama", {"use_bdlora": {"target_modules_bd_a": ["q_proj", "v_proj"], "nblocks": 2}, "r": 4}),
    Form("oft", "llama", {"oft_block_size": 4}, "OFTConfig"),
    Form("boft", "llama", {"boft_block_size": 4}, "BOFTConfig"),
    Form("hra", "llama", {"r": 2}, "HRAConfig"),
    Form("norms", "llama", {"target_modules": ["input_layernorm", "norm"]}, "LNTuningConfig"),
    Form(
        "tokens alone", "llama", {"target_modules": ["embed_tokens"], "token_indices": [2, 3]}, "TrainableTokensConfig"
    ),
]


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_merged_adapter_equals_peft_and_the_trained_model(
    form: Form, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(form.family)
    policy = trained(base, tmp_path / "adapter", form.config())
    assert apart(policy, logits(loaded(base))) > 0.01, "the adapter does something"
    ours = merged(base, [tmp_path / "adapter"], tmp_path / "out")
    assert apart(ours, merged_by_peft(base, tmp_path / "adapter")) < 1e-5
    assert apart(ours, policy) < 1e-5


@pytest.mark.parametrize("rule", [MergeRule(weights=(1.0, 0.5)), MergeRule("ties"), MergeRule("dare_ties", scale=0.7)])
def test_two_adapters_are_merged_as_the_models_they_make(
    rule: MergeRule, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base, folders = bases("llama"), [tmp_path / "a", tmp_path / "b"]
    wholes = []
    for seed, (folder, options) in enumerate(zip(folders, [{"use_dora": True}, {"use_rslora": True}], strict=True)):
        trained(base, folder, Form("", "llama", {**ALL, **options}).config(), seed)
        wholes.append(tmp_path / f"whole-{seed}")
        merge_folders(base, [folder], MergeRule(), wholes[-1])
    assert apart(merged(base, folders, tmp_path / "out", rule), merged(base, wholes, tmp_path / "same", rule)) < 1e-5


@pytest.mark.parametrize("form", ["plain", "dora", "pissa", "gpt2, all", "mixtral, experts"])
def test_adapter_of_a_bf16_model_is_merged_in_fp32(form: str, bases: Callable[[str], Path], tmp_path: Path) -> None:
    found = next(other for other in FORMS if other.name == form)
    base = tmp_path / "base"
    shutil.copytree(bases(found.family), base)
    loaded(base, torch.bfloat16).save_pretrained(base)
    trained(base, tmp_path / "adapter", found.config(), dtype=torch.bfloat16)
    rounding = merge_folders(base, [tmp_path / "adapter"], MergeRule(), tmp_path / "out", torch.float32)
    assert rounding.share == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["dtype"] == "float32"
    assert apart(logits(loaded(tmp_path / "out")), merged_by_peft(base, tmp_path / "adapter")) < 1e-5
    rounding = merge_folders(base, [tmp_path / "adapter"], MergeRule(), tmp_path / "rounded")
    assert 0.001 < rounding.share < 0.5
    assert loaded(tmp_path / "rounded", "auto").dtype == torch.bfloat16  # type: ignore[arg-type]


def test_conv1d_with_a_wrong_fan_in_fan_out_is_merged_right(bases: Callable[[str], Path], tmp_path: Path) -> None:
    """A square weight has the same shape either way round."""
    base, adapter = bases("gpt2"), tmp_path / "adapter"
    policy = trained(base, adapter, Form("", "gpt2", {"target_modules": ["c_proj"], "fan_in_fan_out": True}).config())
    edit(adapter, fan_in_fan_out=False)
    assert apart(merged(base, [adapter], tmp_path / "out"), policy) < 1e-5


def edit(adapter: Path, **keys: object) -> None:
    table = json.loads((adapter / CONFIG).read_text("utf-8"))
    (adapter / CONFIG).write_text(json.dumps(table | keys), "utf-8")


REFUSED = [
    (Form("aLoRA", "llama", {"alora_invocation_tokens": [1, 2]}), {}, "has alora_invocation_tokens"),
    (Form("other layers", "llama", {}), {"layer_replication": [[0, 2], [0, 2]]}, "has layer_replication"),
    (Form("another rank", "llama", {}), {"r": 5}, "size mismatch"),
    (Form("a rank of none", "llama", {}), {"r": 0}, "can't be merged by peft"),
    (Form("random residual", "llama", {}), {"init_lora_weights": "pissa_niter_4"}, "began with 'pissa_niter_4'"),
    (Form("quantised residual", "llama", {}), {"init_lora_weights": "loftq"}, "loftq"),
    (Form("gradients", "llama", {}), {"init_lora_weights": "lora_ga"}, "began with 'lora_ga'"),
    (Form("covariances", "llama", {}), {"init_lora_weights": "corda"}, "corda"),
    (Form("unknown start", "llama", {}), {"init_lora_weights": "of next year"}, "began with 'of next year'"),
    (Form("another target", "llama", {}), {"target_modules": ["q_proj"]}, "adapts"),
    (Form("one more target", "llama", {}), {"target_modules": ["q_proj", "v_proj", "o_proj"]}, "has no weights for"),
    (Form("a module not saved", "llama", {}), {"modules_to_save": ["lm_head"]}, "there is no '"),
    (Form("no target", "llama", {}), {"target_modules": ["nothing"]}, "can't be merged by peft"),
    (Form("a module of Megatron", "llama", {}), {"megatron_config": {"a": 1}}, "has megatron_config"),
    (Form("of next year", "llama", {}), {"use_next": True}, "has use_next, which the installed peft doesn't know"),
    (Form("routes", "llama", {}), {"arrow_config": {"top_k": 2}}, "arrow_config"),
    (Form("samples", "llama", {}), {"monteclora_config": {"num_samples": 2}}, "monteclora_config"),
    (Form("a buffer", "deepseek", {"target_modules": ["o_proj"], "modules_to_save": ["gate"]}), {}, "isn't trained by"),
    (Form("vera", "llama", {"r": 2}, "VeraConfig"), {}, "of the kind VERA, which can't be merged"),
    (Form("prefix", "llama", {"num_virtual_tokens": 3}, "PrefixTuningConfig"), {}, "of the kind PREFIX_TUNING"),
    (Form("tied head", "tied", {"target_modules": ["lm_head"]}), {}, "are tied to another layer's; untie"),
    (Form("tied embedding", "tied", {"target_modules": ["embed_tokens"]}), {}, "are tied to another layer's; untie"),
    (Form("tied head saved", "tied", {"modules_to_save": ["lm_head"]}), {}, "are tied to another layer's; untie"),
]


@pytest.mark.parametrize(("form", "keys", "words"), REFUSED, ids=[form.name for form, _, _ in REFUSED])
def test_adapter_that_peft_merges_wrongly_or_not_at_all_is_refused(
    form: Form, keys: dict[str, object], words: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    if form.kind == "PrefixTuningConfig":
        with quiet():
            config = peft.PrefixTuningConfig(**form.options, task_type="CAUSAL_LM")
            peft.get_peft_model(loaded(bases("llama")), config).save_pretrained(str(tmp_path / "adapter"))
    else:
        trained(bases(form.family), tmp_path / "adapter", form.config())
    edit(tmp_path / "adapter", **keys)
    with pytest.raises(UserError) as caught:
        merge_folders(bases(form.family), [tmp_path / "adapter"], MergeRule(), tmp_path / "out")
    assert words in str(caught.value)
    assert str(tmp_path / "adapter") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_adapter_of_another_model_or_with_a_changed_file_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    trained(bases("llama"), adapter, Form("", "llama", {}).config())
    factors = load_file(adapter / FACTORS)
    name = min(factors)

    def words(base: str = "llama") -> str:
        with pytest.raises(UserError) as caught:
            merge_folders(bases(base), [adapter], MergeRule(), tmp_path / "out")
        return str(caught.value)

    assert "can't be merged by peft" in words("gpt2")
    save_file({other: factor for other, factor in factors.items() if other != name}, adapter / FACTORS)
    assert "has no weights for" in words()
    save_file({**factors, name.replace("q_proj", "qq_proj"): factors[name].clone()}, adapter / FACTORS)
    assert "qq_proj" in words()
    save_file({**factors, name: factors[name] * float("inf")}, adapter / FACTORS)
    assert "holds numbers that aren't finite" in words()
    save_file({key: factor.int() for key, factor in factors.items()}, adapter / FACTORS)
    assert "holds whole numbers" in words()
    (adapter / FACTORS).write_bytes(b"torn")
    assert "can't be merged by peft" in words()
    (adapter / FACTORS).rename(adapter / "adapter_model.bin")
    assert "has no adapter_model.safetensors; save it again" in words()


def test_one_layer_of_the_base_is_in_memory_at_a_time(bases: Callable[[str], Path], tmp_path: Path) -> None:
    form = Form("", "llama", {**ALL, "use_dora": True})
    trained(bases("llama"), tmp_path / "adapter", form.config())
    adapter, start = Adapter(tmp_path / "adapter", str(bases("llama"))), Tensors(bases("llama"))
    adapter.check(start)

    def held() -> int:
        return sum(weight.numel() for weight in adapter._root.parameters() if weight.device.type != "meta")

    factors, changed = held(), 0
    for name in sorted(start.shapes):
        changed += adapter.change(name, start[name]) is not None
        assert held() <= factors
        assert not adapter._changes
    assert changed == 14, "every linear layer of both blocks"
    assert held() == 0
