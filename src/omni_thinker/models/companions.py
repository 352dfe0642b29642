"""What lies beside the weights of a model: tokenizer, templates, settings of generation and processors, licence."""

from collections.abc import Container
from pathlib import Path

from omni_thinker.errors import UserError

TEMPLATES = "additional_chat_templates"
_WEIGHTS = ".safetensors .bin .pt .pth .ckpt .h5 .msgpack .gguf .onnx .ot .npz .pkl .pickle .tflite .zip .tar .gz"


def copy_companions(source: Path, out: Path, *, but: Container[str] = ()) -> None:
    """Copy what lies in the folder `source` into `out`, byte for byte: not weights or their index, adapters, code,
    hidden files and names in `but`. Raises UserError for what can't be read."""
    for path in sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")]):
        name = path.relative_to(source)
        other = path.suffix in _WEIGHTS.split() or path.suffix == ".py" or path.name.endswith(".index.json")
        if other or path.name.startswith((".", "adapter_")) or str(name) in but or not path.is_file():
            continue
        try:
            content = path.read_bytes()
        except OSError as exc:
            raise UserError(f"can't be read: {exc.strerror or exc}", file=path) from None
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
