"""The command line: every command is one call into the library. Imports what is heavy only where it is used."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker import __version__
from omni_thinker.cli.judge import judge_app
from omni_thinker.cli.models import merge_models, model_app
from omni_thinker.cli.output import Json, finish, tell
from omni_thinker.errors import UserError, machine_error, printable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Multi-task RL post-training of one language model: train on each task, measure what that did to the others, "
    "forecast every order, train the plan, and compare it honestly. Start with: omni-thinker study recipes/tiny.toml",
)
tasks_app = typer.Typer(no_args_is_help=True, help="Look at tasks before spending compute on them.")
app.add_typer(model_app, name="model")
app.add_typer(tasks_app, name="tasks")
app.add_typer(judge_app, name="judge")
app.command("merge")(merge_models)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe file (TOML); with --resume, a run's directory.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the run; must not hold one yet. Default: runs/NAME-TIME.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="RECIPE is the directory of a run that was stopped: go on with it.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Override a recipe key: dotted.key=value. May be repeated.")
]


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
        help="Where bubblewrap is missing, run the model's programs in a process with limits alone.",
    ),
]
Forecasts = Annotated[str, typer.Option("--forecaster", help="hierarchical, naive, additive, relative or logit.")]
Goal = Annotated[str, typer.Option("--objective", help="mean, worst, or weights: task=2,task=1.")]
Level = Annotated[float, typer.Option("--level", help="Of the intervals, 0.01 to 0.999.")]


def main() -> None:
    """Run the command line. Bad input: one line on stderr, exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except UserError as exc:
        sys.stderr.write(f"omni-thinker: {printable(str(exc))}\n")
        sys.exit(2)
    except (_Interrupted, _Terminated) as exc:
        sys.unraisablehook = lambda _: None  # what was half made when the signal came complains when it is collected
        word, code = ("interrupted", 130) if isinstance(exc, _Interrupted) else ("terminated", 143)
        sys.stderr.write(f"omni-thinker: {word}; `omni-thinker study DIR --resume` goes on with a study\n")
        sys.exit(code)
    except Exception as exc:
        if (why := machine_error(exc)) is None:
            raise
        sys.stderr.write(f"omni-thinker: {why}; once that is mended, `omni-thinker study DIR --resume` goes on\n")
        sys.exit(1)


class _Interrupted(BaseException):
    """Ctrl-C in a run. Typer ends with 130 and without a word at KeyboardInterrupt."""


class _Terminated(BaseException):
    """SIGTERM, as an exception: on its way everything that is open is closed, and children are gone."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def study(
    recipe: RecipeFile,
    out: Out = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Run seeds 0 to N - 1; with --resume more than there were.")
    ] = None,
    overrides: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the work ahead, write nothing.")
    ] = False,
    resume: Resume = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Seeds at a time, each in a process of its own, on a GPU each where there are.")
    ] = 1,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Train every arm at equal budget and compare them on the test split."""
    extra = [f"study.seeds={list(range(seeds))}"] if seeds else []
    options = [word for override in overrides or [] for word in ("--set", override)]
    options += ["--allow-weak-sandbox"] if weak else []
    overrides = [*(overrides or []), *extra]
    _run(recipe, out, overrides, json_, dry_run=dry_run, resume=resume, jobs=jobs, options=options)


@app.command()
def train(
    recipe: RecipeFile,
    arm: Annotated[str, typer.Option(help="joint (default), curriculum, or single:TASK.")] = "",
    order: Annotated[
        str, typer.Option(help="Fixed order of a curriculum: task,task,... Without it, it is planned.")
    ] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="RL steps, instead of the recipe's study.steps.")] = None,
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Train one arm and evaluate it before and after."""
    kind, _, task = (arm or "joint").partition(":")
    if kind not in ("joint", "curriculum", "single") or bool(task) != (kind == "single"):
        raise UserError(f"takes joint, curriculum or single:TASK, got {arm!r}", key="--arm")
    whole = [f'study.arms=["start", "{kind}"]', 'study.single_budget="full"']
    extra = [] if resume and not arm else whole
    extra += [f"study.steps={steps}"] if steps else []
    extra += [f"study.order={json.dumps(_names(order))}"] if order else []
    extra += [f"study.single_tasks={json.dumps([task])}"] if task else []
    _run(recipe, out, [*(overrides or []), *extra], json_, resume=resume)


@app.command()
def probe(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (TOML).")],
    kinds: Annotated[
        str,
        typer.Option("--kinds", help="full, short, lora, gradient; several (a,b) are compared. Default: the recipe's."),
    ] = "",
    out: Out = None,
    overrides: Set = None,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Only measure transfer: the matrix (transfer.json), what it cost, and the plan made from it."""
    extra = ['study.arms=["start"]']
    named = _names(kinds) or list(_load(recipe, overrides).study.probes) or ["full"]
    _run(recipe, out, [*(overrides or []), *extra, f"study.probes={json.dumps(named)}"], json_)


