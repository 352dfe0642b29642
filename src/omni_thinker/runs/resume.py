"""Resuming a run: what of its recipe, model and problems may have changed since."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from omni_thinker.errors import UserError
from omni_thinker.models.chat.dates import today
from omni_thinker.models.load import resolve
from omni_thinker.recipe import Recipe, load_recipe
from omni_thinker.runs.files import checksum
from omni_thinker.runs.journal import NAME as JOURNAL
from omni_thinker.runs.rundir import RunDir
from omni_thinker.types import Problem, Split, TaskName

_FREE_OF_ENDPOINT = (
    "base_url", "api_key_env", "api_key_file", "allow_http", "concurrency", "requests_per_minute", "tokens_per_minute",
    "timeout_s", "deadline_s", "attempts", "patience_s", "budget", "price", "cache",
)  # fmt: skip
FREE = (
    *(f"judge.endpoint.{key}" for key in _FREE_OF_ENDPOINT), "rl.score_deadline_s", "rl.max_error_rate",
    "rl.max_mismatch",
    "engine.tinker.url", "engine.tinker.allow_http", "engine.tinker.patience_s", "engine.fsdp.ranks",
    "engine.fsdp.timeout_s", "engine.vllm", "evaluation.keep_samples", "cluster", "track",
    "study.checkpoint_steps", "study.bootstrap", "study.confidence",
)  # fmt: skip
"""Keys, and tables of keys, that change nothing of what has been computed."""
Pools = Mapping[Split, Mapping[TaskName, Sequence[Problem]]]
_READ_BYTES = 1 << 30
_ABSENT = object()


def dated(recipe: Recipe, run: Path | None) -> Recipe:
    """The recipe with the date that chat templates print: its own, else that of the `run` to be resumed, else today's.

    Raises UserError where the run's recipe can't be read."""
    if recipe.model.date:
        return recipe
    file = None if run is None else run / "recipe.toml"
    begun = load_recipe(file).model.date if file is not None and file.is_file() else ""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"date": begun or today()})})


def check_run(run: RunDir, recipe: Recipe, pools: Pools, *, judged: bool) -> None:
    """Note what a run begins with; `judged`: there is a judge. Raises UserError, naming each key, where a run that is
    resumed has something else."""
    now = recipe.model_dump(mode="json")
    recorded = run.study.once("recipe", lambda: now)
    if not isinstance(recorded, dict):
        raise UserError("has no recipe", file=run.path / JOURNAL)
    refuse_changes(run.path, recorded, now)
    if run.journal.seeds - set(recipe.study.seeds):
        raise UserError(
            f"the run has {sorted(run.journal.seeds)}; new seeds must follow these", file=run.path, key="study.seeds"
        )
    _check_model(run, recipe.spoken.name)
    if recipe.model.chat_template:
        _check_unchanged(run, "template", [Path(recipe.model.chat_template).expanduser()], "model.chat_template")
    if recipe.judge.kind == "likelihood" and judged:
        _check_model(run, recipe.judge.model, "judge")
    _check_problems(run, pools)
    run.write_recipe(recipe)


def refuse_changes(path: Path, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError, naming each key, where a run in `path` that began as `recorded` can't be resumed with `now`."""
    changed = [line for key, old, new in _differences(recorded, now) if (line := _line(key, old, new))]
    if changed:
        raise UserError(
            f"the run began with other settings: {'; '.join(changed)}; restore them, or begin another run", file=path
        )


def _check_problems(run: RunDir, pools: Pools) -> None:
    """Note what every task's problems are. Raises UserError where they have changed under a run."""
    now = digests(pools)
    recorded = run.study.once("problems", lambda: now)
    if recorded != now and isinstance(recorded, dict):
        changed = [name for name in {**recorded, **now} if recorded.get(name) != now.get(name)]
        raise UserError(f"problems have changed since the run began: {', '.join(changed)}", file=run.path)


def digests(pools: Pools) -> dict[str, str]:
    """What tells whether two machines have the same problems: a digest for each task and split."""
    return {
        f"{task} ({split})": _digest(problems) for split, of_task in pools.items() for task, problems in of_task.items()
    }


def _digest(problems: Sequence[Problem]) -> str:
    digest = sha256()
    for problem in problems:
        chat = problem.prompt if isinstance(problem.chat, str) else asdict(problem.chat)
        digest.update(json.dumps([problem.id, chat, problem.answer, problem.data], default=repr).encode())
    return digest.hexdigest()


def _check_model(run: RunDir, name: str, role: Literal["model", "judge"] = "model") -> None:
    """Note what the model's folder holds. Raises UserError where it has changed under a run."""
    folder = resolve(name)
    if not isinstance(folder, Path):
        return  # of a hub, which names what it gives by its content, or made here
    _check_unchanged(run, role, sorted(folder.iterdir()), "model.name" if role == "model" else "judge.model")


def _check_unchanged(run: RunDir, what: str, files: Sequence[Path], key: str) -> None:
    now = {path.name: _print(path) for path in files if path.is_file()}
    recorded = run.study.once(what, lambda: now)
    if recorded != now and isinstance(recorded, dict):
        changed = [file for file in {**recorded, **now} if recorded.get(file) != now.get(file)]
        folder = files[0].parent if files else None
        raise UserError(f"has changed since the run began: {', '.join(changed)}", file=folder, key=key)


def _print(path: Path) -> str:
    """A file's fingerprint: its checksum, or size and time where it takes long to read."""
    stat = path.stat()
    return checksum(path) if stat.st_size <= _READ_BYTES else f"{stat.st_size} of {stat.st_mtime_ns}"


def _line(key: str, old: Any, new: Any) -> str | None:
    if any(key == free or key.startswith(free + ".") for free in FREE):
        return None
    if key == "study.seeds" and isinstance(new, list) and new[: len(old)] == old:
        return None  # more seeds follow those that are done
    shown = ("nothing" if value is _ABSENT else repr(value) for value in (old, new))
    return f"{key} was " + ", is ".join(shown)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other
