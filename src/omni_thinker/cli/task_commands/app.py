"""Commands on tasks: list them, look at problems, check every row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from omni_thinker.cli.options import Set, SkipRefused, Weak, in_recipe, load, recipe_or_builtin, split_named
from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError, printable
from omni_thinker.types import Problem

tasks_app = typer.Typer(no_args_is_help=True, help="Look at tasks before you spend compute on them.")


@tasks_app.command("list")
def tasks_list(json_: Json = False) -> None:
    """List the built-in tasks, the kinds of source, and the forms of rows."""
    from omni_thinker.tasks.formats import FORMATS
    from omni_thinker.tasks.registry import BUILTIN, SOURCES

    for name, line in BUILTIN.items():
        typer.echo(f"builtin:{name}  {line}")
    typer.echo(f"sources: {', '.join(SOURCES)}")
    for form in FORMATS.values():
        typer.echo(f"rows in the form {form.name}: {form.about}")
    finish({"builtin": dict(BUILTIN), "sources": list(SOURCES), "formats": list(FORMATS)}, json_)


@tasks_app.command("show")
def tasks_show(
    source: Annotated[str, typer.Argument(help="A source such as builtin:math, or RECIPE:TASK.")],
    count: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 3,
    split: Annotated[str, typer.Option(help="The split: train, validation or test.")] = "train",
    difficulty: Annotated[float | None, typer.Option(min=0, max=10, help="Difficulty of a generated task.")] = None,
    overrides: Set = None,
    skip_refused: SkipRefused = False,
    json_: Json = False,
) -> None:
    """Print a few problems."""
    from omni_thinker.recipe import parse_recipe
    from omni_thinker.tasks.registry import make_tasks, under

    if ".toml" in source:
        path, _, name = source.rpartition(":")
        loaded = load(Path(path), overrides, skip_refused)
        if name not in loaded.tasks:
            raise UserError(f"no task {name!r}; it has {', '.join(loaded.tasks)}", file=path)
        shown = loaded.tasks[name]
    elif overrides:
        raise UserError("sets keys of a recipe; show RECIPE:TASK", key="--set")
    else:
        name = "shown"
        spec = {"source": source, "skip_refused": skip_refused}
        try:
            loaded = parse_recipe({"tasks": {name: spec}}, source)
        except UserError as exc:  # of a recipe that nobody wrote
            raise UserError(exc.message, key="SOURCE") from None
        shown = loaded.tasks[name]
    if difficulty is not None:
        shown = shown.model_copy(update={"difficulty": difficulty})
    loaded = loaded.model_copy(update={"tasks": {name: shown}})
    try:
        task = make_tasks(loaded.tasks, loaded.data_root)[name]
    except UserError as exc:
        raise (UserError(exc.message, file=exc.file, key="SOURCE") if name == "shown" else exc) from None
    problems = [under(problem, loaded.tasks[name].system) for problem in task.problems(split_named(split))[:count]]
    finish({"task": name, "split": split, "problems": _print(problems)}, json_)


@tasks_app.command("import")
def tasks_import(
    file: Annotated[str, typer.Argument(help="A file or folder of rows, or hf:NAME_OR_FOLDER.")],
    name: Annotated[str, typer.Option(help="The task's name in the recipe.")] = "mine",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the task: dotted.key=value. Repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Print the recipe table that a file of rows would be read with, and three problems."""
    from omni_thinker.cli.task_commands.importing import import_rows

    imported = import_rows(file, name, overrides or [])
    typer.echo(printable(imported.toml))
    sizes = ", ".join(f"{split} {count}" for split, count in imported.sizes.items())
    typer.echo(f"# problems: {sizes}")
    for split in (split for split, count in imported.sizes.items() if not count):
        typer.echo(f"# no row falls into {split}: give more rows, or name those of each split (docs/recipe.md)")
    if imported.refused.count:
        typer.echo(printable(f"# {imported.refused.words()}"))
        typer.echo("# a study refuses the task because of these, unless it sets skip_refused = true")
    finish(
        {
            "recipe": imported.table,
            "sizes": imported.sizes,
            "refused": imported.refused.to_json(),
            "problems": _print(imported.problems, "# "),
        },
        json_,
    )


def _print(problems: Sequence[Problem], margin: str = "") -> list[dict[str, Any]]:
    """Print problems for people, `margin` before each line; the same as plain data."""
    for problem in problems:
        given = problem.data.get("reference", "no gold answer") if problem.answer is None else problem.answer
        said = printable(f"--- {problem.id}\n{problem.shown}\n=> {given}")
        typer.echo("\n".join(f"{margin}{line}".rstrip() if margin else line for line in said.split("\n")))
    return [{"id": p.id, "prompt": p.prompt, "answer": p.answer, "data": dict(p.data)} for p in problems]


@tasks_app.command("validate")
def tasks_validate(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file. Default: the four built-in tasks.")] = None,
    overrides: Set = None,
    skip_refused: SkipRefused = False,
    weak: Weak = False,
    json_: Json = False,
) -> None:
    """Check every row of every task: its gold answer must score 1, and a wrong answer must not."""
    from omni_thinker.cli.task_commands.validate import validate_tasks
    from omni_thinker.runs.progress import working

    with working("scoring a gold and a wrong answer of every row"), in_recipe(recipe or Path("--set")):
        done = validate_tasks(recipe_or_builtin(recipe, overrides, skip_refused))
    for name, failed in done.failures.items():
        typer.echo(f"{name}: {done.words(name)}")
        for failure in failed[:5]:
            typer.echo(printable(f"  {failure['problem']}: {failure['reason']}"))
    refused = {name: rows.to_json() for name, rows in done.refused.items()}
    finish({"failures": done.failures, "refused": refused, "without_gold": done.without_gold}, json_)
    if any(done.failures.values()):
        raise typer.Exit(2)
