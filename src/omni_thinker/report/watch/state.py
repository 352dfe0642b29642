"""What is known of a run at this moment, whoever works on it, and what a page shows of it."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.arms import colour_of, in_order
from omni_thinker.errors import UserError
from omni_thinker.runs.read import RunData, load_run, parts_of
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.runs.schema.result import ArmRun, Machine, Result
from omni_thinker.runs.scoreboard import Scoreboard, Standing, expected_arms
from omni_thinker.studies.dispatch.status import read_status

_LINE_POINTS = 60
_NO_MACHINE = Machine(
    cpu="", cores=None, memory_gb=0.0, peak_rss_gb=0.0, python="", torch="", transformers="", platform=""
)


@dataclass(frozen=True)
class ArmLine:
    """An arm as far as it is. cells: accuracy on each task and, last, their mean. share: of its steps that it has had,
    NaN where these aren't known. points: its rewards as an SVG polyline in a box of 100 x 20."""

    arm: str
    colour: str
    split: str
    cells: list[float]
    steps: int
    share: float
    points: str
    reward: float
    running: bool


@dataclass(frozen=True)
class State:
    """A run at a moment. version: of what the report below is made of."""

    name: str
    status: Mapping[str, Any]
    done: int
    units: int
    tasks: list[str]
    arms: list[ArmLine]
    version: str
    ended: bool

    @property
    def columns(self) -> list[str]:
        return [*self.tasks, MACRO]


class Watched:
    """Reads a run's directory again and again, each time only what is new."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where there is no run."""
        self._path = path
        self._scores = Scoreboard(path / "metrics.jsonl")
        if not (path / "recipe.toml").is_file() and not (path / "metrics.jsonl").is_file():
            raise UserError(
                "holds no run yet (no recipe.toml and no metrics.jsonl): a study begins with checks", file=path
            )

    def state(self) -> State:
        """The moment. Where status.json is damaged or missing, what the logs say."""
        self._scores.update()
        recipe = _recipe(self._path / "recipe.toml")
        status = self._status()
        tasks = list(_table(recipe, "tasks"))
        seen = [*expected_arms(recipe), *self._scores.arms]
        arms = in_order(list(dict.fromkeys(seen)), tasks)
        counts = status.get("units", {}).values()
        running = {unit["unit"].removeprefix("test ") for unit in status.get("running", ())}
        whole = _steps(recipe)
        done = sum(each["done"] for each in counts)
        return State(
            name=str(recipe.get("name", self._path.name)),
            status=status,
            done=done,
            units=sum(sum(each[kind] for kind in ("done", "running", "waiting")) for each in counts),
            tasks=tasks,
            arms=[_line(arm, arms, self._scores.arms.get(arm, Standing()), tasks, whole, running) for arm in arms],
            version=f"{done}-{_stamp(self._path / 'result.json')}",
            ended=status["state"] == "ended" and (self._path / "result.json").is_file(),
        )

    def _status(self) -> dict[str, Any]:
        try:
            return read_status(self._path)
        except UserError as exc:
            ended = (self._path / "result.json").is_file()  # of an earlier version, or only what is worth keeping
            return {"state": "ended" if ended else "unknown", "why": str(exc), "units": {}, "running": []}

    def report(self) -> RunData | None:
        """What a report is made of: the result where there is one, else the logs so far; None before there are any."""
        if (self._path / "result.json").is_file():
            return load_run(self._path)
        tasks = list(_table(_recipe(self._path / "recipe.toml"), "tasks"))
        if not self._scores.arms or not tasks:
            return None
        arms = {arm: tuple(_run(seed) for seed in sorted(_seeds(at))) for arm, at in self._scores.arms.items()}
        nothing: dict[str, Any] = dict.fromkeys(("comparisons", "forecasts", "assumptions", "probes", "warmup"), ())
        arms = {arm: runs for arm, runs in arms.items() if runs}
        whole = Result(
            name=self._path.name, tasks=tuple(tasks), verdict="", arms=arms, **nothing, entropy=None, notes=(),
            seconds=math.nan, machine=_NO_MACHINE,
        )  # fmt: skip
        return parts_of(self._path, whole)


def _seeds(standing: Standing) -> set[int]:
    return {*standing.steps, *standing.validation, *standing.test}


def _run(seed: int) -> ArmRun:
    return ArmRun(
        seed=seed, test={}, validation={}, steps=0, samples=0, tokens_sampled=0, tokens_trained=0, seconds=0.0,
        stages=(), backward_transfer=None, forward_transfer=None, forgetting=None,
    )  # fmt: skip


def _line(arm: str, arms: list[str], standing: Standing, tasks: list[str], whole: float, running: set[str]) -> ArmLine:
    rewards = [values for values in standing.rewards.values() if values]
    last = rewards[-1] if rewards else []
    steps = max(standing.steps.values(), default=0)
    return ArmLine(
        arm=arm,
        colour=colour_of(arm, arms),
        split=standing.split,
        cells=standing.accuracy(tasks),
        steps=steps,
        share=min(1.0, steps / whole) if whole and steps else math.nan,
        points=_polyline(last[-_LINE_POINTS:]),
        reward=last[-1] if last else math.nan,
        running=arm in running,
    )


def _polyline(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = 100 / (len(values) - 1)
    return " ".join(f"{at * step:.1f},{19 - 18 * (value - low) / span:.1f}" for at, value in enumerate(values))


def _recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}


def _table(recipe: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = recipe.get(key)
    return value if isinstance(value, Mapping) else {}


def _steps(recipe: Mapping[str, Any]) -> float:
    steps = _table(recipe, "study").get("steps")
    return float(steps) if isinstance(steps, int) and steps > 0 else 0.0


def _stamp(path: Path) -> str:
    try:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return ""
