"""Going on with a study: what of its recipe may have changed since."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.recipe import Recipe
from omni_thinker.runs.rundir import RunDir

FREE = (
    "judge.endpoint.url",
    "judge.endpoint.key_env",
    "judge.endpoint.budget",
    "judge.endpoint.price",
    "study.checkpoint_steps",
    "study.bootstrap",
    "study.confidence",
)
"""Keys, and tables of keys, that change nothing of what has been computed."""
_ABSENT = object()


def check_recipe(run: RunDir, recipe: Recipe) -> None:
    """Note the recipe of a run that begins. Raises UserError, naming each key, where one that goes on has another."""
    now = recipe.model_dump(mode="json")
    kept = run.journal.once("recipe", lambda: now)
    changed = [line for key, old, new in _differences(kept, now) if (line := _line(key, old, new))]
    if changed:
        raise UserError(
            f"differs from the recipe that the run was begun with: {'; '.join(changed)}", file=run.path / "recipe.toml"
        )
    run.write_recipe(recipe)


def _line(key: str, old: Any, new: Any) -> str | None:
    if any(key == free or key.startswith(free + ".") for free in FREE):
        return None
    if key == "study.seeds" and isinstance(new, list) and new[: len(old)] == old:
        return None  # more seeds follow those that are done
    shown = ("nothing" if value is _ABSENT else repr(value) for value in (old, new))
    return f"{key} was " + ", is ".join(shown)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other
