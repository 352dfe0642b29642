"""Several studies side by side: what each showed, its arms, and which settings differ."""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from omni_thinker.arms import colour_of, in_order
from omni_thinker.errors import UserError
from omni_thinker.report.figures.contrasts import against_joint, detectable
from omni_thinker.report.figures.svg import INK, PAPER, WIDE, Room, plain, style
from omni_thinker.report.frame import Column, Frame
from omni_thinker.report.headline import headline
from omni_thinker.report.tables import macro_cell, model_words
from omni_thinker.runs.metrics_log import MetricsLog
from omni_thinker.runs.read import RunData, read_result

_RESULT_KEYS = frozenset({"name"})
"""Settings that say nothing of what was done."""


@dataclass(frozen=True)
class Studies:
    """Runs under names that tell them apart, in the order in which they were named."""

    runs: Mapping[str, RunData]

    @property
    def arms(self) -> list[str]:
        """All that any of them has."""
        tasks = list(dict.fromkeys(task for run in self.runs.values() for task in run.tasks))
        return in_order(list(dict.fromkeys(arm for run in self.runs.values() for arm in run.arms)), tasks)

    @property
    def note(self) -> str:
        """What these numbers can't say."""
        words = (
            "Intervals hold within a study. Nothing is paired between studies: "
            "a difference between two of them may come from other problems, seeds or machines."
        )
        if len({tuple(sorted(run.tasks)) for run in self.runs.values()}) > 1:
            words += " They have different tasks, so their macro accuracies aren't of the same thing."
        return words


def load_studies(folders: Sequence[Path]) -> Studies:
    """result.json of each, and recipe.toml where there is one. Raises UserError for fewer than two, and for a run whose
    result can't be read."""
    if len(folders) < 2:
        raise UserError("name at least two run directories", key="RUN")
    return Studies({name: _load(folder) for name, folder in zip(_names(folders), folders, strict=True)})


def _load(folder: Path) -> RunData:
    result = read_result(folder / "result.json")
    try:
        text = (folder / "recipe.toml").read_text("utf-8", errors="replace")
        recipe = tomllib.loads(text)
    except (OSError, ValueError, RecursionError):
        text, recipe = "", {}
    return RunData(folder, result, MetricsLog(), None, None, [], text, recipe, [])


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of their paths that differ; numbered where one is named twice."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    numbered = list[str]()
    for name in ("/".join(each[-1:]) for each in parts):
        free = (f"{name} ({number})" for number in count(2))
        numbered.append(name if name not in numbered else next(other for other in free if other not in numbered))
    return numbered


def side_by_side(studies: Studies) -> dict[str, Frame]:
    """The tables of a comparison, by name; those without rows are left out."""
    made = (_overview(studies), _accuracies(studies), _differences(studies), _settings(studies))
    return {frame.name: frame for frame in made if frame}


def _overview(studies: Studies) -> Frame:
    columns = [
        Column("study", "Study", "text"), Column("shown", "What it showed", "text", wrap=True),
        Column("model", "Model", "text", wrap=True), Column("seeds", "Seeds", "count"),
        Column("steps", "RL steps", "count"), Column("detectable", "Detectable difference"),
    ]  # fmt: skip
    rows = []
    for name, run in studies.runs.items():
        steps = max((item.steps for runs in run.result.arms.values() for item in runs), default=0)
        reach = detectable(against_joint(run))
        rows.append(
            [
                name,
                headline(run).line,
                model_words(run) or "–",
                len(run.seeds),
                steps,
                reach if math.isfinite(reach) else None,
            ]
        )
    return Frame("studies", "Studies", columns, rows)


def _accuracies(studies: Studies) -> Frame:
    columns = [Column("arm", "Arm", "text"), *(Column(name, name, "estimate") for name in studies.runs)]
    rows = []
    for arm in studies.arms:
        cells = [macro_cell(run, arm) if arm in run.arms else None for run in studies.runs.values()]
        rows.append([arm, *(None if cell is None else (cell.mean, cell.stderr) for cell in cells)])
    return Frame("macro", "Macro accuracy on the test split, with standard errors", columns, rows)


def _differences(studies: Studies) -> Frame:
    columns = [Column("arm", "Arm", "text")]
    for name in studies.runs:
        columns += [Column(name, name, "signed"), Column(f"{name}_interval", "Interval", "change")]
    by_run = [dict(against_joint(run)) for run in studies.runs.values()]
    rows = []
    for arm in studies.arms:
        found = [contrasts.get(arm) for contrasts in by_run]
        if any(found):
            cells = [[None, None] if item is None else [item.difference, (item.low, item.high)] for item in found]
            rows.append([arm, *(cell for pair in cells for cell in pair)])
    return Frame("against_joint", "Macro accuracy less that of joint training", columns, rows)


def _settings(studies: Studies) -> Frame:
    """Keys of the resolved recipes that differ among the studies that have them: earlier versions lack some."""
    texts = (Column(name, name, "text", wrap=True) for name in studies.runs)
    flat = [dict(_leaves(run.recipe)) for run in studies.runs.values()]
    keys = dict.fromkeys(key for each in flat for key in each)
    differ = [key for key in keys if len({each[key] for each in flat if key in each}) > 1]
    rows = [[key, *(each.get(key, "–") for each in flat)] for key in differ]
    return Frame("settings", "Settings that differ", [Column("key", "Key", "text", wrap=True), *texts], rows)


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" not in _RESULT_KEYS:
            yield f"{prefix}{key}", str(value)


def contrasts_figure(studies: Studies, room: Room = WIDE) -> Figure | None:
    """Arms against joint training, a panel for each study, all on one scale; None where no study has joint training."""
    found = {name: dict(against_joint(run)) for name, run in studies.runs.items()}
    arms = [arm for arm in studies.arms if any(arm in each for each in found.values())]
    shown = {name: each for name, each in found.items() if each}
    if not arms:
        return None
    with style():
        across = min(len(shown), 1 if room.narrow else 4)
        lines = math.ceil(len(shown) / across)
        figure = Figure(figsize=(room.width, lines * (0.3 * len(arms) + 0.7) + 0.4), layout="constrained")
        grid = figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (name, contrasts) in zip(grid, shown.items(), strict=False):
            axes.axvline(0, color=INK, linewidth=0.9)
            for at, arm in enumerate(arms):
                if (item := contrasts.get(arm)) is not None:
                    colour = colour_of(arm, studies.arms)
                    axes.plot([100 * item.low, 100 * item.high], [at, at], color=colour, linewidth=2.2)
                    axes.plot([100 * item.difference], [at], "o", markersize=7, markeredgecolor=colour,
                              markerfacecolor=colour if item.shown else PAPER, markeredgewidth=1.5)  # fmt: skip
            axes.set_title(name)
            axes.set_ylim(len(arms) - 0.5, -0.5)
            axes.set_yticks(range(len(arms)), arms)
            plain(axes, grid="x")
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("points of macro accuracy above joint training", fontsize=8.5)
        return figure
