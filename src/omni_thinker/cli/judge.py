"""`omni-thinker judge ...`: choose a judge, and manage its paid replies."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError

judge_app = typer.Typer(no_args_is_help=True, help="Choose a judge, and manage the replies you have paid for.")
cache_app = typer.Typer(no_args_is_help=True, help="Replies of judges behind an API, shared by all runs.")
judge_app.add_typer(cache_app, name="cache")

CacheFile = Annotated[Path | None, typer.Option("--cache", help="The file. Default: judge.sqlite in the cache folder.")]


@judge_app.command("agree")
def judge_agree(
    pairs: Annotated[
        Path, typer.Option(help="Rows: id, prompt, response_1, response_2, label (1, 2, 0 = tie), votes.")
    ],
    base_url: Annotated[str, typer.Option(help="Address of an OpenAI-compatible API. Default: a local judge.")] = "",
    model: Annotated[
        str,
        typer.Option(
            help="The model to ask. Without --base-url, a folder or hub name whose likelihood decides. "
            "Default: the built-in judge."
        ),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first rows, this many.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A key of judge.endpoint, or judge.margin: key=value. Repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Measure how often a judge agrees with people, with length balanced and without."""
    from omni_thinker.cli.judge_agreement import agreement, in_words
    from omni_thinker.runs.progress import working

    with working(f"judging {pairs}"):
        measured = agreement(pairs, base_url=base_url, model=model, limit=limit, settings=settings or [])
    typer.echo("\n".join(in_words(measured)))
    finish(measured, json_)
    if measured["errors"] > measured["pairs"]:
        raise UserError(f"most pairs got no verdict; the first: {measured['first_error']}", key="judge agree")


@judge_app.command("info")
def judge_info(json_: Json = False) -> None:
    """Show what the built-in judge is, what it was trained on, and how often it agrees with people."""
    from omni_thinker.judging.trained import caveat, load_card

    card = load_card()
    typer.echo(f"{card['version']}: {card['what']}")
    for name, row in card["agreement"].items():
        low, high = row["balanced_interval_95"]
        typer.echo(
            f"  {name:22} agrees on {row['agreement']:.1%} of {row['pairs']} decided pairs; length balanced "
            f"{row['balanced']:.1%} [{low:.1%}, {high:.1%}]; the same in both seats {row['consistent']:.1%}"
        )
    typer.echo(caveat(card))
    finish(card, json_)


@cache_app.command("stats")
def cache_stats(cache: CacheFile = None, json_: Json = False) -> None:
    """Count the replies of each model and their tokens."""
    known, path = _judge_cache(cache)
    stats: dict[str, Any] = {"path": str(path), "bytes": 0, "models": {}} if known is None else known.stats()
    typer.echo(f"{path}: {stats['bytes'] / 1e6:.1f} MB" if stats["models"] else f"{path}: 0 replies")
    for name, row in stats["models"].items():
        typer.echo(f"{name}: {row['replies']} replies, {row['input_tokens']} + {row['output_tokens']} tokens")
    finish(stats, json_)


@cache_app.command("export")
def cache_export(
    out: Annotated[Path, typer.Option(help="File for the replies (JSONL). It must not exist.")],
    cache: CacheFile = None,
    json_: Json = False,
) -> None:
    """Write all replies to a file."""
    known, _ = _judge_cache(cache)
    rows = [] if known is None else [json.dumps(row) for row in known.rows()]
    try:
        with out.open("x", encoding="utf-8") as stream:
            stream.writelines(row + "\n" for row in rows)
    except FileExistsError:
        raise UserError("exists already", file=out, key="--out") from None
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=out, key="--out") from None
    typer.echo(f"{len(rows)} replies: {out}")
    finish({"rows": len(rows), "out": str(out)}, json_)


@cache_app.command("clear")
def cache_clear(
    model: Annotated[str | None, typer.Option(help="Delete only the replies of this model.")] = None,
    cache: CacheFile = None,
    json_: Json = False,
) -> None:
    """Delete replies. Asking again costs again."""
    known, _ = _judge_cache(cache)
    done = 0 if known is None else known.clear(model)
    typer.echo(f"{done} replies deleted")
    finish({"forgotten": done}, json_)


def _judge_cache(chosen: Path | None) -> tuple[Any, Path]:
    """The cache and where it is; None for the usual one where no judge has replied yet."""
    from omni_thinker.judging.cache import JudgeCache
    from omni_thinker.judging.endpoint.desk import default_cache

    path = chosen or default_cache()
    if path.is_file():
        return JudgeCache(path), path
    if chosen is not None:
        raise UserError("no such cache", file=path, key="--cache")
    return None, path
