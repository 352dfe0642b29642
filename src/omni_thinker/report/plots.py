"""The figures of a report. Each takes a run and returns SVG, or None where there is nothing to draw."""

import math

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from omni_thinker.arms import ARMS, SHARED, SINGLE, colour_of, is_scheduled, is_single, rivals
from omni_thinker.report import series
from omni_thinker.report.svg import FAINT, GRID, INK, plain, signed, style, task_colour, task_marker, to_svg
from omni_thinker.runs.metrics_log import Curve
from omni_thinker.runs.read import RunData
from omni_thinker.runs.schema.result import Comparison
from omni_thinker.runs.schema.transfer import TransferMatrix

WIDTH = 10.0


def differences(run: RunData) -> Markup | None:
    """Macro differences with intervals: each arm to joint training, which the verdict goes by, then to the start."""
    rows: list[tuple[str, str, Comparison | None]] = []
    for control, heading in (("joint", "each arm against joint training"), ("start", "each arm against the start")):
        arms = rivals(run.arms) if control == "joint" else [arm for arm in run.arms if arm != "start"]
        compared = [(arm, run.comparison(arm, control)) for arm in arms]
        finite = [(arm, item) for arm, item in compared if item is not None and math.isfinite(item.difference)]
        if finite:
            rows.append((heading, "", None))
            rows += [(f"{arm} − {control}", arm, item) for arm, item in finite]
    if not rows:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.3 * len(rows) + 0.75), layout="constrained")
        axes = figure.add_subplot()
        for at, (_, arm, item) in enumerate(rows):
            if item is not None:
                _difference_row(axes, at, colour_of(arm, run.arms), item)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        for tick, (_, arm, _item) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(INK)
            tick.set_fontweight("normal" if arm else "bold")
        axes.set_xlabel("difference in macro accuracy, test split (interval; left of 0: worse)")
        plain(axes, grid="x")
        axes.spines["left"].set_visible(False)
        return to_svg(figure, "differences", "Differences in macro accuracy between arms, with intervals")


def _difference_row(axes: Axes, at: int, colour: str, item: Comparison) -> None:
    axes.plot([item.low, item.high], [at, at], color=colour, linewidth=2.2, alpha=1.0 if item.shown else 0.5)
    face = colour if item.shown else "#ffffff"
    axes.plot(
        [item.difference], [at], "o", markersize=7, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.5
    )
    text = f"{signed(item.difference)}  [{signed(item.low)}, {signed(item.high)}]"
    axes.annotate(
        text if item.shown else f"{text}  no difference shown",
        (1.02, at),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8.5,
        color=INK if item.shown else FAINT,
        annotation_clip=False,
    )


def learning(run: RunData) -> Markup | None:
    """Train reward over steps: one panel a task, one colour an arm, validation of the curriculum as diamonds.

    Where there is no single-task arm its probe is drawn."""
    shared = [arm for arm in run.arms if arm in SHARED or is_scheduled(arm)]
    arms = {task: [*shared, SINGLE + task] for task in run.tasks}
    if not any(
        series.by_seed(run, series.trained_as(run, arm), f"reward/{task}") for task in run.tasks for arm in arms[task]
    ):
        return None
    with style():
        columns = 2 if len(run.tasks) > 1 else 1
        lines = math.ceil(len(run.tasks) / columns)
        figure = Figure(figsize=(WIDTH, 2.45 * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, task in zip(grid, run.tasks, strict=False):
            for arm in reversed(arms[task]):  # the curriculum on top
                _curve(
                    axes, series.by_seed(run, series.trained_as(run, arm), f"reward/{task}"), colour_of(arm, run.arms)
                )
            _diamonds(axes, run, task)
            axes.set_title(task)
            plain(axes)
        for axes in grid[len(run.tasks) :]:
            axes.set_visible(False)
        figure.supxlabel("RL steps of the arm", fontsize=8.5)
        figure.supylabel("reward on training problems", fontsize=8.5)
        figure.legend(
            handles=_learning_keys(run), loc="outside upper left", ncols=4, handlelength=1.6, columnspacing=1.6
        )
        return to_svg(figure, "learning", "Learning curves by task")


def _curve(axes: Axes, curves: dict[int, Curve], colour: str) -> None:
    """Dots are the raw values (mean over seeds), thin lines seeds, the thick line their smoothed mean."""
    if not curves:
        return
    whole = series.thin(series.average(curves))
    axes.plot(*zip(*whole, strict=True), "o", color=colour, markersize=3, alpha=0.4, markeredgewidth=0)
    if len(curves) > 1:
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
            markerfacecolor="#ffffff",
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
                markerfacecolor="#ffffff",
                label="curriculum on validation",
            )
        )
    return keys


