"""`omni-thinker model ...` and `omni-thinker merge`: what needs a model and no recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError

if TYPE_CHECKING:
    from omni_thinker.baselines.merge_rules import MergeMethod

model_app = typer.Typer(no_args_is_help=True, help="Fetch the built-in model, or describe any model.")

_DTYPES = ("start", "float32", "bfloat16", "float16")
_METHODS = ("linear", "ties", "dare", "dare_ties")
_LARGEST_WEIGHT = 1e6
"""Bound on weights and scale: larger ones leave nothing of what is merged."""
_TOLD_LOSS = 0.05
"""Share of the change lost in rounding, from which on it is told."""


@model_app.command("fetch")
def model_fetch(
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if it is already in the cache.")] = False,
    json_: Json = False,
) -> None:
    """Fetch the built-in SmolLM2-135M-Instruct into the cache (OMNI_THINKER_HOME), as a Hugging Face folder."""
    from omni_thinker.models.builtin import fetch_builtin

    folder = fetch_builtin(force=force, say=lambda line: typer.echo(line, err=True))
    typer.echo(f"built-in model: {folder}")
    finish({"folder": str(folder)}, json_)


@model_app.command("info")
def model_info(
    name: Annotated[str, typer.Argument(help="builtin, tiny, a folder, a GGUF file, or a hub name.")] = "builtin",
    prove: Annotated[
        bool | None,
        typer.Option("--prove/--no-prove", help="Try its ways of training and sampling. Default: if small."),
    ] = None,
    json_: Json = False,
) -> None:
    """Describe a model: what it is, how its chats are written, how it is trained here, and the memory it takes."""
    from omni_thinker.cli.model_commands.words import described
    from omni_thinker.policy.describe import describe
    from omni_thinker.runs.progress import working

    with working(f"looking at {name}"):
        info = describe(name, prove=prove)
    typer.echo(described(info))
    finish(info, json_)


def merge_models(
    start: Annotated[str, typer.Argument(help="The model they were trained from: builtin, a folder, a GGUF file.")],
    experts: Annotated[list[Path], typer.Argument(help="Folders of models trained from START, or of adapters.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model. It must not exist.")],
    method: Annotated[str, typer.Option(help="linear (task arithmetic), ties, dare or dare_ties.")] = "linear",
    density: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of each change to use.")] = 1.0,
    weights: Annotated[str, typer.Option(help="One number per expert, separated by commas. Default: 1.")] = "",
    scale: Annotated[float, typer.Option(help="Factor on the sum of the experts' changes.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the dare methods.")] = 0,
    dtype: Annotated[str, typer.Option(help="Type of the weights: start, float32, bfloat16, float16.")] = "start",
    json_: Json = False,
) -> None:
    """Add up what several models learned from one start, and write the merged model folder."""
    import time

    import torch

    from omni_thinker.baselines.folders import merge_folders
    from omni_thinker.baselines.merge_rules import MergeRule
    from omni_thinker.runs.progress import working

    if method not in _METHODS:
        raise UserError(f"must be one of {', '.join(_METHODS)}, got {method!r}", key="--method")
    if dtype not in _DTYPES:
        raise UserError(f"must be one of {', '.join(_DTYPES)}, got {dtype!r}", key="--dtype")
    if not 0 < density <= 1:
        raise UserError(f"must be above 0 and at most 1, got {density:g}", key="--density")
    if density < 1 and method == "linear":
        raise UserError("applies to ties, dare and dare_ties only: linear uses the whole change", key="--density")
    if not abs(scale) <= _LARGEST_WEIGHT:
        raise UserError(f"must be a finite number of at most {_LARGEST_WEIGHT:g}, got {scale:g}", key="--scale")
    shares = _expert_weights(weights, len(experts))
    if _is_there(out, "--out"):
        raise UserError("exists already; name another folder", file=out, key="--out")
    for path in experts:
        if not _is_there(path, "EXPERTS") or not path.is_dir():
            raise UserError("no such folder", file=path, key="EXPERTS")
    origin = _folder(start)
    rule = MergeRule(cast("MergeMethod", method), scale, density, shares, seed)
    began = time.monotonic()
    try:
        with working(f"merging {len(experts)} experts into {out}"):
            kind = None if dtype == "start" else getattr(torch, dtype)
            lost = merge_folders(origin, experts, rule, out, kind).share
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=out, key="--out") from None
    seconds = time.monotonic() - began
    typer.echo(f"merged {len(experts)} experts by {method}: {out}")
    if lost > _TOLD_LOSS:
        typer.echo(f"rounding lost {lost:.0%} of the change; --dtype float32 keeps it")
    table = {"out": str(out), "method": method, "experts": [str(path) for path in experts], "seconds": seconds}
    finish({**table, "lost_in_rounding": lost}, json_)


def _folder(name: str) -> Path:
    from omni_thinker.models.load import resolve

    folder = resolve(name, say=lambda line: typer.echo(line, err=True))
    if isinstance(folder, Path):
        return folder
    from huggingface_hub import snapshot_download

    try:
        cached = snapshot_download(folder, local_files_only=True)
    except Exception:  # whatever the hub's library says about a name that it doesn't have
        raise UserError("must be a folder; download the model first", file=name, key="START") from None
    return _folder(cached)


def _is_there(path: Path, key: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be a folder: {exc}", file=f"{path!s:.80}", key=key) from None


def _expert_weights(text: str, count: int) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        weights = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"must be numbers separated by commas, got {text!r:.80}", key="--weights") from None
    if len(weights) != count or not all(abs(number) <= _LARGEST_WEIGHT for number in weights):
        expected = f"{count} finite numbers, one for each expert, of at most {_LARGEST_WEIGHT:g}"
        raise UserError(f"must be {expected}, got {text!r:.80}", key="--weights")
    return weights
