"""Interim validations of arms over steps, and the learning rate below them."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from omni_thinker.arms import ARMS, SHARED, colour_of, is_scheduled, is_single, task_of
from omni_thinker.report.figures import series
from omni_thinker.report.figures.svg import INK, PAPER, WIDE, Room, plain, style, whole_steps
from omni_thinker.runs.read import RunData


def interim(run: RunData, room: Room = WIDE) -> Figure | None:
    """Accuracy on the problems of interim validations: one panel a task, one colour an arm, and a panel of learning
    rates where these follow a schedule."""
    arms = [arm for arm in run.arms if run.records.has(arm, "interim")]
    if not arms:
        return None
    scheduled = run.setting("rl", "lr_schedule") not in (None, "constant")
    panels = len(run.tasks) + scheduled
    with style():
        columns = min(room.columns, panels)
        lines = math.ceil(panels / columns)
        figure = Figure(figsize=(room.width, (1.9 if room.narrow else 2.45) * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
        for axes, task in zip(grid, run.tasks, strict=False):
            for arm in reversed(arms):
                if not is_single(arm) or task_of(arm) == task:
                    _curve(axes, run, arm, task)
            axes.set_title(task)
            whole_steps(axes)
            plain(axes)
        if scheduled:
            _rates(grid[len(run.tasks)], run, arms)
        for axes in grid[panels:]:
            axes.set_visible(False)
            grid[panels - columns].tick_params(labelbottom=True)  # nothing stands below it
        figure.supxlabel("RL steps of the arm", fontsize=8.5)
        figure.supylabel("accuracy on interim problems", fontsize=8.5)
        figure.legend(
            handles=_keys(run, arms),
            loc="outside upper left",
            ncols=2 * room.columns,
            handlelength=1.6,
            columnspacing=1.6,
        )
        return figure


def share_of_time(run: RunData) -> float:
    """Seconds of interim validations as a share of those and of training steps; NaN where there are none."""
    seconds = {kind: run.records.seconds(kind) for kind in ("interim", "train")}
    whole = math.fsum(seconds.values())
    return seconds["interim"] / whole if seconds["interim"] and whole else math.nan


def _curve(axes: Axes, run: RunData, arm: str, task: str) -> None:
    """Thin lines are seeds, the thick one their mean, stars the weights that were kept as the best."""
    curves, colour = series.by_seed(run, arm, f"reward/{task}", "interim"), colour_of(arm, run.arms)
    if not curves:
        return
    if len(curves) > 1:
        for points in curves.values():
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.7, alpha=0.55)
    # Where a seed ended early, the mean of the others would be a jump.
    shared = set.intersection(*({step for step, _ in points} for points in curves.values()))
    mean = [point for point in series.average(curves) if point[0] in shared]
    axes.plot([step for step, _ in mean], [value for _, value in mean], "-o", color=colour, linewidth=2, markersize=3)
    for item in run.result.arms[arm]:
        kept = [(step, value) for step, value in curves.get(item.seed, []) if step == item.selected]
        if kept:
            axes.plot(*zip(*kept, strict=True), "*", color=colour, markersize=10, markeredgecolor=INK)


def _rates(axes: Axes, run: RunData, arms: list[str]) -> None:
    for arm in arms:
        if points := series.average(series.by_seed(run, arm, "lr")):
            axes.plot(*zip(*points, strict=True), color=colour_of(arm, run.arms), linewidth=1.4)
    axes.set_title("learning rate")
    plain(axes)


def _keys(run: RunData, arms: list[str]) -> list[Line2D]:
    named = [arm for arm in arms if arm in SHARED or is_scheduled(arm)]
    keys = [Line2D([], [], color=colour_of(arm, run.arms), linewidth=2, label=arm) for arm in named]
    if any(map(is_single, arms)):
        keys.append(Line2D([], [], color=ARMS["single"].colour, linewidth=2, label="single (this task only)"))
    if any(item.selected is not None for arm in arms for item in run.result.arms[arm]):
        star = Line2D([], [], color=PAPER, linestyle="none", marker="*", markersize=9, label="kept")
        star.set_markeredgecolor(INK)
        keys.append(star)
    return keys
