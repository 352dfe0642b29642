"""LoRA (arXiv 2106.09685) by the peft library, an extra."""

from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.errors import UserError
from omni_thinker.models.quiet import quiet
from omni_thinker.recipe import LoraSpec


def add_lora(model: PreTrainedModel, spec: LoraSpec, *, seed: int = 0, key: str = "model.lora") -> Any:
    """Wrap `model` so that only low-rank factors train, in fp32; `seed` draws them, and leaves torch's own be.

    Raises UserError where peft is missing, where the model has no such targets, and where one of them is an embedding
    that is the output head too, naming `key`."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("LoRA needs peft: pip install 'omni-thinker[lora]'", key=key) from None
    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as exc:
        raise UserError(str(exc), key=f"{key}.targets") from None
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]
    if getattr(model.config, "tie_word_embeddings", False) and any(hasattr(head, "lora_A") for head in heads):
        # One weight serves both, and an adapter changes one of them: no weights that are merged could do the same.
        raise UserError("name the embedding or the head, which this model ties; leave them out", key=f"{key}.targets")
    return adapted
