"""`omni-thinker judge agree`: one judge on a file of pairs that people have compared."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_thinker.engine.hidden_states import last_states
from omni_thinker.errors import UserError
from omni_thinker.judging.agreement import measure, read_pairs
from omni_thinker.judging.make import make_judge
from omni_thinker.recipe import builtin_recipe


def agreement(pairs: Path, *, base_url: str, model: str, limit: int | None, settings: Sequence[str]) -> dict[str, Any]:
    """Agreement with the labels of `pairs`: of the judge at `base_url`, of the likelihood judge on `model`, or where
    neither is given of the built-in judge. No difference is too small to decide, unless `settings` say so.

    `settings`: keys of `judge.endpoint`, or of `judge` without an address. Raises UserError for bad rows and keys."""
    if base_url and not model:
        raise UserError("a judge at an address needs the name of its model", key="--model")
    rows = read_pairs(pairs, limit)
    table = "judge.endpoint" if base_url else "judge"
    chosen = [f'judge.kind="{"endpoint" if base_url else "likelihood" if model else "builtin"}"']
    chosen += [f"{table}.model={_quoted(model)}"] if model else []
    chosen += [f"judge.endpoint.base_url={_quoted(base_url)}"] if base_url else ["judge.margin=0.0"]
    recipe = builtin_recipe([*chosen, *(f"{table}.{setting}" for setting in settings)])
    return asyncio.run(measure(make_judge(recipe.judge, recipe.model, last_states), rows))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
