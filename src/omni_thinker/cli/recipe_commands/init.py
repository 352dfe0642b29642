"""`omni-thinker recipe init`: a few questions, and a recipe that a study can begin with."""

import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError

BUILTIN = ("math", "coding", "qa", "writing")
_LENGTHS = {"math": 8, "coding": 32, "qa": 12, "writing": 40}
"""Tokens of an answer to the built-in tasks, as in the recipe quickstart."""
_OWN_LENGTH = 256


def recipe_init(
    out: Annotated[Path, typer.Argument(help="File to write. It must not exist.")] = Path("recipe.toml"),
    name: Annotated[str | None, typer.Option(help="What the study is called.")] = None,
    model: Annotated[
        str | None, typer.Option(help="builtin, tiny, a Hugging Face folder, a GGUF file, or a hub name.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Built-in tasks (math,qa), files of rows (mine=rows.jsonl), or both.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="RL steps of each arm.")] = None,
    arms: Annotated[str | None, typer.Option(help="Arms to compare, such as start,curriculum,joint.")] = None,
    track: Annotated[str | None, typer.Option(help="Trackers: trackio, wandb, tensorboard, mlflow.")] = None,
    json_: Json = False,
) -> None:
    """Ask a few questions and write a recipe. What is given as an option isn't asked, nor is anything without a
    terminal: defaults stand in."""
    from omni_thinker.cli.options import names
    from omni_thinker.recipe import parse_recipe
    from omni_thinker.recipe.study import StudySpec

    if out.exists():
        raise UserError("exists already; name another file", file=out)
    name = _asked("What is the study called?", name, out.stem if out.stem != "recipe" else "study")
    model = _asked("Which model? (builtin, tiny, a folder, a GGUF file, a hub name)", model, "builtin")
    tasks = _asked("Which tasks? (built-in: math,coding,qa,writing; your rows: NAME=FILE)", tasks, ",".join(BUILTIN))
    table: dict[str, Any] = {"name": name, "model": {"name": model}, "tasks": dict(map(_task, names(tasks)))}
    given = str(steps) if steps else None
    table["study"] = {"steps": _number("How many RL steps has each arm?", given, "24")}
    chosen = names(_asked("Which arms are compared?", arms, ",".join(StudySpec().arms)))
    table["study"] |= {"arms": chosen} if chosen != list(StudySpec().arms) else {}
    if to := names(_asked("Which trackers? (trackio, wandb, tensorboard, mlflow; none is fine)", track, "")):
        table["track"] = {"to": to}
    parse_recipe(table, out)
    text = _text(table, out)
    assert tomllib.loads(text) == table
    try:
        out.write_text(text, "utf-8")
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=out) from None
    place = shlex.quote(str(out))
    typer.echo(f"wrote {out}; check it with `omni-thinker study {place} --dry-run`, start it without --dry-run")
    typer.echo(f"`omni-thinker recipe explain {place}` lists every other key")
    finish({"recipe": str(out), **table}, json_)


def _asked(question: str, given: str | None, default: str) -> str:
    if given is not None:
        return given
    if not sys.stdin.isatty():
        return default
    answer: str = typer.prompt(question, default=default, err=True)
    return answer.strip()


def _number(question: str, given: str | None, default: str) -> int:
    answer = _asked(question, given, default)
    try:
        return int(answer)
    except ValueError:
        raise UserError(f"must be a whole number, got {answer!r:.80}", key="--steps") from None


def _task(word: str) -> tuple[str, dict[str, Any]]:
    """The name and the table of a task: `math`, or `mine=rows.jsonl`."""
    name, _, file = (part.strip() for part in word.partition("="))
    if file:
        if not Path(file).exists():
            raise UserError("no such file of rows", file=file, key="--tasks")
        return name, {"source": "jsonl", "files": [file], "max_tokens": _OWN_LENGTH}
    if name not in BUILTIN:
        raise UserError(f"{name!r:.80} is neither one of {', '.join(BUILTIN)} nor NAME=FILE", key="--tasks")
    return name, {"source": f"builtin:{name}", "max_tokens": _LENGTHS[name]}


def _text(table: dict[str, Any], out: Path) -> str:
    """The file, with where its schema lies and what it is."""
    from omni_thinker.packaged import SCHEMA, recipes_folder

    schema = recipes_folder() / SCHEMA
    head = [f"#:schema {schema.as_uri()}"] if schema.is_file() else []
    return "\n".join([*head, f"# {table['name']}: {len(table['tasks'])} tasks.", tomli_w.dumps(table).strip()]) + "\n"
