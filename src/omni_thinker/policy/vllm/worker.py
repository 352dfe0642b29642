"""What runs within vLLM's workers: taking new weights, and saying which weights are there.

vLLM mixes the class into its own worker (`--worker-extension-cls omni_thinker.policy.vllm.worker.Weights`) and calls it
by name. So this module imports nothing of vLLM, and the rest of the package is no part of a worker."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

EXTENSION = f"{__name__}.Weights"
"""The class as vLLM wants it named."""


_LOOK_S = 1.0
"""How often a worker looks whether the study is there."""


class Weights:
    """Methods that are added to vLLM's worker. Names begin with omni_: vLLM refuses those that it has itself."""

    model_runner: Any
    vllm_config: Any
    reload_weights: Any
    _omni_version: int = 0

    def omni_describe(self) -> dict[str, Any]:
        """What the trainer must know of the engine before it relies on it."""
        model, lora = self.vllm_config.model_config, self.vllm_config.lora_config
        return {
            "model": str(model.model),
            "logprobs": str(model.logprobs_mode),
            "longest": int(model.max_model_len),
            "vocabulary": int(model.get_vocab_size()),
            "lora_rank": 0 if lora is None else int(lora.max_lora_rank),
        }

    def omni_end_with(self, study: int) -> None:
        """End this worker and its engine with the process `study`: one that is killed can't end them, and vLLM 0.32
        would go on holding its memory."""
        threading.Thread(target=end_with, args=(study, os.getppid()), name="omni-study", daemon=True).start()

    def omni_load(self, folder: str, version: int) -> None:
        """Load all weights of a Hugging Face folder in place, and call them `version`."""
        self.reload_weights(weights_iterator=_tensors(Path(folder)))
        self._pack_again()
        self._omni_version = int(version)

    def _pack_again(self) -> None:
        """On a CPU matrix products read a packed copy of their weight. vLLM 0.32 packs again what was named in the
        files, but not a head that is tied to the embedding: it would go on with the copy of the first weights."""
        for layer in self.model_runner.get_model().modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)

    def omni_weights(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """The version that was loaded last, and what its weights are made of: kind and number by name for all that can
        be read, and for `names` the sum of their bits."""
        tensors = dict(self.model_runner.get_model().named_parameters())
        # Engines on a CPU pack what matrix products read into a form of their own, and keep an empty tensor.
        kept = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
        return {
            "version": self._omni_version,
            "kinds": {name: [_kind(tensor), tensor.numel()] for name, tensor in kept.items()} if not names else {},
            "sums": {name: bits(kept[name]) for name in names if name in kept},
        }

    def omni_adapters(self) -> dict[str, list[Any]]:
        """Kind and sum of bits of the factors of each LoRA adapter that is loaded, by its number."""
        adapters = self.model_runner.lora_manager._adapter_manager.list_adapters()
        found: dict[str, list[Any]] = {}
        for number, adapter in adapters.items():
            factors = [x for layer in adapter.loras.values() for x in (*_flat(layer.lora_a), *_flat(layer.lora_b))]
            found[str(number)] = [_kind(factors[0]), sum(map(bits, factors))]
        return found


def bits(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits, read as whole numbers: it doesn't depend on their order, zeros don't count, and sums
    of parts add up to the sum of the whole."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.int8}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(kind).sum(dtype=torch.int64))


def end_with(study: int, engine: int) -> None:
    """End this process once the process `study` has ended, and before it `engine`, where that is another's child."""
    while _lives(study):
        time.sleep(_LOOK_S)
    if engine != study and os.getppid() == engine:
        with suppress(OSError):
            os.kill(engine, signal.SIGKILL)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # of a system without /proc, or of another user
        return True


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tensors.get_tensor(name)


def _flat(factors: Any) -> list[torch.Tensor]:
    """Factors of layers that vLLM joins come as a list, with None where one has none."""
    return [factor for factor in (factors if isinstance(factors, list) else [factors]) if factor is not None]


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
