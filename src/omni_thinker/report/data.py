"""Load a run directory into dataclasses. What may be missing is noted, not refused."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from omni_thinker.arms import in_order
from omni_thinker.errors import UserError

NAN = math.nan
MACRO = "macro"
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy. NaN where the run left it out."""

    mean: float = NAN
    n: int = 0
    stderr: float = NAN


@dataclass(frozen=True)
class Interval:
    mean: float = NAN
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True)
class Stage:
    task: str
    validation: dict[str, Estimate] = field(default_factory=dict)
    entropy: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed."""

    seed: int = 0
    test: dict[str, Estimate] = field(default_factory=dict)
    validation: dict[str, Estimate] = field(default_factory=dict)
    steps: int = 0
    tokens_sampled: float = 0.0
    tokens_trained: float = 0.0
    seconds: float = NAN
    stages: list[Stage] = field(default_factory=list)
    backward_transfer: float = NAN
    forward_transfer: float = NAN
    forgetting: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """a - b on the test split."""

    a: str
    b: str
    task: str
    difference: float = NAN
    low: float = NAN
    high: float = NAN
    n: int = 0
    shown: bool = False

    def flipped(self) -> Comparison:
        return Comparison(self.b, self.a, self.task, -self.difference, -self.high, -self.low, self.n, self.shown)


@dataclass(frozen=True)
class Outcome:
    """A forecast beside what came of it."""

    task: str
    seed: int = 0
    arm: str = "curriculum"
    forecast: float = NAN
    low: float = NAN
    high: float = NAN
    outcome: float = NAN
    inside: bool = False


@dataclass(frozen=True)
class Assumption:
    """A1 or A2 and what the run's stages say of it."""

    assumption: str
    words: str = ""
    seed: int = 0
    p: float = NAN
    mean_difference: float = NAN
    rank_correlation: float = NAN


@dataclass(frozen=True)
class Agreement:
    """Of a kind of probe with whole stages."""

    cells: int = 0
    rank: float = NAN
    rank_off_diagonal: float = NAN
    mean_difference: float = NAN


@dataclass(frozen=True)
class Probes:
    """What measuring the matrix in one way took."""

    seed: int = 0
    kind: str = "full"
    planned_with: bool = True
    steps: float = NAN
    tokens_sampled: float = NAN
    tokens_trained: float = NAN
    seconds: float = NAN
    share_of_training: float = NAN
    tokens_evaluated: float = NAN
    against_full: Agreement | None = None


@dataclass(frozen=True)
class Entropy:
    words: str = ""
    by_task: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Warmup:
    seed: int = 0
    steps: int = 0
    seconds: float = NAN
    reached: dict[str, Estimate] = field(default_factory=dict)
    inside: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Machine:
    cpu: str = ""
    cores: int = 0
    memory_gb: float = NAN
    peak_rss_gb: float = NAN
    gpu: str = ""
    python: str = ""
    torch: str = ""
    transformers: str = ""
    platform: str = ""