@app.command()
def plan(
    matrix: Annotated[Path, typer.Option(help="transfer.json of a study or probe.")],
    forecaster: Forecasts = "hierarchical",
    strategy: Annotated[
        str,
        typer.Option(help="exact, back_greedy, least_to_most_forgettable, front_greedy, reversed or random."),
    ] = "exact",
    order: Annotated[str, typer.Option(help="Forecast this order (task,task,...) instead of choosing one.")] = "",
    objective: Goal = "mean",
    fix: Annotated[str, typer.Option(help="Places that tasks must have, 1 is first: task=1,task=4.")] = "",
    refresh_cost: Annotated[
        float | None,
        typer.Option(help="Put in short refresh stages that gain more than this for each pass they take."),
    ] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="A run directory whose stages sharpen the forecast. May be repeated.")
    ] = None,
    level: Level = 0.8,
    json_: Json = False,
) -> None:
    """Forecast what orders and joint training would end at, and choose."""
    from omni_thinker.cli.planning import plan_file

    made = plan_file(
        matrix,
        forecaster=forecaster,
        strategy=strategy,
        order=_names(order),
        objective=objective,
        fixed=fix,
        refresh_cost=refresh_cost,
        evidence=evidence or [],
        level=level,
    )
    for row in made.orders:
        chance = "" if row.probability_best is None else f"  best with probability {row.probability_best:.2f}"
        mark = "*" if row.order == made.chosen.order else " "
        span = f"[{row.interval.low:.3f}, {row.interval.high:.3f}]"
        typer.echo(f"{mark} {' -> '.join(row.order)}  {row.score:.3f} {span}{chance}")
    together = made.joint
    mark = "*" if made.chosen.kind == "joint" else " "
    typer.echo(f"{mark} jointly  {together.score:.3f} [{together.interval.low:.3f}, {together.interval.high:.3f}]")
    for name, (named, score, regret) in made.strategies.items():
        typer.echo(f"{name}: {' -> '.join(named)}  {score:.3f}, regret {regret:.3f}")
    for task, interval in made.chosen.tasks.items():
        typer.echo(f"{task}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    typer.echo(made.words)
    finish(made.to_json(), json_)


@app.command()
def transfer(
    matrix: Annotated[Path, typer.Argument(help="transfer.json of a study or probe.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the cells as a table; must not exist.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it (.svg, .png or .pdf); must not exist.")] = None,
    json_: Json = False,
) -> None:
    """What RL on each task did to every task: the matrix, and its shared and specific parts."""
    from omni_thinker.cli.planning import describe_matrix, write_new
    from omni_thinker.report import plot_transfer
    from omni_thinker.transfer.matrix import load_matrix
    from omni_thinker.transfer.metrics import to_csv

    found = load_matrix(matrix)
    table = describe_matrix(found)
    wanted = {"--csv": (csv, lambda: to_csv(found).encode())}
    wanted["--plot"] = (plot, lambda: plot_transfer(found, plot.suffix.lower().removeprefix(".") if plot else ""))
    write_new({key: (path, make) for key, (path, make) in wanted.items() if path is not None})
    names = list(table["start"])
    width = max(12, *(len(name) + 1 for name in names))
    typer.echo("after RL on".ljust(width) + "".join(name.rjust(width) for name in names))
    for label, row in (("start", table["start"]), *table["transfer"].items(), ("shared", table["shared"])):
        form = "{:.3f}" if label == "start" else "{:+.3f}"
        cells = ("-" if row.get(name) is None else form.format(row[name]) for name in names)
        typer.echo(label.ljust(width) + "".join(cell.rjust(width) for cell in cells))
    finish(table, json_)


@app.command()
def forecast(
    matrix: Annotated[Path, typer.Option(help="transfer.json of a study or probe.")],
    joint: Annotated[str, typer.Option(help="Shares of a joint run, adding up to 1: task=0.5,task=0.5.")] = "",
    order: Annotated[str, typer.Option(help="Stages in order (task,task,...); task:0.5 is half a pass.")] = "",
    merge: Annotated[float | None, typer.Option(help="Scale at which single-task experts are added up.")] = None,
    passes: Annotated[
        float | None, typer.Option(help="Length of the joint run in passes; default: one for each task.")
    ] = None,
    forecaster: Forecasts = "hierarchical",
    objective: Goal = "mean",
    level: Level = 0.8,
    json_: Json = False,
) -> None:
    """Forecast one plan: stages (a task may come again), a joint run, or a merge."""
    from omni_thinker.cli.planning import forecast_file

    found = forecast_file(
        matrix,
        joint=joint,
        order=order,
        merge=merge,
        passes=passes,
        forecaster=forecaster,
        objective=objective,
        level=level,
    )
    for task, row in found["forecast"].items():
        typer.echo(f"{task}: {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    typer.echo(f"{objective}: {found['score']:.3f} [{found['interval']['low']:.3f}, {found['interval']['high']:.3f}]")
    finish(found, json_)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="builtin, tiny, a Hugging Face folder, or a hub name.")],
    recipe: Annotated[Path | None, typer.Option(help="Tasks and settings; default: the four built-in tasks.")] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    references: Annotated[Path | None, typer.Option(help="references.jsonl of a run, for judged tasks.")] = None,
    overrides: Set = None,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Accuracy of a model on each task."""
    from omni_thinker.cli.single_eval import evaluate_model
    from omni_thinker.runs.progress import working

    loaded = _recipe_or_builtin(recipe, overrides)
    with working(f"answering the {split} problems"), _in_recipe(recipe or Path("--set")):
        result = evaluate_model(model, loaded, split, references)
    for name, row in result["tasks"].items():
        typer.echo(f"{name}: {row['mean']:.3f} +- {row['stderr'] or 0:.3f} ({row['n']} problems)")
    for note in result["notes"]:
        typer.echo(note)
    finish(result, json_)


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="A run directory.")], json_: Json = False) -> None:
    """Write report.html again."""
    from omni_thinker.report import write_report

    path = write_report(directory)
    typer.echo(f"report: {path}")
    finish({"report": str(path)}, json_)


@app.command()
def score(
    reward: Annotated[str, typer.Option(help="A reward part (math, unit_tests, short_answer, ...), or RECIPE:TASK.")],
    in_: Annotated[Path, typer.Option("--in", help="Rows with id, response, and what the reward needs (JSONL).")],
    out: Annotated[Path, typer.Option(help="Where the scores go (JSONL); must not exist.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of each kind; default: one per core.")] = None,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Score responses from a file: how to debug a reward before spending a day of compute on it."""
    from omni_thinker.cli.score_file import score_file
    from omni_thinker.runs.progress import working

    if workers:
        from omni_thinker.isolation import use_workers

        use_workers(workers)
    with working(f"scoring {in_}"):
        summary = score_file(reward, in_, out)
    typer.echo(
        f"{summary['rows']} rows: {summary['value']} values (mean {summary['mean']}), "
        f"{summary['abstain']} abstentions, {summary['error']} errors; {out}"
    )
    finish(summary, json_)


