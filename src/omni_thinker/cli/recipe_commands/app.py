"""`omni-thinker recipe ...`: what a recipe may say."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.options import AnyRecipe, Set, load
from omni_thinker.cli.output import Json, finish
from omni_thinker.cli.recipe_commands.init import recipe_init
from omni_thinker.errors import UserError

recipe_app = typer.Typer(no_args_is_help=True, help="Recipes that come along, a new one, and what one may say.")
recipe_app.command("init")(recipe_init)


@recipe_app.command("list")
def recipe_list(json_: Json = False) -> None:
    """List the recipes that come with the package. Every command takes their names."""
    from omni_thinker.packaged import about, packaged

    known = {name: about(path) for name, path in packaged().items()}
    width = max(map(len, known), default=0)
    for name, words in known.items():
        typer.echo(f"{name:<{width}}  {words}")
    finish({"recipes": known}, json_)


@recipe_app.command("show")
def recipe_show(recipe: AnyRecipe) -> None:
    """Print a recipe, to copy and change it: omni-thinker recipe show quickstart > mine.toml"""
    from omni_thinker.packaged import recipe_file

    load(recipe, None)  # whatever is wrong with it
    typer.echo(recipe_file(recipe).read_text("utf-8"), nl=False)


@recipe_app.command("schema")
def recipe_schema(out: Annotated[Path | None, typer.Option(help="File to write. Default: print it.")] = None) -> None:
    """Print the JSON schema of recipes, which editors check TOML files by (Taplo, Even Better TOML)."""
    from omni_thinker.recipe.keys import schema

    text = json.dumps(schema(), indent=1) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, "utf-8")
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=out, key="--out") from None
    typer.echo(f"schema: {out}; begin a recipe with `#:schema {out.resolve()}`")


@recipe_app.command("explain")
def recipe_explain(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file. Without one, only defaults are shown.")] = None,
    key: Annotated[str, typer.Option(help="Only keys that contain this, such as rl. or judge.endpoint.")] = "",
    overrides: Set = None,
    json_: Json = False,
) -> None:
    """List every key: its value, where that comes from, what it takes, and what it does."""
    from omni_thinker.recipe.keys import all_keys

    loaded = {} if recipe is None else load(recipe, overrides).model_dump(mode="json")
    given = {} if recipe is None else _given(recipe, overrides or [])
    rows = []
    for each in all_keys():
        for path, value in _values(loaded, each.path):
            row = {"key": path, "takes": each.takes, "default": each.default, "meaning": each.meaning}
            if recipe is not None:
                row |= {"value": value, "source": "recipe" if path in given else "default"}
            if key in path:
                rows.append(row)
    if not rows:
        raise UserError(f"no key contains {key!r}; see omni-thinker recipe explain", key="--key")
    rows.sort(key=lambda row: not row["key"].startswith(key))  # `rl.` before `tasks.NAME.rl.`
    for row in rows:
        value = f" = {json.dumps(row['value'])} ({row['source']})" if "value" in row else ""
        typer.echo(f"{row['key']}{value}\n    {row['takes']}; default {row['default'] or 'see its keys'}")
        typer.echo(f"    {row['meaning']}")
    finish({"keys": rows}, json_)


def _given(recipe: Path, overrides: list[str]) -> set[str]:
    """The keys that the file or `--set` has."""
    import tomllib

    from omni_thinker.packaged import recipe_file

    found = {override.partition("=")[0].strip() for override in overrides}

    def walk(table: dict[str, Any], prefix: str) -> None:
        for name, value in table.items():
            found.add(f"{prefix}{name}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(tomllib.loads(recipe_file(recipe).read_text("utf-8-sig")), "")
    return found


def _values(loaded: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    """The values of a path in a recipe, with names in place of NAME; the path itself where there is no recipe."""
    if not loaded:
        return [(path, None)]
    found: list[tuple[str, Any]] = [("", loaded)]
    for word in path.split("."):
        following: list[tuple[str, Any]] = []
        for before, value in found:
            if isinstance(value, dict):
                names = list(value) if word == "NAME" else [word] if word in value else []
                following += [(f"{before}.{name}" if before else name, value[name]) for name in names]
        found = following
    return found
