"""`omni-thinker recipe init`: a few questions, and a recipe that a study can begin with."""

import shlex
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from omni_thinker.cli.output import Json, finish
from omni_thinker.errors import UserError, printable

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
    try:
        if out.exists() or out.is_symlink():
            raise UserError("exists already; name another file", file=out)
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be a file: {exc}", file=f"{out!s:.80}") from None
    table = _answers(
        out,
        {"name": name, "model": model, "tasks": tasks, "steps": None if steps is None else str(steps)}
        | {"arms": arms, "track": track},
    )
    text = _text(table, out)
    assert tomllib.loads(text) == table
    try:
        encoded = text.encode()
        with out.open("xb") as file:
            file.write(encoded)
    except FileExistsError:
        raise UserError("exists already; name another file", file=out) from None
    except UnicodeEncodeError:
        raise UserError("an answer isn't UTF-8; nothing was written", file=out) from None
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=out) from None
    place = shlex.quote(str(out))
    typer.echo(f"wrote {out}; check it with `omni-thinker study {place} --dry-run`, start it without --dry-run")
    typer.echo(f"`omni-thinker recipe explain {place}` lists every other key")
    finish({"recipe": str(out), **table}, json_)


def _answers(out: Path, given: Mapping[str, str | None]) -> dict[str, Any]:
    """The recipe's tables by what was given as options and what people answer."""
    from omni_thinker.recipe.study import StudySpec

    usual = ",".join(StudySpec().arms)
    questions = [
        ("name", "What is the study called?", out.stem if out.stem != "recipe" else "study"),
        ("model", "Which model? (builtin, tiny, a folder, a GGUF file, a hub name)", "builtin"),
        ("tasks", "Which tasks? (built-in: math,coding,qa,writing; your rows: NAME=FILE)", ",".join(BUILTIN)),
        ("steps", "How many RL steps has each arm?", "24"),
        ("arms", "Which arms are compared?", usual),
        ("track", "Which trackers? (trackio, wandb, tensorboard, mlflow; none is fine)", ""),
    ]
    table: dict[str, Any] = {"tasks": dict([_task(BUILTIN[0])])}
    for key, question, default in questions:
        asks = given[key] is None and sys.stdin.isatty()
        answer = given[key]
        while True:
            if asks:
                answer = typer.prompt(question, default=default, err=True).strip()
            try:
                table |= _tables(key, default if answer is None else answer, table, out)
                break
            except UserError as exc:
                if not asks:
                    raise
                typer.echo(printable(f"{exc.key or key}: {exc.message}"), err=True)
    return {key: table[key] for key in ("name", "model", "tasks", "study", "track") if key in table}


def _tables(key: str, answer: str, table: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """What an answer puts into the recipe. Raises UserError where a recipe can't say that."""
    from omni_thinker.cli.options import names
    from omni_thinker.recipe import parse_recipe
    from omni_thinker.recipe.study import StudySpec
    from omni_thinker.runs.tracking.send import TRACKERS

    new: dict[str, Any] = {key: answer}
    if key == "model":
        if not answer.strip() or not answer.isprintable():
            raise UserError(f"needs a name, got {answer!a:.80}", key="--model")
        new = {"model": {"name": answer}}
    elif key == "tasks":
        chosen = [_task(word) for word in names(answer)]
        if len({name for name, _ in chosen}) < len(chosen):
            raise UserError("names a task twice", key="--tasks")
        new = {"tasks": dict(chosen)}
    elif key == "steps":
        new = {"study": {"steps": _number(answer)}}
    elif key == "arms":
        arms = names(answer)
        new = {"study": table["study"] | ({"arms": arms} if arms != list(StudySpec().arms) else {})}
    elif key == "track":
        for name in (to := names(answer)):
            TRACKERS.find(name, "--track")
        new = {"track": {"to": to}} if to else {}
    try:
        parse_recipe({**table, **new}, out)
    except UserError as exc:
        if key == "name":
            words = "begins with a letter or a digit; then letters, digits, '.', '_' and '-' may follow"
            raise UserError(f"{words}; got {answer!r:.80}", key="--name") from None
        raise UserError(exc.message, key=f"--{key}") from None
    return new


def _number(answer: str) -> int:
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
    count = len(table["tasks"])
    head = [f"#:schema {schema.as_uri()}"] if schema.is_file() else []
    head.append(f"# {table['name']}: {count} {'task' if count == 1 else 'tasks'}.")
    return "\n".join([*head, tomli_w.dumps(table).strip()]) + "\n"
