"""The command line: every command is one call into the library. Heavy imports are inside functions."""

import json
import shlex
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker import __version__
from omni_thinker.cli.atlas import atlas
from omni_thinker.cli.judge import judge_app
from omni_thinker.cli.model_commands.app import merge_models, model_app
from omni_thinker.cli.model_commands.push import push_model
from omni_thinker.cli.options import (
    AnyRecipe,
    Out,
    RecipeFile,
    Resume,
    Set,
    SkipRefused,
    Weak,
    in_recipe,
    load,
    names,
    recipe_or_builtin,
)
from omni_thinker.cli.output import Json, finish, tell
from omni_thinker.cli.plan import forecast, plan, transfer
from omni_thinker.cli.recipe_commands.app import recipe_app
from omni_thinker.cli.run_commands.compare import compare
from omni_thinker.cli.run_commands.report import report
from omni_thinker.cli.run_commands.status import status
from omni_thinker.cli.run_commands.watch import watch
from omni_thinker.cli.task_commands.app import tasks_app
from omni_thinker.cli.track import track
from omni_thinker.errors import UserError, machine_error, printable
from omni_thinker.policy.fsdp.place import given_place

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to import as everything else of --help
    help="Post-train one language model with RL on several tasks: train on each task, measure what that does to the "
    "others, forecast every order, train the best plan, and compare it at equal budget. "
    "Start with: omni-thinker study tiny",
)


def main() -> None:
    """Run the command line. Bad input: one line on stderr, exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if (code := _follow()) is None:
            code = app(standalone_mode=False, prog_name="omni-thinker")
        if code:
            sys.exit(code)
    except UserError as exc:
        sys.stderr.write(f"omni-thinker: {printable(str(exc))}\n")
        sys.exit(2)
    except _Ended as exc:
        sys.unraisablehook = lambda _: None  # what was half made when the signal came complains when it is collected
        sys.stderr.write(f"omni-thinker: {exc.word}{exc.remedy}\n")
        sys.exit(exc.code)
    except typer.Abort:  # of a question that was asked
        sys.stderr.write("\nomni-thinker: interrupted\n")
        sys.exit(130)
    except Exception as exc:
        if hasattr(exc, "format_message"):  # of the parser of options; Typer has its own copy of click's classes
            _bad_option(exc)
        if (why := machine_error(exc)) is None:
            raise
        sys.stderr.write(f"omni-thinker: {why}\n")
        sys.exit(1)


def _follow() -> int | None:
    """Under torchrun, a rank above 0 computes what rank 0's command says; its exit code. None: this is rank 0, or no
    torchrun started it."""
    if (place := given_place()) is None:
        return None
    if place.rank:
        from omni_thinker.policy.fsdp.follower import follow

        return follow(place)
    from omni_thinker.policy.fsdp.crew import crew_of

    crew_of()  # so that the others end with this process, whatever its command comes to
    return None


def _bad_option(exc: Any) -> None:
    """One line, or the help where nothing was given."""
    message = exc.format_message()
    if "\n" in message:
        exc.show()
    else:
        command = exc.ctx.command_path if getattr(exc, "ctx", None) else "omni-thinker"
        sys.stderr.write(f"omni-thinker: {printable(message).rstrip('.')}; see {command} --help\n")
    sys.exit(exc.exit_code)


class _Ended(BaseException):
    """A signal as an exception, so that open files are closed and child processes ended on the way out. At
    KeyboardInterrupt, Typer would exit with 130 and print nothing."""

    def __init__(self, word: str, code: int, remedy: str = "") -> None:
        super().__init__(word)
        self.word, self.code, self.remedy = word, code, remedy


def _terminate(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise _Ended("terminated", 143)


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
        int | None, typer.Option(min=1, help="Run seeds 0 to N - 1. With --resume, N may be larger than before.")
    ] = None,
    overrides: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the work ahead, but write nothing.")
    ] = False,
    resume: Resume = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Arms, probes and evaluations at a time, each in a process (and on a GPU).")
    ] = 1,
    cluster: Annotated[
        str, typer.Option(help="Spread them over a Ray cluster: HOST:PORT of its head, or auto (docs/cluster.md).")
    ] = "",
    times: Annotated[
        Path | None, typer.Option(help="For --dry-run: a run to take times from, or JSON with seconds by kind of work.")
    ] = None,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Train every arm at equal budget and compare them on the test split."""
    extra = [f"study.seeds={list(range(seeds))}"] if seeds else []
    overrides = [*(overrides or []), *extra]
    _run(
        recipe,
        out,
        overrides,
        json_,
        skip_refused=skip_refused,
        dry_run=dry_run,
        resume=resume,
        jobs=jobs,
        cluster=cluster,
        times=times,
    )


