"""Scores for responses in a file, by one reward part or by a recipe's task."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from omni_thinker.engine.hidden_states import last_states
from omni_thinker.errors import UserError
from omni_thinker.judging.make import make_judge
from omni_thinker.plugins import PREFIX
from omni_thinker.recipe import RewardSpec, load_recipe
from omni_thinker.rewards.base import Reward
from omni_thinker.rewards.gym import EVALUATES
from omni_thinker.rewards.registry import is_verifiable, make_reward
from omni_thinker.rewards.validate import sample_of
from omni_thinker.runs.json_text import to_json
from omni_thinker.tasks.jsonl import no_constant
from omni_thinker.tasks.refused import Refusals
from omni_thinker.tasks.registry import make_tasks
from omni_thinker.types import Group, Problem

_ROWS_AT_ONCE = 64
_REFUSED: dict[str, Any] = {"id": "", "status": "refused", "value": None, "parts": {}, "reason": "", "seconds": 0.0}
_OWN = ("id", "response", "prompt", "answer")


def score_file(
    reward: str, rows_file: Path, out: Path | None, *, skip_refused: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score every row's `response`, in order, into `out` if given; returns counts and the mean, and the results.

    skip_refused: rows that can't be scored have the status `refused`, and count for nothing else.
    Raises UserError for bad rows (naming the line), unknown rewards, and an `out` that exists."""
    if out is not None:
        _check_free(out)
    results = score_lines(reward, _lines(rows_file), rows_file, skip_refused=skip_refused)
    if out is not None:
        try:
            out.write_text("".join(to_json(result) + "\n" for result in results), "utf-8")
        except OSError as exc:
            raise UserError(f"can't be written: {exc.strerror or exc}", file=out) from None
    counts = Counter(result["status"] for result in results)
    values = [result["value"] for result in results if result["value"] is not None]
    summary = {
        "rows": len(results),
        **{status: counts[status] for status in ("value", "abstain", "error", *(("refused",) if skip_refused else ()))},
        "mean": round(fmean(values), 4) if values else None,
        **({"out": str(out)} if out else {}),
    }
    return summary, results


def _check_free(out: Path) -> None:
    """Raises UserError where a new file can't be written."""
    try:
        taken = out.exists()
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be written: {exc}", file=f"{out!s:.80}", key="--out") from None
    if taken:
        raise UserError("exists already", file=out, key="--out")
    if not out.absolute().parent.is_dir():
        raise UserError("its folder doesn't exist", file=out, key="--out")


def explained(results: Iterable[dict[str, Any]]) -> list[str]:
    """A table for people, a line per row: its id, its value (or what came instead), and the reason for it."""
    rows = [("id", "value", "reason")]
    for result in results:
        value = result["status"] if result["value"] is None else f"{result['value']:g}"
        rows.append((_line(result["id"]), value, _line(result["reason"] or "")))
    wide, narrow = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{name:<{wide}}  {value:<{narrow}}  {reason}".rstrip() for name, value, reason in rows]


def _line(text: str) -> str:
    """`text` on one line, without characters that a terminal would act on."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def score_lines(
    reward: str, lines: Iterable[str], source: object, *, skip_refused: bool = False
) -> list[dict[str, Any]]:
    """A result for each row (a line of JSON), in order. Raises UserError, naming `source` and the line; all lines that
    can't be scored are counted, unless `skip_refused`."""
    rows = list(_read(lines, source))
    if not rows:
        raise UserError("no rows", file=source, key="--in")
    scorer, settings = _reward(reward)
    problems = [_problem(row, settings) for row in rows]
    faults = [scorer.check(problem) for problem in problems]
    refused = Refusals(str(source), len(rows))
    for number, fault in enumerate(faults, 1):
        if fault is not None:
            refused.add(UserError(f"line {number} can't be scored: {fault}", file=source))
    refused.settle(skip_refused)
    texts = [str(row["response"]) for row, fault in zip(rows, faults, strict=True) if fault is None]
    usable = [problem for problem, fault in zip(problems, faults, strict=True) if fault is None]
    results = iter(asyncio.run(_score_all(scorer, usable, texts)))
    return [
        next(results) if fault is None else _REFUSED | {"id": problem.id, "reason": fault}
        for problem, fault in zip(problems, faults, strict=True)
    ]


async def _score_all(reward: Reward, problems: list[Problem], texts: list[str]) -> list[dict[str, Any]]:
    limit = asyncio.Semaphore(_ROWS_AT_ONCE)

    async def one(problem: Problem, text: str) -> dict[str, Any]:
        async with limit:
            began = time.perf_counter()
            sample = sample_of(text)
            [score] = await reward.score(Group((), (sample,)), problem)
            remarks = ["thoughts left out"] if sample.thoughts else []
            return {
                "id": problem.id,
                "status": score.status,
                "value": score.value,
                "parts": dict(score.parts),
                "reason": ": ".join([*remarks, *([score.reason] if score.reason else [])]) or None,
                "seconds": round(time.perf_counter() - began, 6),
            }

    return list(await asyncio.gather(*map(one, problems, texts)))


def _reward(name: str) -> tuple[Reward, dict[str, Any]]:
    """The reward, and the settings of a recipe for rows that lack them."""
    path, _, task = name.rpartition(":")
    if not path or name.startswith(PREFIX):
        return make_reward(RewardSpec(gate=(), sum={name: 1.0}), judge=None), {}
    recipe = load_recipe(Path(path))
    if task not in recipe.tasks:
        raise UserError(f"no task {task!r}; it has {', '.join(recipe.tasks)}", file=path, key="--reward")
    defaults = recipe.tasks[task].options.get("defaults")
    spec = make_tasks(recipe.tasks, recipe.data_root)[task].reward
    judge = None if is_verifiable(spec) else make_judge(recipe.judge, recipe.model, last_states)
    evaluates = {EVALUATES: True} if recipe.tasks[task].allow_evaluating_scorers else {}
    return make_reward(spec, judge=judge), {**(defaults if isinstance(defaults, dict) else {}), **evaluates}


def _problem(row: dict[str, Any], settings: Mapping[str, Any]) -> Problem:
    # Whether a scorer may run answers as code is a recipe's to say, not a row's.
    data = {**settings, **{key: value for key, value in row.items() if key not in (*_OWN, EVALUATES)}}
    answer = row.get("answer")
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)  # 5.0 is 5 in the rows of a task, too
    return Problem(str(row["id"]), "score", str(row.get("prompt", "")), None if answer is None else str(answer), data)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").split("\n")  # not splitlines: a row may hold U+2028
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=path, key="--in") from None


def _read(lines: Iterable[str], path: object) -> Iterator[dict[str, Any]]:
    ids: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=no_constant)
        except (ValueError, RecursionError) as exc:
            raise UserError(f"line {number} is not JSON: {exc}", file=path) from None
        if not isinstance(row, dict) or not isinstance(row.get("response"), str) or not _plain(row.get("id")):
            raise UserError(f"line {number}: a row is an object with 'id' and 'response' (a string)", file=path)
        if row.get("answer") is not None and not _plain(row["answer"]) and not isinstance(row["answer"], float):
            raise UserError(f"line {number}: 'answer' must be a text or a number", file=path)
        if str(row["id"]) in ids:
            raise UserError(f"line {number}: the id {row['id']!r:.60} appears twice", file=path)
        ids.add(str(row["id"]))
        yield row


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)
