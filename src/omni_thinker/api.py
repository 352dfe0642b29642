"""What the commands do, for programs: `import omni_thinker as ot; ot.study("recipe.toml")`.

Everything here raises `omni_thinker.UserError` for input that a person can mend; it names the file and the key."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omni_thinker.recipe import Recipe, builtin_recipe, load_recipe, parse_recipe

if TYPE_CHECKING:
    import pandas

    from omni_thinker.report.figures.gallery import Picture
    from omni_thinker.runs.read import RunData
    from omni_thinker.runs.schema.plan import Plan

AnyRecipe = Recipe | Mapping[str, Any] | str | Path
"""A recipe, the tables of one, or its file."""


def study(
    recipe: AnyRecipe, out: str | Path | None = None, *, resume: bool = False, jobs: int = 1, cluster: str = ""
) -> dict[str, Any]:
    """Train every arm at equal budget and compare them on the test split.

    out: the run's directory, which must not hold one yet (default: runs/NAME-TIME); with `resume` the one to resume.
    jobs: units (arms, probes, evaluations) at a time, each in a process. cluster: a Ray cluster's address, or "auto",
    whose nodes work on the units. Returns what `result.json` holds; `report.html` is written beside it."""
    from omni_thinker.report import write_report
    from omni_thinker.studies.crews.make import Where
    from omni_thinker.studies.study import run_study

    read = _recipe(recipe)
    folder = Path(out) if out is not None else Path("runs") / f"{read.name}-{datetime.now():%Y%m%d-%H%M%S}"
    result = run_study(read, folder, resume=resume, where=Where(jobs, cluster))
    write_report(folder)
    return {"out": str(folder), **result}


def atlas(
    pool: AnyRecipe,
    out: str | Path,
    *,
    hours: float | None = None,
    known: str | Path | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    cluster: str = "",
) -> dict[str, Any]:
    """Run many small studies over a pool of tasks into `out`, or what is left of them there; a row of atlas.jsonl for
    each evaluation.

    hours: stop after so many. known: atlas.jsonl whose runs aren't run again. only: ids of runs (START/SEED/NAME) to
    repeat and compare with `known`. jobs, cluster: as in `study`. Returns the number of `rows`, `runs_left`,
    `out_of_time`, and `different`: repeated rows with the fields that differ."""
    from omni_thinker.studies.atlas.run import run_atlas
    from omni_thinker.studies.crews.make import Where

    file = None if known is None else Path(known)
    return run_atlas(_recipe(pool), Path(out), hours=hours, known=file, only=only, where=Where(jobs, cluster))


def train(
    recipe: AnyRecipe,
    arm: str = "joint",
    out: str | Path | None = None,
    *,
    order: Sequence[str] = (),
    steps: int | None = None,
) -> dict[str, Any]:
    """Train one arm (`joint`, `curriculum` or `single:TASK`) and evaluate it before and after.

    order: of a curriculum; without it, it is planned. steps: RL steps, in place of the recipe's. Returns as `study`."""
    kind, _, task = arm.partition(":")
    table = _recipe(recipe).model_dump(mode="json", exclude_unset=True)
    settings: dict[str, Any] = {"arms": ["start", kind], "single_budget": "full", "order": list(order)}
    settings["single_tasks"] = [task] if task else []
    if order or kind != "curriculum":
        settings["replan"] = False
    if steps is not None:
        settings["steps"] = steps
    return study({**table, "study": {**table.get("study", {}), **settings}}, out)


def evaluate(
    model: str | Path,
    recipe: AnyRecipe | None = None,
    *,
    split: str = "test",
    references: str | Path | None = None,
    samples: str | Path | None = None,
) -> dict[str, Any]:
    """Accuracy of a model on each task, in [0, 1], with its standard error and number of problems.

    recipe: tasks and settings (default: the four built-in tasks). references: references.jsonl of a run, for tasks
    that a judge scores. samples: a folder for every answer, as JSONL with the keys of lm-eval's `--log_samples`."""
    from omni_thinker.cli.single_eval import evaluate_model

    read = builtin_recipe() if recipe is None else _recipe(recipe)
    known, folder = (None if path is None else Path(path) for path in (references, samples))
    return evaluate_model(str(model), read, split, known, folder)