@dataclass(frozen=True)
class Result:
    name: str = "study"
    tasks: list[str] = field(default_factory=list)
    verdict: str = ""
    arms: dict[str, list[ArmRun]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    forecasts: list[Outcome] = field(default_factory=list)
    warmup: list[Warmup] = field(default_factory=list)
    probes: list[Probes] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    entropy: Entropy | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = NAN
    machine: Machine = Machine()


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl."""

    arm: str
    kind: str
    step: int = 0
    seed: int = 0
    stage: str | None = None
    seconds: float = NAN
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Transfer:
    tasks: list[str]
    start: dict[str, Estimate]
    after: dict[str, dict[str, Estimate]]
    steps: int = 0

    def effect(self, trained: str, evaluated: str) -> Estimate:
        """after - start. The stderr takes the two as unpaired, which is wide rather than narrow."""
        after = self.after.get(trained, {}).get(evaluated, Estimate())
        start = self.start.get(evaluated, Estimate())
        return Estimate(after.mean - start.mean, after.n, math.hypot(after.stderr, start.stderr))


@dataclass(frozen=True)
class Order:
    order: list[str] = field(default_factory=list)
    score: float = NAN
    low: float = NAN
    high: float = NAN
    probability_best: float = NAN
    regret: float = NAN
    kind: str = "sequence"
    forecast: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    plan: Order = Order()
    orders: list[Order] = field(default_factory=list)
    strategies: dict[str, Order] = field(default_factory=dict)
    exact: bool = False
    upper_bound: float = NAN
    forecaster: str = ""
    level: float = 0.95
    words: str = ""
    sequence: Order = Order()


@dataclass(frozen=True)
class Answer:
    """One line of samples.jsonl. `score` is None where the reward abstained or failed."""

    arm: str
    task: str
    problem: str
    text: str
    seed: int = 0
    kind: str = "test"
    stage: str | None = None
    step: int = 0
    prompt: str = ""
    answer: str = ""
    score: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    status: str = "value"
    reason: str = ""
    stop: str = ""


@dataclass(frozen=True)
class RunData:
    """All that a report needs. `gaps` says in words what could not be read."""

    path: Path
    result: Result
    records: list[Record]
    transfer: Transfer | None
    plan: Plan | None
    answers: list[Answer]
    recipe_text: str
    recipe: dict[str, Any]
    gaps: list[str]

    @property
    def tasks(self) -> list[str]:
        return self.result.tasks

    @property
    def arms(self) -> list[str]:
        """start, curriculum, the same after its cost, its reverse, joint, merge, single tasks in order, others."""
        return in_order(list(self.result.arms), self.tasks)

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for runs in self.result.arms.values() for run in runs})

    def comparison(self, a: str, b: str, task: str = MACRO) -> Comparison | None:
        """a - b, whichever way round the run wrote it."""
        for found in self.result.comparisons:
            if found.task == task and (found.a, found.b) == (a, b):
                return found
            if found.task == task and (found.a, found.b) == (b, a):
                return found.flipped()
        return None

    def setting(self, *keys: str) -> Any:
        """A value of the resolved recipe, or None."""
        value: Any = self.recipe
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def load_run(run_dir: Path) -> RunData:
    """Read a run directory. Raises UserError naming the file when result.json or metrics.jsonl can't be read."""
    gaps: list[str] = []
    result = _required(run_dir / "result.json")
    records = _records(run_dir / "metrics.jsonl", gaps)
    text, recipe = _recipe(run_dir / "recipe.toml", gaps)
    return RunData(
        path=run_dir,
        result=result,
        records=records,
        transfer=_optional(run_dir / "transfer.json", Transfer, gaps),
        plan=_optional(run_dir / "plan.json", Plan, gaps),
        answers=_answers(run_dir / "samples.jsonl", gaps),
        recipe_text=text,
        recipe=recipe,
        gaps=gaps,
    )


def _required(path: Path) -> Result:
    try:
        result = _parse(path.read_bytes(), Result)
    except FileNotFoundError:
        raise UserError("missing; a report needs a finished run directory", file=path) from None
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {_brief(exc)}", file=path) from None
    if not result.arms:
        raise UserError("names no arms", file=path, key="arms")
    if result.tasks:
        return result
    tasks = sorted({task for runs in result.arms.values() for run in runs for task in run.test if task != MACRO})
    return Result(**{**vars(result), "tasks": tasks})


def _records(path: Path, gaps: list[str]) -> list[Record]:
    try:
        rows = _lines(path, gaps)
    except FileNotFoundError:
        raise UserError("missing; a report needs a run directory with its metrics", file=path) from None
    except OSError as exc:
        raise UserError(f"can't be read: {exc}", file=path) from None
    # Runs from before there was a journal may hold a step twice: the later line counts.
    found = {(row.seed, row.arm, row.kind, row.stage, row.step): row for row in _typed(rows, Record, path, gaps)}
    return sorted(found.values(), key=lambda row: row.step)


def _answers(path: Path, gaps: list[str]) -> list[Answer]:
    try:
        rows = _lines(path, gaps)
    except FileNotFoundError:
        return []
    except OSError as exc:
        gaps.append(f"{path.name} can't be read: {_brief(exc)}")
        return []
    return _typed([_answer_row(row) for row in rows], Answer, path, gaps)


def _answer_row(row: dict[str, Any]) -> dict[str, Any]:
    """A score may be a bare number or a whole Score; the text of an answer `text` or `response`."""
    score = row.get("score")
    if isinstance(score, dict):
        row = {**row, **score, "score": score.get("value")}
    text = row.get("text", row.get("response", ""))
    problem = str(row.get("problem", row.get("problem_id", row.get("id", row.get("prompt", "")))))
    return {key: value for key, value in {**row, "text": text, "problem": problem}.items() if value is not None}


def _optional(path: Path, kind: type[T], gaps: list[str]) -> T | None:
    try:
        return _parse(path.read_bytes(), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        gaps.append(f"{path.name} can't be read and was left out: {_brief(exc)}")
        return None


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


def _parse(raw: bytes, kind: type[T]) -> T:
    """Typed JSON; ValueError when it is not JSON or has other types."""
    try:
        return TypeAdapter(kind).validate_python(_without_nulls(json.loads(raw.decode("utf-8"))))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _lines(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """The objects of a jsonl file. A torn last line is what a killed run leaves, and is no news; others are."""
    lines = path.read_bytes().splitlines()
    rows, bad = [], 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = _without_nulls(json.loads(line))
        except (ValueError, RecursionError):
            bad += number < len(lines) - 1
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        gaps.append(f"{path.name}: {bad} line{'s' * (bad > 1)} can't be read and were left out.")
    return rows


def _typed(rows: list[dict[str, Any]], kind: type[T], path: Path, gaps: list[str]) -> list[T]:
    adapter, typed, bad = TypeAdapter(kind), [], 0
    for row in rows:
        try:
            typed.append(adapter.validate_python(row))
        except ValidationError:
            bad += 1
    if bad:
        gaps.append(f"{path.name}: {bad} line{'s' * (bad > 1)} of another shape left out.")
    return typed


def _without_nulls(value: Any) -> Any:
    """null means "not there" everywhere in a run directory, so the defaults apply."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _brief(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        first = exc.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(exc)