@tasks_app.command("list")
def tasks_list(json_: Json = False) -> None:
    """The built-in tasks and the kinds of source."""
    from omni_thinker.tasks.registry import BUILTIN, SOURCES

    for name, line in BUILTIN.items():
        typer.echo(f"builtin:{name}  {line}")
    typer.echo(f"sources: {', '.join(SOURCES)}")
    finish({"builtin": dict(BUILTIN), "sources": list(SOURCES)}, json_)


@tasks_app.command("show")
def tasks_show(
    source: Annotated[str, typer.Argument(help="A source such as builtin:math, or RECIPE:TASK.")],
    count: Annotated[int, typer.Option(min=1, help="How many problems.")] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    difficulty: Annotated[float | None, typer.Option(min=0, max=10, help="For built-in tasks.")] = None,
    overrides: Set = None,
    json_: Json = False,
) -> None:
    """Print a few problems."""
    from omni_thinker.recipe import parse_recipe
    from omni_thinker.study.setup import make_tasks

    if ".toml" in source:
        path, _, name = source.rpartition(":")
        loaded = _load(Path(path), overrides)
        if name not in loaded.tasks:
            raise UserError(f"no task {name!r}; it has {', '.join(loaded.tasks)}", file=path)
        loaded = loaded.model_copy(update={"tasks": {name: loaded.tasks[name]}})
    else:
        name = "shown"
        table = {"source": source, **({} if difficulty is None else {"difficulty": difficulty})}
        loaded = parse_recipe({"tasks": {name: table}}, source)
    task = make_tasks(loaded)[name]
    problems = task.problems(_split(split))[:count]
    for problem in problems:
        typer.echo(printable(f"--- {problem.id}\n{problem.prompt}\n=> {problem.answer}"))
    rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer, "data": dict(p.data)} for p in problems]
    finish({"task": name, "split": split, "problems": rows}, json_)


