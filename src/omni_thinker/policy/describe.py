"""What a model is and how it would be trained here: its words, its thoughts, its paths, its memory."""

from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.models.chat import load_chat
from omni_thinker.models.info import model_info
from omni_thinker.models.load import compute_device, compute_dtype, empty_model, load_model
from omni_thinker.models.think_form import think_form
from omni_thinker.policy.lora import add_lora
from omni_thinker.policy.proof.chosen import Proven
from omni_thinker.policy.proof.prove import Paths
from omni_thinker.recipe import LoraSpec, ModelSpec

PROVED_PARAMETERS = 2_000_000_000
"""Models of up to so many parameters are loaded and tried unasked: 4 to 8 GB."""
_TRAINED = 4 + 4 + 8
"""Bytes of a trained number: its fp32 master, that one's gradient, and two moments of AdamW."""


def describe(name: str, *, prove: bool | None = None) -> dict[str, Any]:
    """What `omni-thinker model info` prints. `prove`: load the weights and try the model; None: if it is small enough.

    Raises UserError as `omni_thinker.models.load.resolve` does."""
    info = model_info(name)
    chat = load_chat(ModelSpec(name=name))
    facts, form = chat.facts, think_form(chat)
    words: dict[str, Any] = {
        "turn_end": chat.tokenizer.decode(list(facts.turn_end)),
        "stop_text": facts.stop_text,
        "system": facts.system,
        "prints_date": facts.prints_date,
        "bos": facts.bos,
        "generation_prompt": facts.generation_prompt,
        "thinks": None,
    }
    if form is not None:
        words["thinks"] = {
            "open": form.open.text,
            "close": form.close.text,
            "prompt": form.state(chat.prompt_text("?")),
            "template": form.template,
            "switch": form.switch,
        }
    small = info["parameters"] <= PROVED_PARAMETERS
    paths = _paths(name) if prove or (prove is None and small) else None
    return {**info, **words, "memory_gb": _memory(name, info["parameters"]), "paths": paths}


def _paths(name: str) -> dict[str, Any]:
    """The paths that were proved, or why there are none."""
    device = compute_device()
    try:
        paths: Paths = Proven(load_model(name, compute_dtype("auto", device)).to(device)).paths(1)  # type: ignore[arg-type]
    except UserError as exc:
        return {"refused": exc.message}
    return {"training": paths.layout, "sampling": paths.decoder, "left_out": list(paths.notes)}


def _memory(name: str, parameters: int) -> dict[str, float | None]:
    """Gigabytes for weights, masters, gradients, moments and the frozen start. Activations and caches come on top."""
    size = compute_dtype("auto", compute_device()).itemsize
    try:
        adapted = add_lora(empty_model(name), LoraSpec())
        factors = sum(param.numel() for param in adapted.parameters() if param.requires_grad)
        lora = round((parameters * size + factors * (4 + 4 + _TRAINED)) / 1e9, 4)
    except UserError:  # no peft, or nothing to adapt
        lora = None
    return {"whole_weights": round(parameters * (2 * size + _TRAINED) / 1e9, 4), "lora_rank_16": lora}
