"""Learning, transfer and forecasts as figures."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from omni_thinker.arms import ARMS, SHARED, SINGLE, colour_of, is_scheduled, is_single
from omni_thinker.report.figures import series
from omni_thinker.report.figures.svg import (
    AXIS,
    FAINT,
    GRID,
    INK,
    PAPER,
    WHITE,
    WIDE,
    Room,
    plain,
    signed,
    style,
    task_colour,
    task_marker,
    whole_steps,
)
from omni_thinker.runs.metrics_log import Curve
from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.transfer import TransferMatrix

FEW_ARMS = 3
"""With more of them, a panel has room for the mean of each alone."""


def learning(run: RunData, room: Room = WIDE) -> Figure | None:
    """Train reward over steps: one panel a task, one colour an arm, validation of the curriculum as diamonds.

    Where there is no single-task arm its probe is drawn."""
    shared = learning_arms(run)[:-1]
    arms = {task: [*shared, SINGLE + task] for task in run.tasks}
    if not any(
        series.by_seed(run, series.trained_as(run, arm), f"reward/{task}") for task in run.tasks for arm in arms[task]
    ):
        return None
    with style():
        columns = min(room.columns, len(run.tasks))
        lines = math.ceil(len(run.tasks) / columns)
        figure = Figure(figsize=(room.width, (1.9 if room.narrow else 2.45) * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, task in zip(grid, run.tasks, strict=False):
            for at, arm in reversed(list(enumerate(arms[task]))):  # the curriculum on top
                curves = series.by_seed(run, series.trained_as(run, arm), f"reward/{task}")
                drawn = len(axes.lines)
                _curve(axes, curves, colour_of(arm, run.arms), raw=len(shared) <= FEW_ARMS)
                for number, line in enumerate(axes.lines[drawn:]):
                    line.set_gid(f"arm{at}.{run.tasks.index(task)}.{number}")
            _diamonds(axes, run, task)
            axes.set_title(task)
            whole_steps(axes)
            plain(axes)
        for axes in grid[len(run.tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("RL steps of the arm", fontsize=8.5)
        figure.supylabel("reward on training problems", fontsize=8.5)
        figure.legend(
            handles=_learning_keys(run),
            loc="outside upper left",
            ncols=2 * room.columns,
            handlelength=1.6,
            columnspacing=1.6,
        )
        return figure


def learning_arms(run: RunData) -> list[str]:
    """Those whose curves `learning` draws, by the number in their lines' ids `armN.`; the last are single tasks."""
    return [*(arm for arm in run.arms if arm in SHARED or is_scheduled(arm)), "single"]


def _curve(axes: Axes, curves: dict[int, Curve], colour: str, *, raw: bool) -> None:
    """The thick line is the smoothed mean over seeds. raw: dots are the values of steps, thin lines seeds."""
    if not curves:
        return
    whole = series.thin(series.average(curves))
    if raw:
        axes.plot(*zip(*whole, strict=True), "o", color=colour, markersize=3, alpha=0.4, markeredgewidth=0)
    if raw and len(curves) > 1:
        for points in curves.values():
            axes.plot(*zip(*series.smooth(series.thin(points)), strict=True), color=colour, linewidth=0.7, alpha=0.55)
    axes.plot(*zip(*series.smooth(whole), strict=True), color=colour, linewidth=2)


def _diamonds(axes: Axes, run: RunData, task: str) -> None:
    points = series.average(series.stage_ends(run, "accuracy", task))
    start = series.before_training(run, f"accuracy/{task}")
    if math.isfinite(start) and points and points[0][0] > 0:
        points = [(0.0, start), *points]
    if points:
        colour = ARMS["curriculum"].colour
        axes.plot(
            *zip(*points, strict=True),
            ":D",
            color=colour,
            linewidth=1,
            markersize=6,
            markerfacecolor=PAPER,
            markeredgewidth=1.4,
        )


def _learning_keys(run: RunData) -> list[Line2D]:
    keys = [
        Line2D([], [], color=colour_of(arm, run.arms), linewidth=2, label=arm)
        for arm in run.arms
        if arm in SHARED or is_scheduled(arm)
    ]
    if any(series.by_seed(run, series.trained_as(run, SINGLE + task), f"reward/{task}") for task in run.tasks):
        label = "single (this task only)" if any(map(is_single, run.arms)) else "probe (this task only)"
        keys.append(Line2D([], [], color=ARMS["single"].colour, linewidth=2, label=label))
    if "curriculum" in run.arms:
        keys.append(
            Line2D(
                [],
                [],
                color=ARMS["curriculum"].colour,
                linestyle=":",
                marker="D",
                markerfacecolor=PAPER,
                label="curriculum on validation",
            )
        )
    return keys


def transfer(run: RunData, room: Room = WIDE) -> Figure | None:
    """The transfer matrix."""
    return transfer_figure(run.transfer, room) if run.transfer is not None and run.transfer.tasks else None


def told_apart(table: TransferMatrix) -> tuple[list[tuple[str, str]], int]:
    """Pairs of trained and evaluated task whose effect is two standard errors from 0, and the number measured."""
    effects = {(i, j): _effect(table, i, j) for i in table.tasks for j in table.tasks}
    measured = {pair: effect for pair, effect in effects.items() if math.isfinite(effect[0])}
    return [pair for pair, (mean, stderr) in measured.items() if abs(mean) >= 2 * stderr], len(measured)