def transfer(run: RunData) -> Markup | None:
    """The transfer matrix as SVG."""
    if run.transfer is None or not run.transfer.tasks:
        return None
    with style():
        figure = transfer_figure(run.transfer)
        return to_svg(figure, "transfer", "Effect of training on one task upon every task")


def transfer_figure(table: TransferMatrix) -> Figure:
    """after - start on validation, trained tasks down, evaluated tasks across; the start on top."""
    tasks, size = table.tasks, len(table.tasks)
    effects = [[_effect(table, i, j) for j in tasks] for i in tasks]
    finite = [abs(mean) for row in effects for mean, _ in row if math.isfinite(mean)]
    limit = max([0.1, *finite])
    with style():
        figure = Figure(
            figsize=(1.9 + max(0.8, min(1.45, 8.1 / size)) * size, 1.35 + 0.62 * (size + 1)), layout="constrained"
        )
        axes = figure.add_subplot()
        for column, task in enumerate(tasks):
            start = table.start.get(task)
            if start is not None:
                _cell(axes, -1.12, column, f"{start.mean:.3f}", start.stderr, "#ececec", INK)
            for row in range(size):
                _effect_cell(axes, row, column, *effects[row][column], limit)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -1.62)
        axes.set_xticks(range(size), tasks)
        axes.set_yticks([-1.12, *range(size)], ["start", *(f"after {task}" for task in tasks)])
        axes.xaxis.tick_top()
        axes.xaxis.set_label_position("top")
        axes.set_xlabel("evaluated on (validation)")
        axes.tick_params(length=0, labelsize=9, labelcolor=INK)
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
        _cell(axes, row, column, "–", math.nan, "#ffffff", FAINT)
        return
    faint = not abs(mean) >= 2 * stderr  # a missing stderr is no evidence either
    fill = _diverging(mean / limit, 0.3 if faint else 1.0)
    dark = abs(mean) / limit > 0.6 and not faint
    ink = "#ffffff" if dark else FAINT if faint else INK
    _cell(axes, row, column, signed(mean), stderr, fill, ink, outlined=row == column, bold=not faint)


def _diverging(share: float, strength: float) -> str:
    """Blue for gains, orange for losses, white at 0: tells apart for every kind of colour vision."""
    end = np.array([0x1F, 0x5F, 0xA8]) if share > 0 else np.array([0xB8, 0x4A, 0x00])
    mix = min(1.0, abs(share)) * 0.95 * strength
    red, green, blue = (np.array([255, 255, 255]) * (1 - mix) + end * mix).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _cell(
    axes: Axes,
    row: float,
    column: int,
    text: str,
    stderr: float,
    fill: str,
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
            edgecolor=edge,
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


def forecasts(run: RunData) -> Markup | None:
    """Forecast with its interval against what came of it."""
    points = [item for item in run.result.forecasts if math.isfinite(item.forecast) and math.isfinite(item.outcome)]
    if not points:
        return None
    with style():
        figure = Figure(figsize=(5.8, 4.1), layout="constrained")
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
        axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return to_svg(figure, "forecasts", "Forecast against outcome")


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
