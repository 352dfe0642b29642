"""Figures of what went on inside training: entropy and health over steps."""

import math
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from omni_thinker.arms import ARMS, SHARED, colour_of, is_scheduled, is_single
from omni_thinker.report.figures import series
from omni_thinker.report.figures.plots import task_keys
from omni_thinker.report.figures.svg import INK, WIDE, Room, plain, style, task_colour, task_marker, whole_steps
from omni_thinker.runs.read import RunData

HEALTH = (
    ("zero_variance/all", "groups without variance (share)"),
    ("truncated/all", "answers cut short (share)"),
    ("turn_success.2/all", "second answers right (share)"),
    ("mismatch_abs/all", "log-prob mismatch (nats)"),
    ("clip_frac/all", "tokens clipped (share)"),
    ("kl_ref/all", "KL to the start (nats per token)"),
    ("grad_norm", "gradient norm"),
)

FEW_POINTS = 16


@dataclass(frozen=True)
class _Panel:
    title: str
    arm: str
    seeds: frozenset[int]
    spans: tuple[series.Span, ...]


def entropy(run: RunData, room: Room = WIDE) -> Figure | None:
    """Entropy by task over steps: the curriculum with its stages shaded, and joint training."""
    metrics = [f"entropy/{task}" for task in run.tasks]
    panels = [p for p in _entropy_panels(run) if any(series.by_seed(run, p.arm, metric) for metric in metrics)]
    if not panels:
        return None
    with style():
        columns = min(room.columns, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(room.width, (2.4 if room.narrow else 2.9) * lines + 0.4), layout="constrained")
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _entropy_panel(axes, run, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        grid[0].set_ylim(0, grid[0].get_ylim()[1] * 1.1)  # room for the names of the stages
        figure.supylabel("entropy (nats per token)", fontsize=8.5)
        figure.supxlabel("RL steps of the arm", fontsize=8.5)
        figure.legend(
            handles=task_keys(run, set(run.tasks), line=True),
            loc="outside upper left",
            ncols=min(3 * room.columns, len(run.tasks)),
        )
        return figure


def _entropy_panels(run: RunData) -> list[_Panel]:
    """One panel for each order that seeds trained in, since stages can only be shaded where seeds agree, then one for
    each arm that mixes tasks."""
    groups: dict[tuple[series.Span, ...], list[int]] = {}
    for seed, spans in series.stage_spans(run).items():
        groups.setdefault(spans, []).append(seed)
    panels = []
    for spans, seeds in groups.items():
        of = "" if len(groups) == 1 else f", seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        panels.append(_Panel(f"curriculum{of}", "curriculum", frozenset(seeds), spans))
    mixed = ["joint", *(arm for arm in run.arms if is_scheduled(arm))]
    return [*panels, *(_Panel(arm, arm, frozenset(run.seeds), ()) for arm in mixed)]


def _entropy_panel(axes: Axes, run: RunData, panel: _Panel) -> None:
    for span in panel.spans:
        axes.axvspan(
            span.first - 0.5, span.last + 0.5, color=task_colour(run.tasks, span.task), alpha=0.13, linewidth=0
        )
        middle = (span.first + span.last) / 2
        axes.annotate(
            span.task, (middle, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8, color=INK
        )
    for task in run.tasks:
        colour = task_colour(run.tasks, task)
        curves = {
            seed: curve
            for seed, curve in series.by_seed(run, panel.arm, f"entropy/{task}").items()
            if seed in panel.seeds
        }
        if len(curves) > 1:
            for points in curves.values():
                axes.plot(
                    *zip(*series.smooth(series.thin(points)), strict=True), color=colour, linewidth=0.6, alpha=0.5
                )
        for line in _unbroken(series.smooth(series.thin(series.average(curves)))):
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=2)
        if panel.arm == "curriculum":
            _entropy_ends(axes, run, panel, task)
    axes.set_title(panel.title)
    whole_steps(axes)
    plain(axes)


def _unbroken(points: series.Points) -> list[series.Points]:
    """Cut where a task was not trained for a while: no line may claim what was not measured."""
    if len(points) < 3:
        return [points] if points else []
    gaps = [after[0] - before[0] for before, after in pairwise(points)]
    usual = sorted(gaps)[len(gaps) // 2]
    parts: list[series.Points] = [[points[0]]]
    for gap, point in zip(gaps, points[1:], strict=True):
        if gap > 3 * usual:
            parts.append([])
        parts[-1].append(point)
    return parts


def _entropy_ends(axes: Axes, run: RunData, panel: _Panel, task: str) -> None:
    """Validation entropy at the start and after each stage, for all tasks: trained at the time or not."""
    ends = {seed: curve for seed, curve in series.stage_ends(run, "entropy", task).items() if seed in panel.seeds}
    points = series.average(ends)
    start = series.before_training(run, f"entropy/{task}")
    if points and math.isfinite(start) and points[0][0] > 0:
        points = [(0.0, start), *points]
    if points:
        marker = task_marker(run.tasks, task)
        axes.plot(
            *zip(*points, strict=True),
            linestyle=":",
            marker=marker,
            color=task_colour(run.tasks, task),
            linewidth=1,
            markersize=5.5,
        )


def health(run: RunData, room: Room = WIDE) -> Figure | None:
    """Small multiples of what tells a sound run from a sick one."""
    panels = [(metric, title) for metric, title in HEALTH if _health_curves(run, metric)]
    if not panels:
        return None
    with style():
        columns = min(1 if room.narrow else 3, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(room.width, (1.6 if room.narrow else 1.95) * lines + 0.5), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
        for axes, (metric, title) in zip(grid, panels, strict=False):
            for name, points in _health_curves(run, metric).items():
                few = len(points) < FEW_POINTS
                axes.plot(
                    *zip(*points, strict=True),
                    "o-" if few else "-",
                    markersize=3,
                    color=_health_colour(name, run),
                    linewidth=1.6,
                )
            axes.set_title(title, fontsize=8.5, fontweight="normal")
            axes.set_ylim(bottom=0)
            axes.margins(y=0.12)
            whole_steps(axes)
            plain(axes)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("RL steps of the arm", fontsize=8.5)
        names = list(dict.fromkeys(name for metric, _ in panels for name in _health_curves(run, metric)))
        figure.legend(
            handles=[Line2D([], [], color=_health_colour(name, run), linewidth=2, label=name) for name in names],
            loc="outside upper left",
            ncols=2 * room.columns,
        )
        return figure


def _health_colour(name: str, run: RunData) -> str:
    return ARMS["single"].colour if name.startswith("single") else colour_of(name, run.arms)


def _health_curves(run: RunData, metric: str) -> dict[str, series.Points]:
    """Every arm that trains all tasks, and the mean of the single-task arms, averaged over seeds and lightly
    smoothed."""
    shared = [arm for arm in run.arms if arm in SHARED or is_scheduled(arm)]
    curves = {arm: series.average(series.by_seed(run, arm, metric)) for arm in shared}
    singles = [
        series.average(series.by_seed(run, series.trained_as(run, arm), metric)) for arm in run.arms if is_single(arm)
    ]
    curves["single (mean of tasks)"] = series.average(dict(enumerate(singles)))
    # A sparse metric (the KL, every few steps) is drawn as measured.
    return {
        name: points if len(points) < FEW_POINTS else series.smooth(series.thin(points), 1)
        for name, points in curves.items()
        if points
    }
