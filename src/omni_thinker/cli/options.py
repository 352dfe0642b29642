"""Options and arguments that several commands share, and how they are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.errors import UserError


def _packaged(incomplete: str) -> list[str]:
    """Names for the shell to complete, beside the files that it knows."""
    from omni_thinker.packaged import packaged

    files = [str(path) for path in Path().glob(f"{incomplete}*") if path.is_dir() or path.suffix == ".toml"]
    return [name for name in (*packaged(), *files) if name.startswith(incomplete)]


RECIPE_HELP = "A recipe file (TOML), or the name of a packaged one (omni-thinker recipe list)."
RecipeFile = Annotated[
    Path, typer.Argument(help=f"{RECIPE_HELP} With --resume, the directory of a run.", autocompletion=_packaged)
]
AnyRecipe = Annotated[Path, typer.Argument(help=RECIPE_HELP, autocompletion=_packaged)]
Out = Annotated[Path | None, typer.Option(help="Directory for the run, without a run in it. Default: runs/NAME-TIME.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume the run in the directory RECIPE.")]
SkipRefused = Annotated[
    bool, typer.Option("--skip-refused", help="Leave out rows that can't be used, count them, and name the first.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: dotted.key=value. Repeatable.")]


def _allow_weak(allowed: bool) -> bool:
    if allowed:
        from omni_thinker.isolation import allow_weak_sandbox

        allow_weak_sandbox()
    return allowed


Weak = Annotated[
    bool,
    typer.Option(
        "--allow-weak-sandbox",
        callback=_allow_weak,
        help="If bubblewrap is missing, run the model's programs in a process that has only resource limits.",
    ),
]
Forecasts = Annotated[str, typer.Option("--forecaster", help="hierarchical, naive, additive, relative or logit.")]
Goal = Annotated[
    str, typer.Option("--objective", help="mean, worst, or weights such as math=2,qa=1; tasks without one weigh 0.")
]
Level = Annotated[float, typer.Option("--level", help="Coverage of the intervals (0.01 to 0.999).")]


@contextmanager
def in_recipe(path: Path) -> Iterator[None]:
    """Add the recipe's path to errors that have only a key."""
    try:
        yield
    except UserError as exc:
        raise exc.within(path) from None


def load(path: Path, overrides: list[str] | None, skip_refused: bool = False) -> Any:
    from omni_thinker.recipe import load_recipe

    recipe = load_recipe(path, overrides or [])
    return recipe.skipping_refused() if skip_refused else recipe


def recipe_or_builtin(path: Path | None, overrides: list[str] | None, skip_refused: bool = False) -> Any:
    from omni_thinker.recipe import builtin_recipe

    return load(path, overrides, skip_refused) if path else builtin_recipe(overrides or [])


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def split_named(name: str) -> Any:
    from omni_thinker.types import SPLITS

    if name not in SPLITS:
        raise UserError(f"must be one of {', '.join(SPLITS)}, got {name!r}", key="--split")
    return name
