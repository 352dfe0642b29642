"""From a model's name to a checked folder, its tokenizer and its weights.

A name is `builtin`, `tiny`, a folder in Hugging Face format, or a hub name. Folders never touch the network; the hub is
asked only for hub names (and not even then with HF_HUB_OFFLINE=1). Code from a hub is never run, pickles never read."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from omni_thinker.errors import UserError
from omni_thinker.models.builtin import builtin_folder, builtin_ready, fetch_builtin
from omni_thinker.models.gguf import Say, gguf_folder
from omni_thinker.models.home import MANIFEST
from omni_thinker.models.memory import bound_kernel_caches, keep_freed_memory
from omni_thinker.models.quiet import quiet
from omni_thinker.models.tiny import tiny_in_cache

DtypeName = Literal["auto", "float32", "bfloat16"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_DEQUANTISED = ("mxfp4",)
"""Kinds of quantised weights that transformers turns into plain ones on any machine."""
_WORD = "omnithinker"  # a stand-in for the user's or the model's words when a chat template is examined


def resolve(name: str, *, say: Say = print) -> Path | str:
    """The folder of `name`, or `name` itself where only a hub can know it. Fetches `builtin` when it is missing, and
    converts GGUF files.

    Raises UserError for a folder that lacks its config, its weights, its tokenizer or its chat template, and for
    adapters."""
    if name == "builtin":
        return builtin_folder() if builtin_ready() else fetch_builtin(say=say)
    if name == "tiny":
        return tiny_in_cache()
    if not name.strip():
        raise UserError("a model needs a name: builtin, tiny, a folder or a hub name", key="model.name")
    folder = Path(name).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        folder = gguf_folder(folder, say=say)
    if folder.is_dir():
        _check_folder(folder)
        return folder
    # A hub name has at most one slash and doesn't look like a path; anything else is a folder that isn't there.
    if folder.exists() or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError("no such model folder", file=name)
    return name


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer, with a chat template. Raises UserError naming what is missing and the remedy."""
    where = resolve(name)
    try:
        with quiet():
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(where, **_local(where))
    except Exception as exc:
        raise _load_error(where, "tokenizer", exc) from exc
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template; use an instruct model or add chat_template.jinja", file=name
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json", file=name)
    _check_template(tokenizer, name)
    return tokenizer


def load_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model on the CPU in eval mode, without dropout. Raises UserError as `resolve` does."""
    bound_kernel_caches()
    keep_freed_memory()
    where = resolve(name)
    config = _without_dropout(_load_config(where))
    try:
        with quiet():
            model = _from_pretrained(where, config, dtype)
    except Exception as exc:
        raise _load_error(where, "model", exc) from exc
    model.eval()
    return model


def empty_model(name: str) -> PreTrainedModel:
    """The model without its weights: names and shapes alone, which take no memory. Raises UserError as `resolve`."""
    with torch.device("meta"), quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(_load_config(resolve(name)))
    return model


def settings(folder: Path) -> dict[str, Any]:
    """A model's config as its class knows it, defaults filled in. Raises UserError where it can't be read."""
    config = _load_config(folder)
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


def stop_token_ids(tokenizer: Tokenizer, model: PreTrainedModel | None = None) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's, the model's, and the one that closes a turn in the template."""
    ids: set[int] = set()
    for end in (tokenizer.eos_token_id, getattr(getattr(model, "generation_config", None), "eos_token_id", None)):
        ids.update([end] if isinstance(end, int) else end or ())
    ids.update(_turn_end_ids(tokenizer))
    return tuple(sorted(ids))


def chat_prompt_ids(tokenizer: Tokenizer, system: str, user: str) -> list[int]:
    """The tokens up to where the assistant speaks.

    An empty `system` gives no system turn, or an empty one where the template would put in words of its own. A template
    that knows no system turn gets those words at the head of the user's."""
    text = _render(tokenizer, _prompt_messages(tokenizer, system, user), add_generation_prompt=True)
    return _encode(tokenizer, text)


def model_info(name: str) -> dict[str, Any]:
    """What `omni-thinker model info` prints. Reads no weights. Raises UserError as `resolve` does."""
    where = resolve(name)
    config = _load_config(where)
    tokenizer = load_tokenizer(name)
    with torch.device("meta"), quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    manifest = _json(Path(where) / MANIFEST)
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
        "stop_tokens": tokenizer.convert_ids_to_tokens(list(stop_token_ids(tokenizer))),
        "licence": manifest.get("licence") or _card_licence(where) or "unknown",
        "source": manifest.get("source") or ("folder" if isinstance(where, Path) else "hub"),
    }


