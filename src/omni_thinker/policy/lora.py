"""LoRA (arXiv 2106.09685) by the peft library, an extra."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from omni_thinker.errors import UserError
from omni_thinker.models.quiet import quiet
from omni_thinker.recipe import LoraSpec


def add_lora(model: PreTrainedModel, spec: LoraSpec) -> Any:
    """Wrap `model` so that only low-rank factors train, in fp32. Raises UserError where peft is missing."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("LoRA needs peft: pip install 'omni-thinker[lora]'", key="model.lora") from None
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with quiet():
            return get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as exc:
        raise UserError(str(exc), key="model.lora.targets") from None
