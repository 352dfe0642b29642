"""The recipes that come with the package, by name: `quickstart`, `models/qwen3`. Imports no torch."""

import re
from itertools import takewhile
from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.plugins import did_you_mean

SCHEMA = "recipe.schema.json"
"""Beside the recipes: what editors check them by."""


def recipes_folder() -> Path:
    """Within the package where it was installed from a wheel, and beside `src` in a clone."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def packaged() -> dict[str, Path]:
    """Names and files."""
    folder = recipes_folder()
    return {str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.toml"))}


def about(path: Path) -> str:
    """What a recipe says of itself: the first sentence of its first comment, without directives of editors."""
    comments = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    words = " ".join(line.lstrip("# ") for line in comments if not line.startswith("#:"))
    return re.split(r"(?<=[.?])\s", words, maxsplit=1)[0]


def recipe_file(path: Path) -> Path:
    """The file itself, or else the packaged recipe of that name. Raises UserError where there is neither."""
    known = packaged()
    try:
        # A folder of weights may well be called models/qwen3; one with a recipe is a run.
        if path.is_file() or (path.exists() and (str(path) not in known or (path / "recipe.toml").exists())):
            return path
    except (OSError, ValueError):
        return path  # whoever reads it says what is wrong
    if path.name and str(path) in known:
        return known[str(path)]
    hint = did_you_mean(str(path), list(known)) if not path.suffix else ""
    raise UserError("no such recipe file" + hint.replace("known:", "packaged recipes:"), file=path)
