"""From a TOML file to a recipe; every complaint names the file and the key. Imports no torch."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from omni_thinker.errors import UserError
from omni_thinker.packaged import recipe_file
from omni_thinker.recipe.explain import Loc, refusal
from omni_thinker.recipe.tasks import TaskSpec
from omni_thinker.recipe.whole import Recipe


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe: a file, or the name of one that comes with the package. `overrides` are
    `dotted.key=value` with a TOML value.

    Raises UserError naming the file and the key."""
    path = recipe_file(path)
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError("no such recipe file", file=path) from None
    except tomllib.TOMLDecodeError as exc:
        raise UserError(f"not valid TOML: {exc}", file=path) from None
    except IsADirectoryError:
        raise UserError("is a directory; to resume the run in it, add --resume", file=path) from None
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read as a recipe: {exc}", file=path) from None
    except RecursionError:
        raise UserError("nested too deeply", file=path) from None
    for override in overrides:
        set_key(table, override)
    return parse_recipe(table, path)


def builtin_recipe(overrides: Sequence[str] = ()) -> Recipe:
    """The four built-in tasks with all defaults."""
    table: dict[str, Any] = {
        "name": "builtin",
        "tasks": {name: {"source": f"builtin:{name}"} for name in ("math", "coding", "qa", "writing")},
    }
    for override in overrides:
        set_key(table, override)
    return parse_recipe(table, "--set")


def parse_recipe(table: Mapping[str, Any], source: object) -> Recipe:
    """A checked Recipe from plain tables. Raises UserError naming `source` and the first bad key."""
    try:
        return Recipe.model_validate(dict(table))
    except UserError as exc:
        raise exc.within(source) from None
    except RecursionError:
        raise UserError("nested too deeply", file=source) from None
    except ValidationError as exc:
        raise refusal(exc, _known).within(source) from None


def _known(loc: Loc) -> Sequence[str]:
    """The keys of the table that an unknown key was put in."""
    model: Any = Recipe
    for word in loc[:-1]:
        fields = getattr(model, "model_fields", None)
        if fields is None or word not in fields:
            model = TaskSpec if model is Recipe or word in ("tasks",) or loc[0] == "tasks" else None
            continue
        annotation = fields[word].annotation
        model = annotation if isinstance(annotation, type) else (TaskSpec if word == "tasks" else None)
    return list(getattr(model, "model_fields", ()))


def set_key(table: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in nested tables; the value is TOML, and a bare word a text. Raises UserError."""
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise UserError(f"--set must be key=value, got {override!r}")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    except RecursionError:
        raise UserError("nested too deeply", key=key) from None
    except ValueError as exc:  # a whole number of too many digits
        raise UserError(f"can't be read: {exc}", key=key) from None
    *path, last = key.strip().split(".")
    for word in path:
        table = table.setdefault(word, {})
        if not isinstance(table, dict):
            raise UserError(f"{word!r} is not a table", key=key)
    table[last] = value
