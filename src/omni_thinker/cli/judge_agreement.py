"""`omni-thinker judge agree`: one judge on a file of pairs that people have compared."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_thinker.engine.hidden_states import last_states
from omni_thinker.errors import UserError
from omni_thinker.judging.agreement import measure, read_pairs
from omni_thinker.judging.make import make_judge
from omni_thinker.recipe import builtin_recipe

_IN_WORDS = (
    "judge", "pairs", "people_undecided", "errors", "first_error", "agreement", "interval_95", "longer_preferred",
    "shorter_preferred", "balanced", "balanced_interval_95", "tie_rate", "ceiling",
)  # fmt: skip


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


def in_words(measured: Mapping[str, Any]) -> list[str]:
    """What was measured, a line each. Shares are from 0 to 1."""
    people = f"{measured['people_undecided']} more were ties to people"
    failed = measured["errors"] and f", {measured['errors']} got no verdict (the first: {measured['first_error']})"
    lines = [
        f"judge: {measured['judge']}",
        f"pairs: {measured['pairs']} that people decided; {people}{failed or ''}",
        _line("agreement with people", measured["agreement"], measured["interval_95"]),
        _line("where people prefer the longer answer", measured["longer_preferred"]),
        _line("where people prefer the shorter answer", measured["shorter_preferred"]),
        _line("length balanced (mean of these two)", measured["balanced"], measured["balanced_interval_95"]),
        _line("ties of the judge", measured["tie_rate"]),
        _line("ceiling (how often two people agree)", measured["ceiling"]),
    ]
    rest = {name: value for name, value in measured.items() if name not in _IN_WORDS}
    return lines + [
        f"{name}: {value:.3f}" if type(value) is float else f"{name}: {value}" for name, value in rest.items()
    ]


def _line(name: str, share: float | None, interval: Sequence[float] | None = None) -> str:
    if share is None:
        return f"{name}: too few pairs"
    return f"{name}: {share:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