def plan(
    matrix: str | Path,
    *,
    forecaster: str = "hierarchical",
    strategy: str = "exact",
    order: Sequence[str] = (),
    objective: str = "mean",
    evidence: Sequence[str | Path] = (),
    level: float = 0.8,
) -> "Plan":
    """What each order and joint training are forecast to end at, with intervals that cover `level`, and a choice.

    matrix: transfer.json of a study or probe. evidence: run directories whose stages sharpen the forecast."""
    from omni_thinker.cli.planning import plan_file

    return plan_file(
        Path(matrix),
        forecaster=forecaster,
        strategy=strategy,
        order=order,
        objective=objective,
        fixed="",
        refresh_cost=None,
        evidence=[Path(run) for run in evidence],
        level=level,
    )


def forecast(
    matrix: str | Path,
    *,
    order: str | Sequence[str] = "",
    joint: Mapping[str, float] | None = None,
    merge: float | None = None,
    forecaster: str = "hierarchical",
    objective: str = "mean",
    level: float = 0.8,
) -> dict[str, Any]:
    """The forecast of one plan: stages in `order` ("a", or "a:0.5" for half a pass), shares of a joint run, or a merge
    at a scale."""
    from omni_thinker.cli.planning import forecast_file

    return forecast_file(
        Path(matrix),
        joint=",".join(f"{task}={share}" for task, share in (joint or {}).items()),
        order=order if isinstance(order, str) else ",".join(order),
        merge=merge,
        passes=None,
        forecaster=forecaster,
        objective=objective,
        level=level,
    )


def score(reward: str, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each `row["response"]` is scored, in order.

    Returns id, status (value, abstain or error), value in [0, 1], parts and reason of each.
    reward: a part (`math`, `python:MODULE:CLASS`), or RECIPE.toml:TASK. A row holds `id`, `response` and what the
    reward needs, such as `answer`."""
    from omni_thinker.cli.score_file import score_lines

    return score_lines(reward, (json.dumps(dict(row)) for row in rows), "rows")


def track(
    run: str | Path, to: Sequence[str] = (), *, project: str = "", folder: str = "", online: bool = False
) -> dict[str, Any]:
    """Send a run's metrics to trackers (`trackio`, `wandb`, `tensorboard`, `mlflow`): every row that they lack.

    What isn't given is as in the run's recipe. Returns the number of rows `sent`, and by tracker `rows` (all that it
    has), `failed` (why), `see` (how to look at them)."""
    from omni_thinker.runs.tracking.process import track_run

    return track_run(Path(run), to, project=project, folder=folder, online=online)


def load_run(directory: str | Path) -> "RunData":
    """All that a run directory holds, typed: result, metrics, transfer, plan, samples."""
    from omni_thinker.runs.read import load_run as read

    return read(Path(directory))


def tables(run: "RunData | str | Path") -> "dict[str, pandas.DataFrame]":
    """The tables of a run's report as pandas tables, by name: `arms`, `comparisons`, `budgets`, `orders` and others.

    run: a run directory, or what `load_run` read. Raises UserError where pandas, an extra, is missing."""
    from omni_thinker.report.frame import to_pandas
    from omni_thinker.report.frames import frames

    return {name: to_pandas(frame) for name, frame in frames(_run(run)).items()}


def figures(run: "RunData | str | Path") -> "dict[str, Picture]":
    """The figures of a run's report, by name: `differences`, `tokens`, `learning`, `transfer` and others.

    A notebook shows them by themselves; `save("file.png")` writes one, and `.figure` is matplotlib's."""
    from omni_thinker.report.figures.gallery import pictures

    return pictures(_run(run))


def side_by_side(*runs: str | Path) -> "dict[str, pandas.DataFrame]":
    """Several studies beside each other, as `omni-thinker compare` prints them: `studies`, `macro`, `against_joint`,
    and the `settings` that differ."""
    from omni_thinker.report import several
    from omni_thinker.report.frame import to_pandas

    studies = several.load_studies([Path(run) for run in runs])
    return {name: to_pandas(frame) for name, frame in several.side_by_side(studies).items()}


def _run(run: "RunData | str | Path") -> "RunData":
    return load_run(run) if isinstance(run, str | Path) else run


def _recipe(recipe: AnyRecipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    return parse_recipe(recipe, "recipe") if isinstance(recipe, Mapping) else load_recipe(Path(recipe))
