"""Commands on tasks: list them, look at problems, check every row."""

from pathlib import Path
from typing import Annotated

import typer

from omni_thinker.cli.options import Set, Weak, in_recipe, load, recipe_or_builtin, split_named
from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError, printable

tasks_app = typer.Typer(no_args_is_help=True, help="Look at tasks before you spend compute on them.")


@tasks_app.command("list")
def tasks_list(json_: Json = False) -> None:
    """List the built-in tasks and the kinds of source."""
    from omni_thinker.tasks.registry import BUILTIN, SOURCES

    for name, line in BUILTIN.items():
        typer.echo(f"builtin:{name}  {line}")
    typer.echo(f"sources: {', '.join(SOURCES)}")
    finish({"builtin": dict(BUILTIN), "sources": list(SOURCES)}, json_)


@tasks_app.command("show")
def tasks_show(
    source: Annotated[str, typer.Argument(help="A source such as builtin:math, or RECIPE:TASK.")],
    count: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 3,
    split: Annotated[str, typer.Option(help="The split: train, validation or test.")] = "train",
    difficulty: Annotated[
        float | None,
        typer.Option(min=0, max=10, help="Difficulty of a generated task."),
    ] = None,
    overrides: Set = None,
    json_: Json = False,
) -> None:
    """Print a few problems."""
    from omni_thinker.recipe import parse_recipe
    from omni_thinker.tasks.registry import make_tasks

    if ".toml" in source:
        path, _, name = source.rpartition(":")
        loaded = load(Path(path), overrides)
        if name not in loaded.tasks:
            raise UserError(f"no task {name!r}; it has {', '.join(loaded.tasks)}", file=path)
        loaded = loaded.model_copy(update={"tasks": {name: loaded.tasks[name]}})
    else:
        name = "shown"
        table = {"source": source, **({} if difficulty is None else {"difficulty": difficulty})}
        loaded = parse_recipe({"tasks": {name: table}}, source)
    task = make_tasks(loaded.tasks, loaded.data_root)[name]
    problems = task.problems(split_named(split))[:count]
    for problem in problems:
        typer.echo(printable(f"--- {problem.id}\n{problem.prompt}\n=> {problem.answer}"))
    rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer, "data": dict(p.data)} for p in problems]
    finish({"task": name, "split": split, "problems": rows}, json_)


@tasks_app.command("validate")
def tasks_validate(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file. Default: the four built-in tasks.")] = None,
    overrides: Set = None,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Check every row of every task: its gold answer must score 1, and a wrong answer must not."""
    from omni_thinker.cli.validate import validate_tasks
    from omni_thinker.runs.progress import working

    with working("scoring a gold and a wrong answer of every row"), in_recipe(recipe or Path("--set")):
        failures = validate_tasks(recipe_or_builtin(recipe, overrides))
    for name, failed in failures.items():
        typer.echo(f"{name}: {'all rows pass' if not failed else f'{len(failed)} rows fail'}")
        for failure in failed[:5]:
            typer.echo(printable(f"  {failure['problem']}: {failure['reason']}"))
    finish({"failures": failures}, json_)
    if any(failures.values()):
        raise typer.Exit(2)
