"""A trained adapter, fetched from a service as a folder that peft loads."""

import io
import json
import tarfile
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError
from safetensors.torch import load

from omni_thinker.errors import UserError

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_TIMEOUT_S = 600
_NO_ADAPTER = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RecursionError),
    *(tarfile.TarError, zlib.error, HTTPException, SafetensorError),
)
"""What comes of an archive that is cut off, or is something else."""


def fetch_adapter(url: str, folder: Path, base: str) -> None:
    """Write the archive at `url` into `folder`. `base`: the model that the adapter belongs to, where peft looks for it.

    Layers are named in its settings: without them peft would take those that it thinks usual, and leave out the rest.
    Raises UserError where the archive can't be had, or holds no adapter."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"the service's archive has no address on the web: {url:.80}", key="engine.tinker.url")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:  # noqa: S310 - where the service says
            archive = io.BytesIO(reply.read())
        with tarfile.open(fileobj=archive) as packed:
            found = {PurePosixPath(member.name).name: member for member in packed.getmembers() if member.isfile()}
            parts = {name: packed.extractfile(found[name]) for name in (_WEIGHTS, _CONFIG)}
            held = {name: part.read() for name, part in parts.items() if part is not None}
        settings = dict(json.loads(held[_CONFIG]))
        names = [name for name in load(held[_WEIGHTS]) if ".lora_A" in name]
    except _NO_ADAPTER as exc:
        raise UserError(f"the service's archive holds no adapter: {exc}", key="engine.tinker.url") from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _WEIGHTS).write_bytes(held[_WEIGHTS])
    layers = sorted({name.partition(".lora_A")[0].rpartition(".")[2] for name in names})
    settings |= {"target_modules": layers, "base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
