"""A tiny random model of any architecture that transformers maps to a causal LM.

A configuration's defaults are brought down by the names of its settings; what a family needs besides stands in
`OWN`. Unknown families are tried by the names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 512
LAYERS = 4
WINDOW = 8
_CONTEXT = 128
_SPREAD = 0.3
"""Standard deviation of weights that make logits and attention as sharp as training does."""
_UNSAID = ("transformers_version", "architectures", "_name_or_path", "model_type", "per_layer_config")
_KEPT = re.compile(r"A_log|dt_|conv|time_|norm|bias|position|rotary|router_scale|layer_scal|sinks|inv_freq|decay")
"""Weights whose size means something of its own."""

SIZES: tuple[tuple[int, str], ...] = (
    (VOCABULARY, r"(padded_)?vocab_size(_per_layer_input)?"),
    (
        _CONTEXT,
        r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len|seq_length"
        r"|max_sequence_length",
    ),
    (
        WINDOW,
        r"(sliding|attention|local|attn)_?(window|chunk)(_size|_length)?|window_size|local_attention|index_topk"
        r"|floor_scale|index_(local|init)?_?blocks?|.*block_topk|(index_)?block_size|compress_ratio|(mamba_|ssd_)?chunk_size",
    ),
    (
        48,
        r".*(intermediate|ffn_hidden|ffn|feed_forward|ff|mlp_hidden)_(size|dim)|n_inner|d_ff|d_inner|.*ffn_dim"
        r"|ffn_embed_dim|intermediate_size_mlp|expert_hidden_size|moe_latent_size|shared_expert_intermediate_size",
    ),
    (
        32,
        r"hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|word_embed_proj_dim|hidden_dim|model_dim"
        r"|attention_hidden_size|lru_width|adapter_in(put)?_(dim|size)",
    ),
    (16, r"index(er)?_(n_|num_)?heads|index_head_dim|qk_head_dim|(q|kv|o|index_q)_lora_rank"),
    (LAYERS, r"(encoder_|decoder_)?(hidden_|n_|num_)?layers?|num_hidden_layers|n_layer|num_(decoder|encoder)_layers"),
    (
        4,
        r"(encoder_|decoder_)?(num_|n_)?(attention_|attn_|query_)?heads?|n_head|num_attention_heads"
        r"|(swa|cross)_num_attention_heads|linear_num_value_heads|(mamba_)?time_step_rank|mamba_dt_rank"
        r"|(num|n|moe_num|num_local|n_routed|moe_num_)_?(routed_)?experts|num_local_experts|ffn_num_experts",
    ),
    (
        8,
        r"hidden_size_per_layer_input|(global_|swa_|v_|qk_nope_|qk_rope_|swa_v_|nope_|rope_)?head_dim|kv_channels|d_kv|d_head|rotary_dim"
        r"|mamba_num_heads|n_mamba_heads|mamba_n_heads|num_mamba_heads|mamba_d_head|mamba_head_dim"
        r"|(mamba_|ssm_)?(d_state|state_size)|linear_(key|value)_head_dim",
    ),
    (
        2,
        r"num_kv_shared_layers|(num_|n_)(swa_)?(key_value|kv|key_value_attention)_heads?|num_kv|swa_num_key_value_heads"
        r"|multi_query_group_num|linear_num_key_heads|(attn|expert)_layer_period"
        r"|num_experts_per_(tok|token)|num_experts_per_topk|moe_(top_?k|k)|top_k_experts|expert_top_k|top_k|moe_router_topk",
    ),
    (
        1,
        r"n_group|topk_group|n_shared_experts|num_shared_experts|num_expert_group|mamba_n_groups|n_groups"
        r"|first_k_dense_replace|(attn|expert)_layer_offset",
    ),
    (0, r"num_(nextn_predict|mtp)_layers"),
)
"""What a setting becomes, by its name. Indexers have many heads: with few, scores are often equal, and which of equal
ones are chosen depends on the length of the row."""

_ROPES = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("full_attention", "sliding_attention")}
OWN: dict[str, dict[str, Any]] = {
    "bert": {"is_decoder": True},
    "bert-generation": {"is_decoder": True},
    "big_bird": {"is_decoder": True},
    "camembert": {"is_decoder": True},
    "data2vec-text": {"is_decoder": True},
    "electra": {"is_decoder": True},
    "ernie": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "rembert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "roberta-prelayernorm": {"is_decoder": True},
    "roc_bert": {"is_decoder": True},
    "roformer": {"is_decoder": True},
    "xlm-roberta": {"is_decoder": True},
    "xlm-roberta-xl": {"is_decoder": True},
    "xmod": {"is_decoder": True},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 2,
        "indexer_head_dim": 8,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 4,
    },
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": _ROPES, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "rope_parameters": None,
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_qk_rope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "max_window_layers": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "mistral": {"sliding_window": WINDOW},
}
"""What a family needs besides, and what makes it itself: encoders as decoders, windows that are off by default."""


def families() -> list[str]:
    """Every model type that the installed transformers maps to a causal LM."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> PretrainedConfig:
    """A small configuration of a family. Raises whatever transformers does where it can't be made."""
    config_class: Any = CONFIG_MAPPING[family]
    settings = _smaller(config_class().to_dict())
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings |= OWN.get(family, {})
    config: PretrainedConfig = config_class(**settings)
    return config


def tiny_model(family: str, *, spread: bool, seed: int = 0) -> PreTrainedModel:
    """A small random model in fp32; `spread`: with weights as sharp as a trained model's."""
    config = tiny_config(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model = model.float().eval()
    if spread:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim > 1 and not _KEPT.search(name) and (width := float(weight.std())) > 0:
                    weight.mul_(_SPREAD / width)
    return model


def _smaller(settings: Mapping[str, Any]) -> dict[str, Any]:
    layers = next((settings[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in settings), None)
    smaller = {key: _small(key, value, layers) for key, value in settings.items() if key not in _UNSAID}
    for key, size in (("num_key_value_heads", 2), ("head_dim", 8)):
        if key in smaller and smaller[key] is None:
            smaller[key] = size
    if "kv_lora_rank" in smaller:  # latents are made into keys of every head
        smaller["num_key_value_heads"] = smaller.get("num_attention_heads")
    return smaller


def _small(key: str, value: Any, layers: object) -> Any:
    if isinstance(value, dict):
        return _sections(key, value)
    if isinstance(value, list) and isinstance(layers, int) and len(value) == layers:
        kinds = list(dict.fromkeys(map(_hashable, value)))
        return [_small(key, kinds[n % len(kinds)], None) for n in range(LAYERS)]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if re.search(r"token_i(d|ndex)$", key):
        return value if value < VOCABULARY else VOCABULARY - 1 - value % 64
    return next((size for size, names in SIZES if re.fullmatch(names, key)), value)


def _sections(key: str, value: dict[str, Any]) -> dict[str, Any]:
    if key in ("id2label", "label2id"):
        return {}
    smaller = _smaller(value)
    if "mrope_section" in smaller:
        smaller["mrope_section"] = [2, 1, 1]
    return smaller | OWN.get(str(value.get("model_type")), {})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