def _check_folder(folder: Path) -> None:
    def lacks(what: str, remedy: str) -> UserError:
        return UserError(f"the model folder has no {what}; {remedy}", file=folder)

    _check_kind(folder)
    if not (folder / "config.json").is_file():
        raise lacks("config.json", "point model.name at a folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise lacks("tokenizer", "save the model's tokenizer into it with tokenizer.save_pretrained")
    if not _has_template(folder):
        raise lacks("chat template", "add chat_template.jinja, or use an instruct model")
    if not any(folder.glob("*.safetensors")):
        raise lacks("weights in safetensors format", "save it again with save_pretrained; pickled weights are not read")


def _check_kind(folder: Path) -> None:
    """Raises UserError for folders that hold something else than one model."""
    if (folder / "adapter_config.json").is_file():
        if (folder / "config.json").is_file():
            raise UserError("holds an adapter beside a model; move the files adapter_* elsewhere", file=folder)
        base = _json(folder / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        remedy = f"merge it first: omni-thinker merge {quote(str(base))} {quote(str(folder))} --out NEW"
        raise UserError(f"is an adapter, not a model; {remedy}", file=folder)
    if (folder / "snapshots").is_dir() and not (folder / "config.json").is_file():
        raise UserError("is a cache of the hub; name one of the folders below its snapshots", file=folder)
    if not any(folder.glob("*.safetensors")) and (files := sorted(folder.glob("*.gguf"))):
        raise UserError(f"holds GGUF files; name one of them, such as {files[0]}", file=folder)


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in _TEMPLATE_FILES):
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _json(file: Path) -> dict[str, Any]:
    """A table in a file; empty where there is none."""
    try:
        table = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _local(where: Path | str) -> dict[str, Any]:
    return {"trust_remote_code": False, "local_files_only": isinstance(where, Path)}


def _load_config(where: Path | str) -> PretrainedConfig:
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


def _render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    if not isinstance(text, str):
        raise TypeError(f"the chat template gave {type(text).__name__}, not text")
    return text


def _check_template(tokenizer: Tokenizer, name: str) -> None:
    """Raises UserError where the template can't render the plainest conversation."""
    try:
        _render(tokenizer, [{"role": "user", "content": _WORD}], add_generation_prompt=True)
    except Exception as exc:  # the template is a program of the model's author; anything may go wrong in it
        raise UserError(f"its chat template fails: {type(exc).__name__}: {exc}", file=name) from None


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    # The template has written the special tokens already.
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def _prompt_messages(tokenizer: Tokenizer, system: str, user: str) -> list[dict[str, str]]:
    turn = {"role": "user", "content": user}
    if not system:
        bare, empty = (_try_render(tokenizer, head) for head in ([], [{"role": "system", "content": ""}]))
        # Longer without a system turn than with an empty one: the template fills in its own.
        injects = bare is not None and empty is not None and len(bare) > len(empty)
        return [{"role": "system", "content": ""}, turn] if injects else [turn]
    rendered = _try_render(tokenizer, [{"role": "system", "content": system}])
    if rendered is not None and system.strip() in rendered:
        return [{"role": "system", "content": system}, turn]
    return [{"role": "user", "content": f"{system}\n\n{user}"}]


def _try_render(tokenizer: Tokenizer, head: Iterable[dict[str, str]]) -> str | None:
    """The template on a short conversation; None where it refuses (some raise on a system turn)."""
    from jinja2 import TemplateError

    try:
        return _render(tokenizer, [*head, {"role": "user", "content": _WORD}], add_generation_prompt=True)
    except TemplateError:
        return None


def _turn_end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special token that follows the assistant's words, if one does."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _WORD}]
    after = _render(tokenizer, turns, add_generation_prompt=False).rpartition(_WORD)[2].lstrip()
    first = _encode(tokenizer, after)[:1]
    # Marked special in the vocabulary: the end of a turn need not be among the tokens that have a name.
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return tuple(token for token in first if token in special)


def _card_licence(where: Path | str) -> str | None:
    try:
        lines = (Path(where) / "README.md").read_text("utf-8", "replace").splitlines()[:60]
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("license:")), None)