@app.command()
def train(
    recipe: RecipeFile,
    arm: Annotated[str, typer.Option(help="The arm: joint (default), curriculum, or single:TASK.")] = "",
    order: Annotated[str, typer.Option(help="Order of the curriculum: task,task,... By default it is planned.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="RL steps. Default: the recipe's study.steps.")] = None,
    out: Out = None,
    overrides: Set = None,
    resume: Resume = False,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Train one arm and evaluate it before and after."""
    kind, _, task = (arm or "joint").partition(":")
    if kind not in ("joint", "curriculum", "single") or bool(task) != (kind == "single"):
        raise UserError(f"must be joint, curriculum or single:TASK, got {arm!r}", key="--arm")
    whole = [f'study.arms=["start", "{kind}"]', 'study.single_budget="full"']
    extra = [] if resume and not arm else whole
    extra += [f"study.steps={steps}"] if steps else []
    extra += [f"study.order={json.dumps(names(order))}"] if order else []
    extra += ["study.replan=false"] if extra and (order or kind != "curriculum") else []
    extra += [f"study.single_tasks={json.dumps([task])}"] if task else []
    _run(recipe, out, [*(overrides or []), *extra], json_, skip_refused=skip_refused, resume=resume)


@app.command()
def probe(
    recipe: AnyRecipe,
    kinds: Annotated[
        str,
        typer.Option("--kinds", help="full, short, lora, gradient. Several (a,b) are compared. Default: the recipe's."),
    ] = "",
    out: Out = None,
    overrides: Set = None,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Measure transfer only: write the matrix (transfer.json), its cost, and a plan made from it."""
    extra = ['study.arms=["start"]', "study.replan=false"]
    kind_names = names(kinds) or list(load(recipe, overrides).study.probes) or ["full"]
    _run(
        recipe,
        out,
        [*(overrides or []), *extra, f"study.probes={json.dumps(kind_names)}"],
        json_,
        skip_refused=skip_refused,
    )


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="builtin, tiny, a Hugging Face folder, a GGUF file, or a hub name.")],
    recipe: Annotated[Path | None, typer.Option(help="Tasks and settings. Default: the four built-in tasks.")] = None,
    split: Annotated[str, typer.Option(help="The split: validation or test.")] = "test",
    references: Annotated[Path | None, typer.Option(help="The references.jsonl of a run, for judged tasks.")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="Folder for every answer: JSONL with the keys of lm-eval's --log_samples.")
    ] = None,
    lm_eval: Annotated[
        str, typer.Option("--lm-eval", help="Also run these tasks of EleutherAI's lm-eval: task,task,... (extra).")
    ] = "",
    lm_eval_include: Annotated[Path | None, typer.Option(help="Folder with lm-eval tasks of your own (YAML).")] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option(min=1, help="Problems of each lm-eval task. Default: all.")
    ] = None,
    overrides: Set = None,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Measure the accuracy of a model on each task."""
    from omni_thinker.cli.harness import Wanted, check_harness, lines_of, run_harness
    from omni_thinker.cli.single_eval import evaluate_model
    from omni_thinker.runs.progress import working

    wanted = Wanted(names(lm_eval), lm_eval_include, lm_eval_limit)
    if wanted.tasks:
        check_harness(wanted)
    loaded = recipe_or_builtin(recipe, overrides, skip_refused)
    theirs = None
    if wanted.tasks:  # first, since it may fail after a while, and ours would be lost
        with working(f"answering {lm_eval}"):
            theirs = run_harness(model, wanted)
    with working(f"answering the {split} problems"), in_recipe(recipe or Path("--set")):
        result = evaluate_model(model, loaded, split, references, samples)
    for name, row in result["tasks"].items():
        typer.echo(f"{name}: {row['mean']:.3f} +- {row['stderr'] or 0:.3f} ({row['n']} problems)")
        for measure, own in result["measures"].get(name, {}).items():
            typer.echo(f"  {measure}: {own['mean']:.3f} +- {own['stderr'] or 0:.3f} ({own['n']} problems)")
    for file in result["samples"]:
        typer.echo(f"answers: {file}")
    for note in result["notes"]:
        typer.echo(note)
    if theirs is not None:
        result["lm_eval"] = theirs
        typer.echo("\n".join(lines_of(theirs)))
    finish(result, json_)


@app.command()
def score(
    reward: Annotated[str, typer.Option(help="A reward part (math, unit_tests, short_answer, ...), or RECIPE:TASK.")],
    in_: Annotated[Path, typer.Option("--in", help="Rows with id, response, and what the reward needs (JSONL).")],
    out: Annotated[
        Path | None, typer.Option(help="File for the scores (JSONL). It must not exist. Optional with --explain.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of each kind. Default: one per core.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print for each row its value, what was taken as the answer, why it lost.")
    ] = False,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Score responses from a file, to debug a reward before you spend compute on it."""
    from omni_thinker.cli.score_file import explained, score_file
    from omni_thinker.runs.progress import working

    if out is None and not explain:
        raise UserError("give a file for the scores, or --explain to print them", key="--out")
    if workers:
        from omni_thinker.isolation import use_workers

        use_workers(workers)
    with working(f"scoring {in_}"):
        summary, results = score_file(reward, in_, out, skip_refused=skip_refused)
    if explain:
        typer.echo("\n".join(explained(results)))
        summary["explained"] = [{key: row[key] for key in ("id", "status", "value", "reason")} for row in results]
    typer.echo(
        f"{summary['rows']} rows: {summary['value']} values (mean {summary['mean']}), "
        f"{summary['abstain']} abstentions, {summary['error']} errors"
        + (f", {summary['refused']} refused" if skip_refused else "")
        + (f"; {out}" if out else "")
    )
    finish(summary, json_)


