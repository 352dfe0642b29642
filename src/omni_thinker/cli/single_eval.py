"""Evaluation of one model on the tasks of a recipe, outside of a study."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.policy.make import make_policy
from omni_thinker.recipe import Recipe
from omni_thinker.rl.evaluate import evaluate
from omni_thinker.runs.schema.base import adapter, dump
from omni_thinker.runs.schema.logs import Reference
from omni_thinker.studies.setup import prepare, study_seed
from omni_thinker.types import Problem, Split


def evaluate_model(model: str, recipe: Recipe, split: str, references: Path | None) -> dict[str, Any]:
    """Accuracy per task. Judged tasks need the references of a run; without, only their checkable part is scored.

    Raises UserError for bad names and files."""
    if split not in ("validation", "test"):
        raise UserError(f"must be validation or test, got {split!r}", key="--split")
    chosen: Split = "test" if split == "test" else "validation"
    known = _read_references(references) if references else {}
    setup = prepare(recipe, with_judge=bool(known))
    policy = make_policy(recipe.model.model_copy(update={"name": model}))
    pools = {task: [_with_reference(problem, known) for problem in pool] for task, pool in setup.pools[chosen].items()}
    unreferenced = [task for task in setup.compared if any("reference" not in p.data for p in pools[task])]
    unjudged = setup.judged if setup.judge is None else unreferenced
    result = evaluate(
        policy,
        pools,
        {task: setup.gate_rewards[task] if task in unjudged else reward for task, reward in setup.eval_rewards.items()},
        setup.max_tokens,
        params=recipe.evaluation.sampling,
        seed=study_seed(recipe.study.seeds[0], chosen),
        stops=setup.stops,
        thinking=setup.thinking,
        turns=setup.turns,
    )
    notes = [f"{task}: no references, so only the checkable part was scored; see --references." for task in unjudged]
    notes += setup.left_out
    return {
        "model": model,
        "split": chosen,
        "tasks": {task: dump(estimate) for task, estimate in result.estimates().items()},
        "metrics": result.metrics,
        "notes": notes,
    }


def _with_reference(problem: Problem, known: dict[str, str]) -> Problem:
    if problem.id not in known or "reference" in problem.data:
        return problem
    return replace(problem, data={**problem.data, "reference": known[problem.id]})


def _read_references(path: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8").split("\n")  # a text may hold what splitlines takes for an end
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"can't be read: {exc}", file=path, key="--references") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Reference = adapter(Reference).validate_python(json.loads(line))
            known.setdefault(row.problem, row.reference)
        except (ValueError, RecursionError):
            raise UserError(f"line {number} isn't a reference", file=path) from None
    return known
