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
_KEPT = re.compile(r"A_log|dt_|conv|time_|norm|bias|position|rotary|router_scale|layer_scal|sinks|inv_freq|decay")
"""Weights whose size means something of its own."""

SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|padded_vocab_size", VOCABULARY),
    (r"(sliding|attention|local|attn)_?(window|chunk)(_size|_length)?|window_size|local_attention|index_topk", WINDOW),
    (r"floor_scale|index_(local|init)?_?blocks?|.*block_topk|(index_)?block_size|compress_ratio", WINDOW),
    (r"(mamba_|ssd_)?chunk_size", WINDOW),
    (r"hidden_size|d_model|n_embd|dim|embed_dim|embedding_size|word_embed_proj_dim|hidden_dim|model_dim|attention_hidden_size|lru_width", 32),
    (r"(encoder_|decoder_)?(hidden_|n_|num_)?layers?|num_hidden_layers|n_layer|num_decoder_layers|num_encoder_layers", LAYERS),
    (r"num_(nextn_predict|mtp|kv_shared)_layers|num_kv_shared_layers", 0),
    (r"(encoder_|decoder_)?(num_|n_)?(attention_|attn_|query_)?heads?|n_head|num_attention_heads|(swa|cross)_num_attention_heads", 4),
    (r"(num_|n_)(swa_)?(key_value|kv|key_value_attention)_heads?|num_kv|swa_num_key_value_heads|n_kv_heads|multi_query_group_num", 2),
    (r"(global_|swa_|v_|qk_nope_|qk_rope_|swa_v_|nope_|rope_)?head_dim|kv_channels|d_kv|attention_key_value_channels", 8),
    (r"index_n_heads|index_num_heads|index_heads", 2),
    (r"index_head_dim", 16),
    (r"(q|kv|o|index_q)_lora_rank", 16),
    (r".*(intermediate|ffn_hidden|ffn|feed_forward|ff|mlp_hidden)_(size|dim)|n_inner|d_ff|.*ffn_dim|ffn_embed_dim", 48),
    (r"intermediate_size_mlp|expert_hidden_size|moe_latent_size|shared_expert_intermediate_size", 48),
    (r"(num|n|moe_num|num_local|n_routed|moe_num_)_?(routed_)?experts|num_local_experts|ffn_num_experts|n_routed_experts", 4),
    (r"num_experts_per_(tok|token)|num_experts_per_topk|moe_(top_?k|k)|top_k_experts|expert_top_k|top_k|moe_router_topk", 2),
    (r"n_group|topk_group|n_shared_experts|num_shared_experts|num_expert_group|mamba_n_groups|n_groups|first_k_dense_replace", 1),
    (r"mamba_num_heads|n_mamba_heads|mamba_n_heads|num_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_dim", 8),
    (r"(mamba_|ssm_)?(d_state|state_size)|state_size|ssm_state_size|mamba_d_ssm", 8),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key|value)_head_dim", 8),
    (r"(mamba_)?time_step_rank|mamba_dt_rank", 4),
    (r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len|seq_length|max_sequence_length", _CONTEXT),
    (r"(attn|expert)_layer_period", 2),
    (r"(attn|expert)_layer_offset", 1),
)  # fmt: skip
_SIZES = [(re.compile(pattern), size) for pattern, size in SIZES]

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
    "reformer": {"is_decoder": True},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
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
    for key in ("transformers_version", "architectures", "_name_or_path", "model_type"):
        settings.pop(key, None)
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
    return {key: _small(key, value, layers) for key, value in settings.items()}


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
    for pattern, size in _SIZES:
        if pattern.fullmatch(key):
            return size
    return value


def _sections(key: str, value: dict[str, Any]) -> dict[str, Any]:
    if key in ("id2label", "label2id"):
        return {}
    smaller = _smaller(value)
    if "mrope_section" in smaller:
        smaller["mrope_section"] = [2, 1, 1]
    return smaller


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
