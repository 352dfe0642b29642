"""Read a run directory, each file checked against the schema. What may be missing is noted, not refused."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from omni_thinker.arms import in_order
from omni_thinker.errors import UserError
from omni_thinker.runs.metrics_log import MetricsLog
from omni_thinker.runs.schema.atlas import AtlasRow
from omni_thinker.runs.schema.base import MACRO, VERSION, adapter
from omni_thinker.runs.schema.logs import Answer
from omni_thinker.runs.schema.plan import StudyPlan
from omni_thinker.runs.schema.result import Comparison, Result
from omni_thinker.runs.schema.transfer import StudyTransfer

T = TypeVar("T")


@dataclass(frozen=True)
class RunData:
    """All that a run directory holds. `gaps` says in words what could not be read."""

    path: Path
    result: Result
    records: MetricsLog
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
    return parts_of(run_dir, read_result(run_dir / "result.json"))


def parts_of(run_dir: Path, result: Result) -> RunData:
    """A run with that result, and with what else lies in its directory. Raises UserError where metrics.jsonl can't be
    read."""
    gaps: list[str] = []
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
        raise UserError(
            "missing; this needs a study that has ended: `omni-thinker study RUN --resume` goes on with one, "
            "`omni-thinker watch RUN` shows how far it is",
            file=path,
        ) from None
    except ValidationError as exc:
        raise UserError(_complaint(exc), file=path, key=_key(exc)) from None
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=f"{path!s:.200}") from None
    if not result.arms:
        raise UserError("names no arms", file=path, key="arms")
    if empty := [arm for arm, seeds in result.arms.items() if not seeds]:
        raise UserError("has no seed", file=path, key=f"arms.{empty[0]}")
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


def _records(path: Path, gaps: list[str]) -> MetricsLog:
    log = MetricsLog()
    unreadable = _Unreadable(path.name)
    try:
        for number, line, last in _lines(path):
            try:
                log.add(line)
            except (ValueError, RecursionError) as exc:
                unreadable.add(number, exc, last)
    except FileNotFoundError:
        raise UserError("missing; a report needs a run directory with its metrics", file=path) from None
    except OSError as exc:
        raise UserError(f"can't be read: {exc}", file=path) from None
    gaps.extend(unreadable.words())
    return log


def _answers(path: Path, gaps: list[str]) -> list[Answer]:
    try:
        return _rows(path, Answer, gaps)
    except FileNotFoundError:
        return []
    except OSError as exc:
        gaps.append(f"{path.name} can't be read: {exc}")
        return []


def _rows(path: Path, kind: type[T], gaps: list[str]) -> list[T]:
    """The lines of a log."""
    rows: list[T] = []
    unreadable = _Unreadable(path.name)
    for number, line, last in _lines(path):
        try:
            rows.append(adapter(kind).validate_python(json.loads(line)))
        except (ValueError, RecursionError) as exc:
            unreadable.add(number, exc, last)
    gaps.extend(unreadable.words())
    return rows


class _Unreadable:
    """Lines that can't be read. A torn last line is what a killed run leaves, and is no news; others are."""

    def __init__(self, name: str) -> None:
        self._name, self._count, self._first = name, 0, ""

    def add(self, number: int, exc: Exception, last: bool) -> None:
        wrong = f"{_key(exc)}: {_complaint(exc)}" if isinstance(exc, ValidationError) else "not JSON"
        if not last or isinstance(exc, ValidationError):
            self._count, self._first = self._count + 1, self._first or f"line {number}: {wrong}"

    def words(self) -> list[str]:
        lines = f"{self._count} line{'s' * (self._count > 1)}"
        return [f"{self._name}: {lines} can't be read and left out ({self._first})."] * (self._count > 0)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Numbered lines that aren't empty, and whether each is the file's last."""
    number, before = 0, b""
    with path.open("rb") as file:
        for raw in file:
            for line in raw.splitlines() if b"\r" in raw else (raw,):
                if before.strip():
                    yield number, before, False
                number, before = number + 1, line
    if before.strip():
        yield number, before, True


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


def read_atlas(path: Path) -> list[AtlasRow]:
    """The rows of atlas.jsonl; runs without their last row, which a kill cut short, are left out.

    Raises UserError where a line is no row."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=path) from None
    rows = list[AtlasRow]()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(adapter(AtlasRow).validate_json(line))
        except ValidationError as exc:
            if number == len(lines):
                continue  # a kill left it half written
            fault = exc.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "line"
            raise UserError(f"line {number}: {where}: {fault['msg']}", file=path) from None
    ended = {row.key for row in rows if row.whole}
    return [row for row in rows if row.key in ended]