@tasks_app.command("validate")
def tasks_validate(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file; default: the four built-in tasks.")] = None,
    overrides: Set = None,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Check every row of every task: the gold answer must score 1 and a wrong one must not."""
    from omni_thinker.cli.validate import validate_tasks
    from omni_thinker.runs.progress import working

    with working("scoring a gold and a wrong answer of every row"), _in_recipe(recipe or Path("--set")):
        failures = validate_tasks(_recipe_or_builtin(recipe, overrides))
    for name, found in failures.items():
        typer.echo(f"{name}: {'fine' if not found else f'{len(found)} rows fail'}")
        for failure in found[:5]:
            typer.echo(printable(f"  {failure['problem']}: {failure['reason']}"))
    finish({"failures": failures}, json_)
    if any(failures.values()):
        raise typer.Exit(2)


def _run(
    recipe: Path,
    out: Path | None,
    overrides: list[str],
    json_: bool,
    *,
    dry_run: bool = False,
    resume: bool = False,
    jobs: int = 1,
    options: Sequence[str] = (),
) -> None:
    """`options`: of the command line, for processes that run parts of it."""
    if resume:
        if out is not None:
            raise UserError("is the directory that is gone on with; leave it out", key="--out")
        out, recipe = recipe, recipe / "recipe.toml"
        if not recipe.is_file():
            raise UserError("holds no run to go on with", file=out, key="--resume")
    loaded = _load(recipe, overrides)
    target = out or Path("runs") / f"{loaded.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if not resume:
        from omni_thinker.runs.rundir import check_free

        check_free(target)
    from omni_thinker.study.parallel import drop_parts, follow_parent, is_parallel, run_parallel
    from omni_thinker.study.study import WORK, describe, run_study

    if dry_run:
        with _in_recipe(recipe):
            summary = describe(loaded)
        tell(summary, units=WORK)
        finish(summary, json_)
        return
    follow_parent()
    try:
        with _in_recipe(recipe):
            if is_parallel(target) if resume else jobs > 1:
                result = run_parallel(loaded, target, jobs, resume=resume, options=options)
            else:
                if jobs > 1:
                    typer.echo("its seeds run one after another, as they are one run already", err=True)
                result = run_study(loaded, target, resume=resume)
                drop_parts(loaded, target)
    except KeyboardInterrupt:
        raise _Interrupted from None
    from omni_thinker.report import write_report

    path = write_report(target)
    typer.echo(result["verdict"])
    typer.echo(f"report: {path}")
    finish({"out": str(target), "report": str(path), **result}, json_)


@contextmanager
def _in_recipe(path: Path) -> Iterator[None]:
    """Name the recipe in errors that know only the key."""
    try:
        yield
    except UserError as exc:
        raise exc.within(path) from None


def _load(path: Path, overrides: list[str] | None) -> Any:
    from omni_thinker.recipe import load_recipe

    return load_recipe(path, overrides or [])


def _recipe_or_builtin(path: Path | None, overrides: list[str] | None) -> Any:
    from omni_thinker.recipe import builtin_recipe

    return _load(path, overrides) if path else builtin_recipe(overrides or [])


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _split(name: str) -> Any:
    from omni_thinker.types import SPLITS

    if name not in SPLITS:
        raise UserError(f"takes {', '.join(SPLITS)}, got {name!r}", key="--split")
    return name
