"""What can be said of a model without its weights."""

from pathlib import Path
from typing import Any

from omni_thinker.models.chat import load_chat
from omni_thinker.models.home import MANIFEST
from omni_thinker.models.load import compute_dtype, empty_model, json_table, load_config, resolve
from omni_thinker.recipe import ModelSpec


def model_info(name: str) -> dict[str, Any]:
    """What `omni-thinker model info` prints. Reads no weights. Raises UserError as `resolve` does."""
    where = resolve(name)
    config = load_config(where)
    chat = load_chat(ModelSpec(name=name))
    model = empty_model(name)
    manifest = json_table(Path(where) / MANIFEST)
    text = config.get_text_config()
    return {
        "name": name,
        "folder": str(where) if isinstance(where, Path) else None,
        "architecture": type(model).__name__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "layers": getattr(text, "num_hidden_layers", None),
        "vocabulary": getattr(text, "vocab_size", None),
        "context": getattr(text, "max_position_embeddings", None),
        "dtype": str(config.dtype or "unknown").removeprefix("torch."),
        "compute_dtype": str(compute_dtype("auto")).removeprefix("torch."),
        "stop_tokens": [chat.tokenizer.convert_ids_to_tokens(end) or f"number {end}" for end in chat.facts.stop_ids],
        "licence": manifest.get("licence") or _card_licence(where) or "unknown",
        "source": manifest.get("source") or ("folder" if isinstance(where, Path) else "hub"),
    }


def _card_licence(where: Path | str) -> str | None:
    try:
        lines = (Path(where) / "README.md").read_text("utf-8", "replace").splitlines()[:60]
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)
