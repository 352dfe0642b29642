"""What is known of a model, for people: one screen."""

from typing import Any

_SYSTEM = {
    "yes": "taken",
    "none": "not known to the template: put at the head of the user's words",
    "own": "taken; without one the template writes its own, so an empty one is given",
}
_BOS = {
    "template": "written by the template",
    "tokenizer": "not written by the template, so prompts have none",
    "none": "none",
}
_PROMPT = {
    "open": "prompts end within thoughts",
    "closed": "prompts end behind an empty block",
    "absent": "the model opens a block itself",
}


def described(info: dict[str, Any]) -> str:
    """`omni_thinker.policy.describe.describe` in lines of "what: value"."""
    memory = info["memory_gb"]
    lora = "" if memory["lora_rank_16"] is None else f", {memory['lora_rank_16']:.2g} GB with LoRA of rank 16"
    lines = {
        "name": info["name"],
        "folder": info["folder"] or "none: a name of the hub",
        "architecture": f"{info['architecture']}, {info['parameters']:,} parameters, {info['layers']} layers",
        "vocabulary": f"{info['vocabulary']:,} tokens",
        "context": "no end named" if info["context"] is None else f"{info['context']:,} tokens",
        "dtype": f"{info['dtype']}; computed in {info['compute_dtype']}",
        "turn end": _turn_end(info),
        "stop tokens": " ".join(info["stop_tokens"]),
        "system turn": _SYSTEM[info["system"]],
        "date": "printed: fixed at a run's start (model.date)" if info["prints_date"] else "not printed",
        "first token": _BOS[info["bos"]],
        "answers follow": repr(info["generation_prompt"]),
        "thoughts": _thoughts(info["thinks"]),
        "paths": _paths(info["paths"]),
        "memory": f"{memory['whole_weights']:.2g} GB to train all weights{lora}; activations come on top",
        "licence": info["licence"],
        "source": info["source"],
    }
    return "\n".join(f"{key}: {value}" for key, value in lines.items())


def _turn_end(info: dict[str, Any]) -> str:
    if info["stop_text"]:
        return f"the text {info['stop_text']!r}"
    return info["turn_end"] or "none: the tokenizer's end"


def _thoughts(thinks: dict[str, Any] | None) -> str:
    if thinks is None:
        return "none known"
    marks = f"{thinks['open']} ... {thinks['close']}"
    if not thinks["template"]:
        return f"{marks}, in the vocabulary alone"
    switch = f"; template_options.{thinks['switch']} turns them off" if thinks["switch"] else ""
    return f"{marks}; {_PROMPT[thinks['prompt']]}{switch}"


def _paths(paths: dict[str, Any] | None) -> str:
    if paths is None:
        return "not tried (--prove does)"
    if "refused" in paths:
        return f"refused: {paths['refused']}"
    left_out = f"; left out: {', '.join(paths['left_out'])}" if paths["left_out"] else ""
    return f"training {paths['training']}, sampling {paths['sampling']}{left_out} (docs/models.md)"
