"""From a model's name to a checked folder, its tokenizer and its weights.

A name is `builtin`, `tiny`, a folder in Hugging Face format, or a hub name. `tinker:NAME` is NAME with weights at a
training service, so its folder may lack them. Folders never touch the network; the hub is
asked only for hub names (and not even then with HF_HUB_OFFLINE=1). Code from a hub is never run, pickles never read."""

import json
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from omni_thinker.errors import UserError
from omni_thinker.models.builtin import builtin_folder, builtin_ready, fetch_builtin
from omni_thinker.models.gguf import Say, gguf_folder
from omni_thinker.models.memory import bound_kernel_caches, keep_freed_memory
from omni_thinker.models.quiet import quiet
from omni_thinker.models.tiny import tiny_in_cache
from omni_thinker.recipe.engines.tinker import PREFIX, served_name

DtypeName = Literal["auto", "float32", "bfloat16"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_DEQUANTISED = ("mxfp4",)
"""Kinds of quantised weights that transformers turns into plain ones on any machine."""


def resolve(name: str, *, say: Say = print) -> Path | str:
    """The folder of `name`, or `name` itself where only a hub can know it. Fetches `builtin` when it is missing, and
    converts GGUF files.

    Raises UserError for a folder that lacks its config, its weights or its tokenizer, and for adapters."""
    served, name = name.startswith(PREFIX), served_name(name)
    if name == "builtin":
        return builtin_folder() if builtin_ready() else fetch_builtin(say=say)
    if name == "tiny":
        return tiny_in_cache()
    if not name.strip():
        raise UserError("a model needs a name: builtin, tiny, a folder or a hub name", key="model.name")
    try:
        folder = Path(name).expanduser()
        folder.exists()
    except (OSError, RuntimeError) as exc:  # too long, not to be looked into, or of a user that isn't there
        raise UserError(f"can't be a folder: {exc.strerror if isinstance(exc, OSError) else exc}", file=name) from None
    if folder.suffix == ".gguf" and folder.is_file():
        folder = gguf_folder(folder, say=say)
    if folder.is_dir():
        _check_folder(folder, weights=not served)
        return folder
    # A hub name has at most one slash and doesn't look like a path; anything else is a folder that isn't there.
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError("no such model folder", file=name)
    return name


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer. Raises UserError naming what is missing and the remedy."""
    where = resolve(name)
    try:
        with quiet():
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(where, **_local(where))
    except Exception as exc:
        raise _load_error(where, "tokenizer", exc) from exc
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json", file=name)
    return tokenizer


def load_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model on the CPU in eval mode, without dropout. Raises UserError as `resolve` does."""
    bound_kernel_caches()
    keep_freed_memory()
    where = resolve(name)
    config = _without_dropout(load_config(where))
    try:
        with quiet():
            model = _from_pretrained(where, config, dtype)
    except Exception as exc:
        raise _load_error(where, "model", exc) from exc
    model.eval()
    return model


def empty_model(name: str) -> PreTrainedModel:
    """The model without its weights: names and shapes alone, which take no memory. Raises UserError as `resolve`."""
    where = resolve(name)
    config = load_config(where)
    try:
        with torch.device("meta"), quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except Exception as exc:  # of what its configuration says, or of no causal language model at all
        raise _load_error(where, "model", exc) from exc
    return model


def settings(folder: Path) -> dict[str, Any]:
    """A model's config as its class knows it, defaults filled in. Raises UserError where it can't be read."""
    config = load_config(folder)
    known = type(config)().to_dict().keys() | {"quantization_config"}
    return {key: value for key, value in config.to_dict().items() if key in known}


def compute_device(spec: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """Raises UserError where a GPU is asked for and torch finds none."""
    has_gpu = torch.cuda.is_available()
    if spec == "cuda" and not has_gpu:
        raise UserError('torch finds no GPU; install a CUDA build of torch, or use "cpu"', key="model.device")
    return torch.device("cuda" if has_gpu and spec != "cpu" else "cpu")


def compute_dtype(spec: DtypeName, device: torch.device | None = None) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively (elsewhere it is slower), else float32."""
    if spec == "auto":
        on_gpu = device is not None and device.type == "cuda"
        native = torch.cuda.is_bf16_supported() if on_gpu else _native_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if spec == "bfloat16" else torch.float32


def end_ids(name: str) -> tuple[int, ...]:
    """Tokens that end a text by generation_config.json, or where that is missing by config.json.

    Raises UserError where these name something else than tokens."""
    where = resolve(name)
    try:
        with quiet():
            config = GenerationConfig.from_pretrained(where, local_files_only=isinstance(where, Path))
    except Exception:  # missing or damaged, which loading the model finds
        config = GenerationConfig.from_model_config(load_config(where))
    named = config.eos_token_id
    ends = named if isinstance(named, list) else [] if named is None else [named]
    if bad := [end for end in ends if not isinstance(end, int) or end < 0]:
        raise UserError(
            f"must be a token's number, or a list of them, got {bad[0]!r:.60}", file=name, key="eos_token_id"
        )
    return tuple(ends)


def _check_folder(folder: Path, *, weights: bool) -> None:
    def lacks(what: str, remedy: str) -> UserError:
        return UserError(f"the model folder has no {what}; {remedy}", file=folder)

    _check_kind(folder)
    if not (folder / "config.json").is_file():
        raise lacks("config.json", "point model.name at a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise lacks("tokenizer", "save the model's tokenizer into it with tokenizer.save_pretrained")
    if weights and not any(folder.glob("*.safetensors")):
        raise lacks("weights in safetensors format", "save it again with save_pretrained; pickled weights are not read")


def _check_kind(folder: Path) -> None:
    """Raises UserError for folders that hold something else than one model."""
    if (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            raise UserError("holds an adapter beside a model; move the files adapter_* elsewhere", file=folder)
        base = json_table(folder / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        remedy = f"merge it first: omni-thinker merge {quote(str(base))} {quote(str(folder))} --out NEW"
        raise UserError(f"is an adapter, not a model; {remedy}", file=folder)
    if (folder / "snapshots").is_dir() and not (folder / "config.json").is_file():
        raise UserError("is a cache of the hub; name one of the folders below its snapshots", file=folder)
    if not any(folder.glob("*.safetensors")) and (files := sorted(folder.glob("*.gguf"))):
        raise UserError(f"holds GGUF files; name one of them, such as {files[0]}", file=folder)


def json_table(file: Path) -> dict[str, Any]:
    """A table in a file; empty where there is none."""
    try:
        table = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _local(where: Path | str) -> dict[str, Any]:
    return {"trust_remote_code": False, "local_files_only": isinstance(where, Path)}


def load_config(where: Path | str) -> PretrainedConfig:
    """What config.json says, of a folder or name that `resolve` gave. Raises UserError where it can't be read."""
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(where, **_local(where))
    except Exception as exc:
        raise _load_error(where, "config.json", exc) from exc
    if quantised := config.to_dict().get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        if method not in _DEQUANTISED:
            why = f"its weights are quantised ({method or 'unknown'}), so they can't be trained"
            raise UserError(f"{why}; name the model that it was made of", file=where)
    return config


def _without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    # RL compares log-probs of two passes over the same tokens: noise between them would look like a policy change.
    for section in {id(section): section for section in (config, config.get_text_config())}.values():
        for key, value in section.to_dict().items():
            if isinstance(value, float) and (("drop" in key) or key.endswith("pdrop")):
                setattr(section, key, 0.0)
    return config


def _from_pretrained(where: Path | str, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    options = {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True, **_local(where)}
    load: Any = AutoModelForCausalLM.from_pretrained  # whose type doesn't know the loading info
    model: PreTrainedModel
    try:
        model, info = load(where, attn_implementation="sdpa", **options)
    except ValueError as exc:
        if "scaled_dot_product_attention" not in str(exc):
            raise
        model, info = load(where, attn_implementation="eager", **options)
    if missing := sorted(info["missing_keys"]):  # transformers makes them up, with a warning at most
        raise ValueError(f"there are no weights for {missing[0]}" + (", and others" if len(missing) > 1 else ""))
    return model


def _load_error(where: Path | str, what: str, exc: Exception) -> UserError:
    why = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
    if isinstance(where, Path):
        return UserError(f"the {what} can't be loaded: {why}", file=where)
    remedy = 'check the name and the network, or give a local folder, or use model.name = "builtin"'
    return UserError(f"no folder of that name, and the hub gave no {what} ({why:.200}); {remedy}", file=where)


def _native_bfloat16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