def _run(
    recipe: Path,
    out: Path | None,
    overrides: list[str],
    json_: bool,
    *,
    skip_refused: bool = False,
    dry_run: bool = False,
    resume: bool = False,
    jobs: int = 1,
    cluster: str = "",
    times: Path | None = None,
) -> None:
    """Run or resume a study."""
    if cluster and jobs > 1:
        raise UserError(
            "can't be used with --cluster, where cluster.most says how many units run at a time", key="--jobs"
        )
    if times is not None and not dry_run:
        raise UserError("is for --dry-run alone; a study measures its times itself", key="--times")
    if resume:
        if out is not None:
            raise UserError("can't be used with --resume; give the run's directory as RECIPE", key="--out")
        out, recipe = recipe, recipe / "recipe.toml"
        if not recipe.is_file():
            raise UserError("has no run to resume", file=out, key="--resume")
    loaded = load(recipe, overrides, skip_refused)
    target = out or Path("runs") / f"{loaded.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if not resume:
        from omni_thinker.runs.rundir import check_free

        check_free(target)
    from omni_thinker.studies.crews.make import Where
    from omni_thinker.studies.study import describe, run_study
    from omni_thinker.studies.units import WORK

    if dry_run:
        with in_recipe(recipe):
            summary = describe(loaded, times)
        tell(summary, units=WORK)
        finish(summary, json_)
        return
    remedy = f"; resume with `omni-thinker study {shlex.quote(str(target))} --resume`"
    try:
        with in_recipe(recipe):
            result = run_study(loaded, target, resume=resume, where=Where(jobs, cluster))
    except KeyboardInterrupt:
        raise _Ended("interrupted", 130, remedy) from None
    except _Ended as exc:
        raise _Ended(exc.word, exc.code, remedy) from None
    except Exception as exc:
        if (why := machine_error(exc)) is None:
            raise
        raise _Ended(why, 1, remedy.replace("; ", "; once that is fixed, ", 1)) from None
    from omni_thinker.cli.run_commands.final import tell_result

    path = tell_result(target)
    finish({"out": str(target), "report": str(path), **result}, json_)


app.command()(atlas)
app.command()(report)
app.command()(compare)
app.command()(status)
app.command()(watch)
app.command()(track)
app.command()(plan)
app.command()(forecast)
app.command()(transfer)
app.command("merge")(merge_models)
app.command("push")(push_model)
app.add_typer(tasks_app, name="tasks")
app.add_typer(judge_app, name="judge")
app.add_typer(model_app, name="model")
app.add_typer(recipe_app, name="recipe")
