"""Adapters as experts: what they add to the weights, as peft merges them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from omni_thinker.baselines.tensors import Tensors
from omni_thinker.errors import UserError
from omni_thinker.models.load import empty_model
from omni_thinker.models.quiet import quiet

CONFIG, FACTORS = "adapter_config.json", "adapter_model.safetensors"
MERGED = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "LN_TUNING", "TRAINABLE_TOKENS")
"""The kinds whose merge by this class equals peft's own (tests/test_adapters.py)."""
_RESIDUAL = {"pissa": "pissa_init", "olora": "olora_init"}
"""Initialisations that move a part of the base weights into the factors, with peft's methods that move it again."""
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica", *_RESIDUAL)
_NAME = "default"


class Adapter:
    """An expert that changed the start through an adapter: a folder as peft writes it.

    peft lays the adapter over a model without weights. Then it merges one layer at a time, into zeros where the change
    doesn't depend on the weights, else into the start's weights in fp32. So the adapter and one layer are in memory.

    An adapter is merged once. Raises UserError where peft can't merge it, or would merge something else than what was
    trained."""

    def __init__(self, folder: Path, base: str) -> None:
        """`base`: name of the model that the adapter belongs to; only its config is read."""
        self.path = folder
        self._init = _checked(folder)
        with _by_peft(folder):
            model = empty_model(base).float()
            self._tied = _tied(model)
            self._prefix = f"{model.base_model_prefix}."
            self._root = _adapted(model, folder).base_model.model
        self._layers = dict(_layers(self._root))
        self._at: dict[str, str] = {}
        """Name of a stored tensor -> the layer that changes it, "" for what is replaced outside of layers."""
        self._changes: dict[str, tuple[torch.Tensor, bool]] = {}
        """Name of a stored tensor -> its change, or what replaces it and True."""

    def check(self, start: Tensors) -> None:
        self._start = start
        for path, layer in list(self._layers.items()):
            if self._follows(path, layer):
                del self._layers[path]
                continue
            self._whole(path, layer)
            self._expect(path, {f"{path}.{name}": weight for name, weight in _base(layer).named_parameters()})
        loose = {
            name: weight.detach()
            for name, weight in self._root.named_parameters()
            if weight.device.type != "meta" and not any(name.startswith(f"{path}.") for path in self._layers)
        }
        self._expect("", loose)
        for name, weight in loose.items():
            self._keep(name, weight, whole=True)

    def change(self, name: str, origin: torch.Tensor) -> torch.Tensor | None:
        if (path := self._at.get(name)) is None:
            return None
        if path in self._layers:
            with torch.no_grad(), _by_peft(self.path):
                self._merge(path, self._layers.pop(path))
        if name not in self._changes:
            return None
        tensor, whole = self._changes.pop(name)
        return tensor.float() - origin.float() if whole else tensor

    def _expect(self, path: str, weights: Mapping[str, torch.Tensor]) -> None:
        """Note where the weights of a layer are stored. Raises UserError where the start lacks one of that shape."""
        for name, weight in weights.items():
            for stored, like in self._stored(name, torch.empty_like(weight, device="meta")).items():
                if list(like.shape) != list(self._start.shapes[stored]):
                    raise UserError(f"has another shape than {self._start.path} at {stored!r}", file=self.path)
                self._at[stored] = path

    def _stored(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A tensor under the names that the start has, which a mixture of experts stores one by one.

        Raises UserError where there are none."""
        for stored in (name, name.removeprefix(self._prefix)):
            if stored in self._start.shapes:
                return {stored: tensor}
        parts: dict[str, torch.Tensor] = {}
        with _by_peft(self.path):
            from transformers.core_model_loading import revert_weight_conversion

            parts = revert_weight_conversion(self._root, {name: tensor})
        if not parts or not set(parts) <= set(self._start.shapes):
            raise UserError(f"adapts {name!r}, which {self._start.path} doesn't have", file=self.path)
        return parts

    def _follows(self, path: str, layer: torch.nn.Module) -> bool:
        """Has a layer no weights of its own, but those of another, which changes them in the same way?

        Raises UserError where it has another's, so that a merge would change both, and training changed one."""
        tied = [name for name, _ in _base(layer).named_parameters() if f"{path}.{name}" in self._tied]
        tokens = getattr(layer, "token_adapter", layer)
        if tied and not hasattr(tokens, "trainable_tokens_delta"):
            remedy = "untie the start first: tie_word_embeddings = false in its config.json, and both weights saved"
            raise UserError(f"adapts {path!r}, whose weights are tied to another layer's; {remedy}", file=self.path)
        stored = any(f"{path}.{name}" in self._start.shapes for name in tied)
        return bool(tied) and not stored and getattr(tokens, "tied_adapter", None) is not None

    def _whole(self, path: str, layer: torch.nn.Module) -> None:
        """Raises UserError where the file lacks weights of the adapter, or has some that are no parameters."""
        base = {id(weight) for weight in _base(layer).parameters()}
        for name, weight in layer.named_parameters():
            if weight.device.type == "meta" and id(weight) not in base:
                raise UserError(f"has no weights for '{path}.{name}'", file=self.path)
        for name, buffer in layer.named_buffers():
            if "modules_to_save" in name and buffer.device.type != "meta":
                raise UserError(f"saved '{path}.{name}', which isn't trained by gradients", file=self.path)

    def _merge(self, path: str, layer: Any) -> None:
        base, adds = _base(layer), _adds(layer) and self._init not in _RESIDUAL
        given = {name for name, weight in base.named_parameters() if weight.device.type != "meta"}
        for name, weight in list(base.named_parameters()):
            if name not in given:
                origin = torch.zeros(weight.shape) if adds else self._origin(f"{path}.{name}")
                owner, _, leaf = name.rpartition(".")
                setattr(base.get_submodule(owner), leaf, torch.nn.Parameter(origin, requires_grad=False))
        if self._init in _RESIDUAL:
            _move_residual(layer, self._init)
        if hasattr(layer, "unload_and_optionally_merge_module"):
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            layer.merge()
            merged = layer.get_base_layer()
        for name, weight in merged.named_parameters():
            self._keep(f"{path}.{name}", weight.detach(), whole=not adds or name in given)
        self._root.set_submodule(path, torch.nn.Identity())  # frees the weights

    def _origin(self, name: str) -> torch.Tensor:
        stored = list(self._stored(name, torch.empty(0, device="meta")))
        if len(stored) > 1:
            raise UserError(f"depends on {name!r}, which {self._start.path} stores in parts", file=self.path)
        return self._start[stored[0]].float()

    def _keep(self, name: str, tensor: torch.Tensor, *, whole: bool) -> None:
        if whole or tensor.any():
            self._changes |= {stored: (part, whole) for stored, part in self._stored(name, tensor).items()}


def _checked(folder: Path) -> Any:
    """How an adapter's factors began. Raises UserError for what peft would merge wrongly, or not at all."""
    if not (folder / FACTORS).is_file():
        remedy = "save it again with save_pretrained; pickled weights are not read"
        raise UserError(f"has no {FACTORS}; {remedy}", file=folder)
    with _by_peft(folder):
        from peft import PeftConfig

        config: Any = PeftConfig.from_pretrained(str(folder))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in MERGED:
        raise UserError(f"is an adapter of the kind {kind}, which can't be merged", file=folder)
    given, known = json.loads((folder / CONFIG).read_text("utf-8")), vars(config)
    if news := [key for key, value in given.items() if value and key not in known and key != "peft_version"]:
        raise UserError(f"has {news[0]}, which the installed peft doesn't know; update peft", file=folder / CONFIG)
    for key in ("layer_replication", "alora_invocation_tokens", "arrow_config", "monteclora_config", "megatron_config"):
        if getattr(config, key, None):
            raise UserError(f"has {key}, so no weights alone can do what it does", file=folder / CONFIG)
    init = getattr(config, "init_lora_weights", True)
    if kind == "LORA" and init not in _INITS:
        remedy = "save it with path_initial_model_for_weight_conversion"
        raise UserError(
            f"began with {init!r}, which changed the base in a way that can't be redone; {remedy}", file=folder
        )
    return init


def _adapted(model: torch.nn.Module, folder: Path) -> Any:
    """The model under peft's layers, whose weights are the adapter's; the model's own have none."""
    from peft import PeftConfig, PeftModel
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    config: Any = PeftConfig.from_pretrained(str(folder))
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # what an initialisation did is redone where there are weights
    adapted = PeftModel(model, config, _NAME, low_cpu_mem_usage=True)
    names = getattr(model, "_checkpoint_conversion_mapping", None)
    weights = load_peft_weights(str(folder), "cpu", key_mapping=names)
    if whole := next((name for name, weight in weights.items() if not weight.is_floating_point()), None):
        raise UserError(f"{whole!r} holds whole numbers, which can't be added up", file=folder / FACTORS)
    # The first time nothing can be copied; it says which weights there must be room for.
    found: Any = set_peft_model_state_dict(adapted, dict(weights))
    if found.unexpected_keys:
        raise UserError(f"adapts {found.unexpected_keys[0]!r}, which the model doesn't have", file=folder)
    for name in adapted.state_dict().keys() - set(found.missing_keys):
        _make_room(adapted, name)
    set_peft_model_state_dict(adapted, weights)
    return adapted


def _make_room(model: torch.nn.Module, name: str) -> None:
    """Give a parameter or buffer of a model without weights memory, fp32."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    room = torch.empty(getattr(module, leaf).shape)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(room, requires_grad=False)
    else:
        module._buffers[leaf] = room


def _layers(root: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and layer of all that peft put in the place of a layer; of those within another, the outer one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    outer = None
    for path, module in root.named_modules():
        inside = outer is not None and path.startswith(f"{outer}.")
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            outer = path
            yield path, module


def _base(layer: Any) -> torch.nn.Module:
    """The layer that peft wrapped."""
    base: torch.nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
    return base


def _adds(layer: Any) -> bool:
    """Is what a layer adds the same whatever the weights are?"""
    from peft.tuners.lora import LoraLayer

    return isinstance(layer, LoraLayer) and not layer.lora_variant


def _move_residual(layer: Any, init: str) -> None:
    """Take from the base weight what its factors began as, as peft does when it loads such an adapter."""
    if not hasattr(layer, _RESIDUAL[init]) or _NAME not in layer.lora_A:
        return
    factors = layer.lora_A[_NAME], layer.lora_B[_NAME]
    trained = [factor.weight.data for factor in factors]
    getattr(layer, _RESIDUAL[init])(*((_NAME, init) if init == "pissa" else (_NAME,)))
    for factor, weight in zip(factors, trained, strict=True):
        factor.weight.data = weight


def _tied(model: Any) -> set[str]:
    """Names of the weights that several layers share."""
    heads = [model.get_input_embeddings(), model.get_output_embeddings()]
    if getattr(model.config, "tie_word_embeddings", False) and None not in heads:
        heads[1].weight = heads[0].weight  # not every version of transformers ties models without weights
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return {name for shared in names.values() if len(shared) > 1 for name in shared}


@contextmanager
def _by_peft(folder: Path) -> Iterator[None]:
    """Turns whatever peft and transformers raise about an adapter into one line."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as exc:
        why = " ".join(str(exc).split()) or type(exc).__name__
        why = f"there is no {why}" if isinstance(exc, KeyError) else why
        raise UserError(f"can't be merged by peft: {why:.300}", file=folder) from exc
