"""Evaluation of one model on the tasks of a recipe, outside of a study."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omni_thinker.cli.sample_rows import Asked, write_samples
from omni_thinker.compare.at_k import with_measures, without_majority
from omni_thinker.errors import UserError
from omni_thinker.models.chat import load_chat
from omni_thinker.models.think_form import ask, think_form
from omni_thinker.policy.make import make_policy
from omni_thinker.recipe import EngineSpec, Recipe
from omni_thinker.recipe.models import ModelSpec
from omni_thinker.rl.evaluate import Evaluation, evaluate
from omni_thinker.runs.schema.base import adapter, dump
from omni_thinker.runs.schema.logs import Reference
from omni_thinker.studies.setup import Setup, prepare, study_seed
from omni_thinker.types import Problem, SamplingParams, Split


def evaluate_model(
    model: str, recipe: Recipe, split: str, references: Path | None, samples: Path | None = None
) -> dict[str, Any]:
    """Accuracy per task, and the measures that the recipe's `evaluation` asks for. Judged tasks need the references of
    a run; without, only their checkable part is scored. `samples`: a folder for every answer (`write_samples`).

    Raises UserError for bad names and files."""
    if split not in ("validation", "test"):
        raise UserError(f"must be validation or test, got {split!r}", key="--split")
    chosen: Split = "test" if split == "test" else "validation"
    known = _read_references(references) if references else {}
    # Who trains and samples in a study has no part in this, and needn't be there.
    engine = EngineSpec(tinker=recipe.engine.tinker)
    named = recipe.model.model_copy(update={"name": model})
    setup = prepare(recipe.model_copy(update={"engine": engine, "model": named}), with_judge=bool(known))
    policy = make_policy(named, engine)
    pools = {task: [_with_reference(problem, known) for problem in pool] for task, pool in setup.pools[chosen].items()}
    unreferenced = [task for task in setup.compared if any("reference" not in p.data for p in pools[task])]
    unjudged = setup.judged if setup.judge is None else unreferenced
    rewards = {task: setup.gate_rewards[task] if task in unjudged else own for task, own in setup.eval_rewards.items()}

    def answers(params: SamplingParams) -> Evaluation:
        return evaluate(
            policy,
            pools,
            rewards,
            setup.max_tokens,
            params=params,
            seed=study_seed(recipe.study.seeds[0], chosen),
            stops=setup.stops,
            thinking=setup.thinking,
            turns=setup.turns,
        )

    spec = recipe.evaluation
    greedy = answers(spec.sampling_greedy) if spec.greedy else None
    result = with_measures(answers(spec.sampling), spec, rewards, greedy)
    files = []
    if samples is not None:
        second = (greedy, spec.sampling_greedy) if greedy else None
        files = write_samples(samples, result, spec.sampling, _asked(named, setup), second)
    notes = [f"{task}: no references, so only the checkable part was scored; see --references." for task in unjudged]
    notes += [words for words in (without_majority(spec, rewards), *setup.fixed) if words]
    notes += setup.left_out
    return {
        "model": model,
        "split": chosen,
        "tasks": {task: dump(estimate) for task, estimate in result.estimates().items()},
        "measures": {
            task: {name: dump(estimate) for name, estimate in own.items()} for task, own in result.measured().items()
        },
        "metrics": result.metrics,
        "samples": list(map(str, files)),
        "notes": notes,
    }


def _asked(model: ModelSpec, setup: Setup) -> Asked:
    chat = load_chat(model)
    form = think_form(chat)

    def asked(problem: Problem) -> tuple[str, Sequence[str], int]:
        text = ask(chat, form, problem.chat, setup.thinking[problem.task]).text
        return text, setup.stops.get(problem.task, ()), setup.max_tokens[problem.task]

    return asked


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
