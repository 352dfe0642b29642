"""Read a run directory, each file checked against the schema. What may be missing is noted, not refused."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from omni_thinker.arms import in_order
from omni_thinker.errors import UserError
from omni_thinker.runs.schema.base import MACRO, VERSION, adapter
from omni_thinker.runs.schema.logs import RENAMED, Answer, Metrics
from omni_thinker.runs.schema.plan import StudyPlan
from omni_thinker.runs.schema.result import Comparison, Result
from omni_thinker.runs.schema.transfer import StudyTransfer

T = TypeVar("T")


@dataclass(frozen=True)
class RunData:
    """All that a run directory holds. `gaps` says in words what could not be read."""

    path: Path
    result: Result
    records: list[Metrics]
    transfer: StudyTransfer | None
    plan: StudyPlan | None
    answers: list[Answer]
    recipe_text: str
    recipe: dict[str, Any]
    gaps: list[str]

    @property
    def tasks(self) -> list[str]:
        return list(self.result.tasks)

    @property
    def arms(self) -> list[str]:
        """start, curriculum, the same after its cost, its reverse, joint, merge, single tasks in order, others."""
        return in_order(list(self.result.arms), self.tasks)

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for runs in self.result.arms.values() for run in runs})

    def comparison(self, a: str, b: str, task: str = MACRO) -> Comparison | None:
        """a - b, whichever way round the run wrote it."""
        rows = (row for row in self.result.comparisons if row.task == task and (row.a, row.b) in ((a, b), (b, a)))
        row = next(rows, None)
        return row if row is None or row.a == a else row.swapped()

    def setting(self, *keys: str) -> Any:
        """A value of the resolved recipe, or None."""
        value: Any = self.recipe
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def load_run(run_dir: Path) -> RunData:
    """Read a run directory.

    Raises UserError naming the file when result.json or metrics.jsonl can't be read, and naming the key where one is
    missing or has another type. A document of a version that isn't known is refused."""
    gaps: list[str] = []
    result = read_result(run_dir / "result.json")
    records = _records(run_dir / "metrics.jsonl", gaps)
    text, recipe = _recipe(run_dir / "recipe.toml", gaps)
    return RunData(
        path=run_dir,
        result=result,
        records=records,
        transfer=_optional(run_dir / "transfer.json", StudyTransfer, gaps),
        plan=_optional(run_dir / "plan.json", StudyPlan, gaps),
        answers=_answers(run_dir / "samples.jsonl", gaps),
        recipe_text=text,
        recipe=recipe,
        gaps=gaps,
    )


def read_result(path: Path) -> Result:
    """result.json. Raises UserError naming the file, and the key where there is one."""
    try:
        result = _document(path, Result)
    except FileNotFoundError:
        raise UserError("missing; a report needs a finished run directory", file=path) from None
    except ValidationError as exc:
        raise UserError(_complaint(exc), file=path, key=_key(exc)) from None
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=f"{path!s:.200}") from None
    if not result.arms:
        raise UserError("names no arms", file=path, key="arms")
    return result


def check_version(table: Any, file: object) -> None:
    """Raises UserError where a document says another version than this package writes; one without is taken for it."""
    version = table.get("version", VERSION) if isinstance(table, dict) else VERSION
    if version == VERSION and not isinstance(version, bool):
        return
    remedy = "update omni-thinker to read it" if isinstance(version, int) and version > VERSION else "run it again"
    raise UserError(f"version {version!r:.40} isn't supported, only {VERSION}; {remedy}", file=file, key="version")


def _document(path: Path, kind: type[T]) -> T:
    """Raises OSError, ValueError (ValidationError for another shape), and UserError for another version."""
    try:
        table = json.loads(path.read_text("utf-8"))
        check_version(table, path)
        document: T = adapter(kind).validate_python(table)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return document


def _optional(path: Path, kind: type[T], gaps: list[str]) -> T | None:
    try:
        return _document(path, kind)
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        gaps.append(f"{path.name} can't be read and was left out: {_key(exc)}: {_complaint(exc)}")
    except (OSError, ValueError) as exc:
        gaps.append(f"{path.name} can't be read and was left out: {exc}")
    return None


def _records(path: Path, gaps: list[str]) -> list[Metrics]:
    try:
        rows = _rows(path, Metrics, gaps)
    except FileNotFoundError:
        raise UserError("missing; a report needs a run directory with its metrics", file=path) from None
    except OSError as exc:
        raise UserError(f"can't be read: {exc}", file=path) from None
    # Runs from before there was a journal may hold a step twice: the later line counts.
    latest = {
        (row.seed, row.arm, row.kind, row.stage, row.step): replace(row, metrics=_renamed(row.metrics)) for row in rows
    }
    return sorted(latest.values(), key=lambda row: row.step)


def _renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of earlier versions under today's names."""
    split_names = ((name.partition("/"), value) for name, value in metrics.items())
    return {RENAMED.get(name, name) + slash + task: value for (name, slash, task), value in split_names}


def _answers(path: Path, gaps: list[str]) -> list[Answer]:
    try:
        return _rows(path, Answer, gaps)
    except FileNotFoundError:
        return []
    except OSError as exc:
        gaps.append(f"{path.name} can't be read: {exc}")
        return []


def _rows(path: Path, kind: type[T], gaps: list[str]) -> list[T]:
    """The lines of a log. A torn last line is what a killed run leaves, and is no news; others are."""
    rows: list[T] = []
    unreadable, first = 0, ""
    for number, table in _tables(path):
        try:
            if isinstance(table, ValueError):
                raise table
            rows.append(adapter(kind).validate_python(table))
        except ValueError as exc:
            wrong = f"{_key(exc)}: {_complaint(exc)}" if isinstance(exc, ValidationError) else "not JSON"
            unreadable, first = unreadable + 1, first or f"line {number}: {wrong}"
    if unreadable:
        gaps.append(f"{path.name}: {unreadable} line{'s' * (unreadable > 1)} can't be read and left out ({first}).")
    return rows


def _tables(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered lines as plain JSON; ValueError in place of one that is none."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                yield number, json.loads(line)
        except (ValueError, RecursionError) as exc:
            if number < len(lines):
                yield number, ValueError(exc)


def _recipe(path: Path, gaps: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", {}
    try:
        return text, tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        gaps.append(f"{path.name} is not valid TOML: {exc}")
        return text, {}


def _key(exc: ValidationError) -> str | None:
    return ".".join(str(step) for step in exc.errors()[0]["loc"]) or None


def _complaint(exc: ValidationError) -> str:
    """The first thing that is wrong."""
    first = exc.errors()[0]
    if first["type"] == "missing":
        return "is missing"
    return f"{first['msg'].replace('Input should', 'should')}, got {first['input']!r:.60}"
