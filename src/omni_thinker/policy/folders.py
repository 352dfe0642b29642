"""Files and folders of trained weights, in the formats of Hugging Face's libraries."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from omni_thinker.errors import UserError
from omni_thinker.models.companions import copy_companions
from omni_thinker.models.home import MANIFEST
from omni_thinker.models.load import resolve
from omni_thinker.models.quiet import quiet


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises UserError for one that is missing, damaged, or of another model."""
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError, RuntimeError) as exc:
        raise UserError(f"these weights can't be read: {exc}", file=path) from None


def write_folder(
    model: PreTrainedModel, path: Path, tokenizer: Tokenizer, name: str, *, merge: bool = False, **options: Any
) -> None:
    """Write `model` in its own dtype, with LoRA factors merged in where `merge`; `options` are those of
    `save_pretrained`.

    Settings of generation and what else lay beside the weights of the folder `name` come along as they were."""
    path.mkdir(parents=True, exist_ok=True)
    whole: Any = model
    if merge:
        whole = copy.deepcopy(whole).merge_and_unload()
    with quiet():
        whole.save_pretrained(path, **options)
        tokenizer.save_pretrained(path)
    if isinstance(source := resolve(name), Path):
        written = {str(file.relative_to(path)) for file in path.rglob("*")} - {"generation_config.json"}
        copy_companions(source, path, but={*written, MANIFEST, "README.md"})


def write_adapter(model: PreTrainedModel, path: Path, name: str) -> None:
    """Write the LoRA factors alone, as a folder that peft reads, which names the model that they belong to."""
    adapted: Any = model
    if isinstance(source := resolve(name), Path):
        adapted.peft_config["default"].base_model_name_or_path = str(source.absolute())
    with quiet():
        adapted.save_pretrained(path)