def transfer_figure(table: TransferMatrix, room: Room = WIDE) -> Figure:
    """after - start on validation, trained tasks down, evaluated tasks across; the start on top."""
    tasks, size = table.tasks, len(table.tasks)
    effects = [[_effect(table, i, j) for j in tasks] for i in tasks]
    finite = [abs(mean) for row in effects for mean, _ in row if math.isfinite(mean)]
    limit = max([0.1, *finite])
    with style():
        width = (1.1 if room.narrow else 1.9) + max(0.62 if room.narrow else 0.8, min(1.45, 8.1 / size)) * size
        if room.narrow:
            width = max(room.width, width - 0.3) if size > 4 else room.width
        figure = Figure(figsize=(width, 1.35 + 0.62 * (size + 1)), layout="constrained")
        axes = figure.add_subplot()
        for column, task in enumerate(tasks):
            start = table.start.get(task)
            if start is not None:
                _cell(axes, -1.12, column, f"{start.mean:.3f}", start.stderr, (AXIS, 0.18), INK)
            for row in range(size):
                _effect_cell(axes, row, column, *effects[row][column], limit)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -1.62)
        axes.set_xticks(range(size), tasks)
        axes.set_yticks(
            [-1.12, *range(size)], ["start", *(f"after\n{task}" if room.narrow else f"after {task}" for task in tasks)]
        )
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("evaluated on (validation)")
        axes.tick_params(length=0, labelsize=8 if room.narrow else 9, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return figure


def _effect(table: TransferMatrix, trained: str, on: str) -> tuple[float, float]:
    """after - start and its standard error, which takes the two as unpaired: wide rather than narrow. NaN where it was
    not measured."""
    after, start = table.after.get(trained, {}).get(on), table.start.get(on)
    if after is None or start is None:
        return math.nan, math.nan
    return after.mean - start.mean, math.hypot(after.stderr, start.stderr)


def _effect_cell(axes: Axes, row: int, column: int, mean: float, stderr: float, limit: float) -> None:
    if not math.isfinite(mean):
        _cell(axes, row, column, "–", math.nan, (PAPER, 0.0), FAINT)
        return
    faint = not abs(mean) >= 2 * stderr  # a missing stderr is no evidence either
    fill = _diverging(mean / limit, 0.3 if faint else 1.0)
    dark = abs(mean) / limit > 0.6 and not faint
    ink = WHITE if dark else FAINT if faint else INK
    _cell(axes, row, column, signed(mean), stderr, fill, ink, outlined=row == column, bold=not faint)


def _diverging(share: float, strength: float) -> tuple[str, float]:
    """Blue for gains, orange for losses, nothing at 0: tells apart for every kind of colour vision. Colour and
    opacity, so that the paper below may be dark."""
    return ("#1f5fa8" if share > 0 else "#b84a00"), min(1.0, abs(share)) * 0.95 * strength


def _cell(
    axes: Axes,
    row: float,
    column: int,
    text: str,
    stderr: float,
    fill: tuple[str, float],
    ink: str,
    *,
    outlined: bool = False,
    bold: bool = False,
) -> None:
    edge, width = (INK, 1.3) if outlined else (GRID, 0.8)
    axes.add_patch(
        Rectangle(
            (column - 0.47, row - 0.45),
            0.94,
            0.9,
            facecolor=fill,
            edgecolor=(edge, 1.0),
            linewidth=width,
            zorder=3 if outlined else 2,
        )
    )
    axes.text(
        column,
        row - 0.13,
        text,
        ha="center",
        va="center",
        color=ink,
        fontsize=10,
        fontweight="bold" if bold else "normal",
        zorder=4,
    )
    if math.isfinite(stderr):
        axes.text(column, row + 0.23, f"± {stderr:.3f}", ha="center", va="center", color=ink, fontsize=7.5, zorder=4)


def forecasts(run: RunData, room: Room = WIDE) -> Figure | None:
    """Forecast with its interval against what came of it."""
    points = [item for item in run.result.forecasts if math.isfinite(item.forecast) and math.isfinite(item.outcome)]
    if not points:
        return None
    with style():
        figure = Figure(figsize=(room.width, 4.4) if room.narrow else (5.8, 4.1), layout="constrained")
        axes = figure.add_subplot()
        values = [value for item in points for value in (item.low, item.high, item.outcome) if math.isfinite(value)]
        low, high = max(0.0, min(values) - 0.05), min(1.0, max(values) + 0.05)
        axes.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle="--")
        for item in points:
            colour = task_colour(run.tasks, item.task)
            axes.plot([item.low, item.high], [item.outcome] * 2, color=colour, linewidth=1.6, alpha=0.65)
            face = colour if item.inside else "#ffffff"
            marker = task_marker(run.tasks, item.task)
            axes.plot(
                [item.forecast],
                [item.outcome],
                marker,
                markersize=7.5,
                markerfacecolor=face,
                markeredgecolor=colour,
                markeredgewidth=1.6,
            )
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_aspect("equal")
        axes.set_xlabel("forecast accuracy, with interval")
        axes.set_ylabel("outcome")
        axes.locator_params(nbins=7)
        plain(axes)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        keys = task_keys(run, {item.task for item in points}, line=False)
        keys.append(Line2D([], [], color=FAINT, linestyle="--", label="forecast = outcome"))
        if room.narrow:
            figure.legend(handles=keys, loc="outside upper left", ncols=2)
        else:
            axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def task_keys(run: RunData, shown: set[str], *, line: bool) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=task_colour(run.tasks, task),
            marker=task_marker(run.tasks, task),
            linestyle="-" if line else "none",
            linewidth=2,
            markersize=6,
            label=task,
        )
        for task in run.tasks
        if task in shown
    ]
